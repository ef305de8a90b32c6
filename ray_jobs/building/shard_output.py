"""Where a shard is checked, written and committed: in the builder, or in the `Reader` that it sends its samples to."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ray_jobs.building.messages import BuildSpec, FailedSample, Written
from shards.dataset.dataset import Dataset
from shards.dataset.publish import Circumstances, publish
from shards.format.commit import Commit
from shards.format.plan import PlannedShard
from shards.format.sample import Failure, Sample
from shards.format.shard_writer import ShardWriter
from shards.stores.local import open_storage
from shards.stores.spool import Spool


class ShardLostError(Exception):
    """A shard under construction is gone with the process that had it."""


@dataclass(frozen=True)
class _Open:
    """A shard under construction."""

    name: str
    writer: ShardWriter
    stack: ExitStack


class Finisher:
    """Shards under construction, by attempt.

    Args:
        spec: what to write, and where to.
    """

    def __init__(self, spec: BuildSpec) -> None:
        self._spec = spec
        self._open: dict[str, _Open] = {}

    # Both are made with the first shard and not in __init__, where what goes wrong, say a node without credentials,
    # would be a worker's traceback instead of the run's last line.

    @cached_property
    def dataset(self) -> Dataset:
        """Opened for writing."""
        return Dataset.open(open_storage(self._spec.root))

    @cached_property
    def _spool(self) -> Spool:
        return Spool.at(self._spec.spool)

    def begin(self, attempt: str, planned: PlannedShard) -> None:
        """Open a shard; what a dead builder left open of it is thrown away."""
        for stale in [attempt for attempt, found in list(self._open.items()) if found.name == planned.name]:
            self.drop(stale)
        self._spool.check_room(self._spec.shard_bytes)
        with ExitStack() as stack:
            folder = stack.enter_context(self._spool.workspace(planned.name))
            writer = ShardWriter(planned, folder, self.dataset.fingerprint, self._spec.expected)
            stack.enter_context(writer)
            self._open[attempt] = _Open(planned.name, writer, stack.pop_all())

    def write(self, attempt: str, results: Sequence[Sample | Failure]) -> Written:
        """Write samples, or why there are none; a sample that is not sound is written down as failed."""
        writer = self._opened(attempt).writer
        failed: list[FailedSample] = []
        for result in results:
            failure = result if isinstance(result, Failure) else _refused(writer, result)
            if failure is not None:
                failed.append((writer.fail(failure).caption, failure))
        return Written(len(results) - len(failed), failed)

    def commit(self, attempt: str, circumstances: Circumstances) -> Commit:
        """Close a shard and publish it; returns the commit that stands, another build's where that came first."""
        found = self._opened(attempt)
        del self._open[attempt]
        with closing(found.stack):
            return publish(self.dataset, found.writer.close(), circumstances)

    def _opened(self, attempt: str) -> _Open:
        if attempt not in self._open:
            raise ShardLostError(f"no shard is open for attempt {attempt}")
        return self._open[attempt]

    def drop(self, attempt: str) -> None:
        """Throw away what an attempt has open."""
        if attempt in self._open:
            self._open.pop(attempt).stack.close()


def _refused(writer: ShardWriter, sample: Sample) -> Failure | None:
    """Write a sample; why it was refused, or None where it was not."""
    try:
        writer.add(sample)
    except ValueError as error:
        return Failure.from_exception("check", error)
    return None


class Remote:
    """A `Reader` in another process, called as if it were here.

    Its methods raise what the reader's raise, and ShardLostError where the reader died.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._call, method)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self._handle, method).remote(*arguments))
        except RayActorError as error:
            if method == "drop":  # a reader that died has nothing left to drop
                return None
            raise ShardLostError(str(error)) from error
        except RayTaskError as error:
            raise error.cause from None
