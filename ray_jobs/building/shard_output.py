"""Where a shard's samples are checked, written and committed: in the builder, or in a reader that it sends them to."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from projector.making.batching import BatchMaker, DeviceBrokenError, device_is_broken, make_sound
from ray_jobs.building.stopwatch import Stopwatch
from ray_jobs.cli.log import utc_now
from shards.dataset.crash_points import crash_point
from shards.dataset.dataset import Dataset
from shards.dataset.publish import Circumstances, publish
from shards.errors import StorageError
from shards.format.commit import Commit
from shards.format.plan import PlannedShard
from shards.format.sample import Expected, Failure, Sample
from shards.format.shard_writer import ShardWriter
from shards.stores.local import open_storage
from shards.stores.spool import Spool


@dataclass(frozen=True)
class FinishSpec:
    """What is needed to turn samples into committed shards; small and picklable.

    Attributes:
        root: dataset root.
        expected: what every sample must hold.
        spool: local folder for shards under construction; None for each machine's own.
        shard_bytes: what a full shard takes there, about.
    """

    root: str
    expected: Expected
    spool: str | None
    shard_bytes: int


class ShardLostError(Exception):
    """A shard under construction is gone with the process that had it."""


class Finisher:
    """Shards under construction, by ticket.

    Args:
        spec: what to write, and where to.
    """

    def __init__(self, spec: FinishSpec) -> None:
        self._spec = spec
        self._open: dict[int, tuple[ShardWriter, ExitStack]] = {}

    # Both are made with the first shard and not in __init__, where what goes wrong, say a node without credentials,
    # would be a worker's traceback instead of the run's last line.

    @cached_property
    def dataset(self) -> Dataset:
        """Opened for writing."""
        return Dataset.open(open_storage(self._spec.root))

    @cached_property
    def _spool(self) -> Spool:
        return Spool.at(self._spec.spool)

    def begin(self, ticket: int, planned: PlannedShard) -> None:
        """Open a shard; one that a dead builder left open under the same ticket is thrown away."""
        self.drop(ticket)
        self._spool.check_room(self._spec.shard_bytes)
        with ExitStack() as stack:
            folder = stack.enter_context(self._spool.workspace(planned.name))
            writer = stack.enter_context(
                ShardWriter(planned, folder, self.dataset.fingerprint, self._spec.expected)
            )
            self._open[ticket] = writer, stack.pop_all()

    def write(self, ticket: int, results: Sequence[Sample | Failure]) -> int:
        """Write samples, or why there are none; returns how many were not sound, and were written down as failed."""
        writer, _ = self._opened(ticket)
        refused = 0
        for result in results:
            if isinstance(result, Failure):
                writer.fail(result)
                continue
            try:
                writer.add(result)
            except ValueError as error:
                writer.fail(Failure.from_exception("check", error))
                refused += 1
        return refused

    def commit(self, ticket: int, circumstances: Circumstances) -> Commit:
        """Close a shard and publish it; returns the commit that stands, another build's where that came first."""
        writer, stack = self._opened(ticket)
        del self._open[ticket]
        with closing(stack):
            return publish(self.dataset, writer.close(), circumstances)

    def _opened(self, ticket: int) -> tuple[ShardWriter, ExitStack]:
        if ticket not in self._open:
            raise ShardLostError(f"no shard is open under ticket {ticket}")
        return self._open[ticket]

    def drop(self, ticket: int) -> None:
        """Throw away what is open under a ticket."""
        if ticket in self._open:
            self._open.pop(ticket)[1].close()


@contextmanager
def ending_with_the_device() -> Iterator[None]:
    """End this process when its GPU is broken: every later sample would fail here, and Ray starts another process."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, DeviceBrokenError) and not device_is_broken():
            raise
        line = {"time": utc_now(), "event": "device broken, process ends", "error": str(error)}
        print(json.dumps(line), flush=True)
        os._exit(1)


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
        self._busy: dict[int, Stopwatch] = {}

    @cached_property
    def _reader(self) -> BatchMaker[Any, Sample]:
        try:
            return self._load()
        except RuntimeError as error:  # torch's, of a device that is full, broken or occupied
            reason = " ".join(str(error).split())[:500]
            raise StorageError(
                f"a reader's model cannot be loaded on {socket.gethostname()}: {reason}"
            ) from error

    def write(self, ticket: int, results: Sequence[Any]) -> int:
        """Read pictures and write the samples; returns how many could not be read, or were not sound."""
        with self._model:
            torch.set_num_threads(1)  # in whichever thread this is; as in builders
            crash_point("reading")
            with self._busy.setdefault(ticket, Stopwatch()), ending_with_the_device():
                samples = make_sound(self._reader, results)
        failed = sum(isinstance(item, Failure) for item in samples)
        return failed - sum(isinstance(item, Failure) for item in results) + super().write(ticket, samples)

    def commit(self, ticket: int, circumstances: Circumstances) -> Commit:
        """Close a shard and publish it; the seconds that the model was at work on it count as well."""
        busy = self._busy.pop(ticket, Stopwatch()).seconds
        return super().commit(ticket, replace(circumstances, busy_seconds=circumstances.busy_seconds + busy))

    def drop(self, ticket: int) -> None:
        """Throw away what is open under a ticket."""
        super().drop(ticket)
        self._busy.pop(ticket, None)


class Remote:
    """A `Reader` in another process, called as if it were here.

    Its methods raise what the reader's raise, and ShardLostError where the reader died.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def begin(self, ticket: int, planned: PlannedShard) -> None:
        """`Finisher.begin` there."""
        self._call("begin", ticket, planned)

    def write(self, ticket: int, results: Sequence[Any]) -> int:
        """`Reader.write` there."""
        return int(self._call("write", ticket, results))

    def commit(self, ticket: int, circumstances: Circumstances) -> Commit:
        """`Reader.commit` there."""
        commit: Commit = self._call("commit", ticket, circumstances)
        return commit

    def drop(self, ticket: int) -> None:
        """`Finisher.drop` there; a reader that died has nothing left to drop."""
        with suppress(ShardLostError):
            self._call("drop", ticket)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self._handle, method).remote(*arguments))
        except RayActorError as error:
            raise ShardLostError(str(error)) from error
        except RayTaskError as error:
            raise error.cause from None
