"""The other half of a staged build: a process that reads the pictures of several builders and finishes their shards."""

import socket
import threading
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch

from projector.making.batching import BatchMaker, make_sound
from projector.making.device_clock import DeviceClock
from ray_jobs.building.shard_output import Finisher, FinishSpec, ending_with_the_device, loading
from shards.dataset.crash_points import crash_point
from shards.errors import StorageError
from shards.format.sample import Failure, Sample


class Reader(Finisher):
    """A finisher that gets pictures, with a vision-language model to read them; a Ray actor that builders share.

    Args:
        spec: what to write, and where to.
        make_reader: loads the model.
    """

    def __init__(self, spec: FinishSpec, make_reader: Callable[[], BatchMaker[Any, Sample]]) -> None:
        super().__init__(spec)
        self._load = make_reader
        self._model = threading.Lock()  # one batch at a time, while other shards are written and published

    @cached_property
    def _reader(self) -> BatchMaker[Any, Sample]:
        with loading(f"a reader's model cannot be loaded on {socket.gethostname()}", StorageError):
            return self._load()

    @cached_property
    def _clock(self) -> DeviceClock:
        return DeviceClock(self._reader.modules)

    def write(self, attempt: str, results: Sequence[Any]) -> int:
        """Read pictures and write the samples; returns how many could not be read, or were not sound."""
        with self._model:
            torch.set_num_threads(1)  # in whichever thread this is; as in builders
            crash_point("reading")
            found = self._opened(attempt)
            with ending_with_the_device():
                samples, busy = self._clock.timed(partial(make_sound, self._reader, results))
            found.busy_seconds += busy
        failed = sum(isinstance(item, Failure) for item in samples)
        return failed - sum(isinstance(item, Failure) for item in results) + super().write(attempt, samples)
