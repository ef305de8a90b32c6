"""The other half of a staged build: a process that reads the pictures of several builders and finishes their shards."""

import socket
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch

from projector.making.batching import BatchMaker, make_sound
from projector.making.device_clock import DeviceClock
from ray_jobs.building.messages import BuildSpec, Written
from ray_jobs.building.shard_output import Finisher
from ray_jobs.cluster.device_trouble import ending_with_the_device, loading
from shards.dataset.crash_points import crash_point
from shards.errors import StorageError
from shards.format.sample import Sample


class Reader(Finisher):
    """A finisher that gets pictures, with a vision-language model to read them; a Ray actor that builders share.

    Args:
        spec: what to write, where to, and what loads the model.
    """

    def __init__(self, spec: BuildSpec) -> None:
        super().__init__(spec)
        self._model = threading.Lock()  # one batch at a time, while other shards are written and published

    @cached_property
    def _reader(self) -> BatchMaker[Any, Sample]:
        with loading(f"a reader's model cannot be loaded on {socket.gethostname()}", StorageError):
            assert self._spec.make_reader is not None
            made: BatchMaker[Any, Sample] = self._spec.make_reader()
            return made

    @cached_property
    def _clock(self) -> DeviceClock:
        return DeviceClock(self._reader.modules)

    def write(self, attempt: str, results: Sequence[Any]) -> Written:
        """Read pictures and write the samples."""
        with self._model:
            torch.set_num_threads(1)  # in whichever thread this is; as in builders
            crash_point("reading")
            self._opened(attempt)  # where it is lost, nothing need be read
            with ending_with_the_device():
                samples, busy = self._clock.timed(partial(make_sound, self._reader, results))
        return replace(super().write(attempt, samples), busy_seconds=busy)
