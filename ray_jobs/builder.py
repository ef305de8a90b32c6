"""What one builder does: take a planned shard, make its samples, commit it. Runs inside a Ray Data actor."""

import json
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from projector.batches import BatchMaker
from ray_jobs.monitor import DEATHS_ALONE, DEATHS_FATAL, MAX_ATTEMPTS, Orders
from shards.crash import crash_point
from shards.dataset import Dataset
from shards.errors import CorruptShardError, StorageError, UsageError
from shards.plan import PlannedSample, PlannedShard
from shards.publish import Circumstances, adopt, publish
from shards.sample import Expected, Failure, Sample
from shards.spool import Spool
from shards.storage import open_storage
from shards.write import BuiltShard, ShardWriter

BATCHES_BEHIND = 2  # that wait to be written: more would only fill memory


@dataclass(frozen=True)
class BuilderSpec:
    """Everything a builder needs to know; small and picklable.

    Attributes:
        root: dataset root.
        maker: makes what turns planned samples into samples; called once the first shard is to be made.
        expected: what every sample must hold.
        spool: local folder for shards under construction.
        shard_bytes: what a full shard takes there, about.
        superseded: keys of samples that are tried again further on in the plan, and so not made where they failed.
    """

    root: str
    maker: Callable[[], BatchMaker]
    expected: Expected
    spool: str
    shard_bytes: int
    superseded: frozenset[str] = frozenset()


def to_row(planned: PlannedShard) -> dict[str, str]:
    """A planned shard as one Ray Data row."""
    samples = json.dumps([asdict(sample) for sample in planned.samples])
    return {"split": planned.split, "index": str(planned.index), "samples": samples}


def from_row(batch: dict[str, np.ndarray]) -> PlannedShard:
    """The planned shard of a batch of one row."""
    samples = tuple(PlannedSample(**sample) for sample in json.loads(str(batch["samples"][0])))
    return PlannedShard(str(batch["split"][0]), int(batch["index"][0]), samples)


class ShardBuilder:
    """One process with the models in memory; called with one planned shard at a time.

    Args:
        spec: what to build with.
        monitor: handle of the run's `Monitor` actor.
    """

    def __init__(self, spec: BuilderSpec, monitor: Any) -> None:
        # One thread per builder on a CPU: sums must not depend on how many cores happened to be free.
        torch.set_num_threads(1)
        self._spec = spec
        self._monitor = monitor
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._device = _device_name()

    # All three are made with the first shard and not in __init__, where what goes wrong, say a node without
    # credentials, would be a worker's traceback instead of the run's last line.

    @cached_property
    def _dataset(self) -> Dataset:
        return Dataset.open(open_storage(self._spec.root))

    @cached_property
    def _spool(self) -> Spool:
        return Spool(Path(self._spec.spool))

    @cached_property
    def _maker(self) -> BatchMaker:
        return self._spec.maker()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Build one shard.

        Args:
            batch: one row of `to_row`.

        Returns:
            one row: `name`, `outcome` (committed, adopted, there, stopped, abandoned or refused) and `detail`.
        """
        planned = from_row(batch)
        try:
            outcome, detail = self._make(planned), ""
        except (StorageError, CorruptShardError, UsageError) as error:
            # The store's failure is every builder's: the run stops with its words instead of a worker's traceback.
            outcome, detail = "refused", f"{planned.name}: {error}"
            ray.get(self._monitor.stop.remote(detail))
        return {"name": [planned.name], "outcome": [outcome], "detail": [detail]}

    def _make(self, planned: PlannedShard) -> str:
        itself = ray.get_runtime_context().current_actor
        orders: Orders = ray.get(self._monitor.begin.remote(self._name, planned.name, itself))
        try:
            return self._make_under(orders, planned)
        finally:
            ray.get(self._monitor.end.remote(self._name))

    def _make_under(self, orders: Orders, planned: PlannedShard) -> str:
        if not orders.go:
            return "abandoned" if orders.attempt > MAX_ATTEMPTS else "stopped"
        if self._dataset.is_committed(planned.name):
            return "there"
        attempt = uuid.uuid4().hex
        adopted = adopt(self._dataset, planned.name, planned.slice_hash, attempt=attempt)
        if adopted is not None:
            self._tell(planned, adopted.samples, adopted.failed, ())
            return "adopted"
        self._spool.check_room(self._spec.shard_bytes)
        start = time.monotonic()
        with self._spool.workspace(planned.name) as folder:
            busy = Stopwatch()
            built = self._write(planned, folder, orders, busy)
            if built is None:
                return "stopped"
            wall = time.monotonic() - start
            publish(
                self._dataset,
                built,
                Circumstances(attempt, wall, wall, self._device, busy_seconds=busy.seconds),
            )
        return "committed"

    def _write(
        self, planned: PlannedShard, folder: Path, orders: Orders, busy: "Stopwatch"
    ) -> BuiltShard | None:
        """Make the samples and close the shard on local disk; None when the run stops before its end.

        Samples are checked, counted and written by a thread, while the device is at the next batch.
        """
        made = failed = 0
        behind: deque[Future[int]] = deque()
        with (
            ShardWriter(planned, folder, self._dataset.fingerprint, self._spec.expected) as writer,
            ThreadPoolExecutor(1, thread_name_prefix="writer") as pen,
        ):
            for batch in chain(self._batches(planned, orders), [()]):
                while behind and (len(behind) == BATCHES_BEHIND or not batch or behind[0].done()):
                    refused = behind.popleft().result()
                    made, failed = made - refused, failed + refused
                go = self._tell(planned, made, failed, [sample.id for sample in batch])
                if not batch:
                    break
                if not go:
                    return None
                with busy:
                    results = self._results(batch, orders)
                failures = sum(isinstance(result, Failure) for result in results)
                made, failed = made + len(results) - failures, failed + failures
                behind.append(pen.submit(write_all, writer, results))
                crash_point("mid-shard")
            return writer.close()

    def _batches(self, planned: PlannedShard, orders: Orders) -> Iterator[Sequence[PlannedSample]]:
        """The shard's batches; one that keeps killing workers is taken apart, to find out which sample does it."""
        for batch in self._maker.batches(planned.samples):
            alone = any(orders.deaths.get(sample.id, 0) >= DEATHS_ALONE for sample in batch)
            if alone or any(sample.key in self._spec.superseded for sample in batch):
                yield from ([sample] for sample in batch)
            else:
                yield batch

    def _results(self, batch: Sequence[PlannedSample], orders: Orders) -> list[Sample | Failure]:
        """A batch's samples; one that has killed too many workers, or is tried again elsewhere, is not made."""
        if len(batch) == 1 and batch[0].key in self._spec.superseded:
            return [
                Failure.from_exception("plan", RuntimeError("failed before; tried again in a later shard"))
            ]
        if len(batch) == 1 and (deaths := orders.deaths.get(batch[0].id, 0)) >= DEATHS_FATAL:
            error = RuntimeError(f"{deaths} workers died while making it")
            return [Failure.from_exception("worker", error)]
        for sample in batch:
            crash_point(f"sample-{sample.id}")
        return self._maker.make(batch)

    def _tell(self, planned: PlannedShard, made: int, failed: int, at_work: Sequence[str]) -> bool:
        report = self._monitor.report.remote(
            self._name, planned.name, made=made, failed=failed, at_work=tuple(at_work)
        )
        return bool(ray.get(report))


class Stopwatch:
    """Adds up the seconds spent inside `with`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._entered = 0.0

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *_error: object) -> None:
        self.seconds += time.monotonic() - self._entered


def write_all(writer: ShardWriter, results: Sequence[Sample | Failure]) -> int:
    """Write samples, or why there are none; returns how many samples were not sound, and written down as failed."""
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


def _device_name() -> str:
    """The accelerator Ray gave this actor, or the CPU: `GPU 2 (NVIDIA H200)`, `CPU`."""
    ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    if not ids:
        return "CPU"
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else "declared, no device found"
    return f"GPU {','.join(ids)} ({kind})"
