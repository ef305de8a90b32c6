"""What one builder does: take a planned shard, make its samples, commit it. Runs inside a Ray Data actor."""

import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import numpy as np
import ray

from projector.making.steps import STRETCH, ShardMaker, Step
from ray_jobs.building.messages import Orders, Outcome, worker_name
from ray_jobs.building.monitor import DEATHS_ALONE, DEATHS_FATAL
from ray_jobs.building.shard_output import (
    CannotLoadError,
    Finisher,
    FinishSpec,
    Remote,
    ShardLostError,
    ending_with_the_device,
    loading,
)
from ray_jobs.cli.log import utc_now
from ray_jobs.cluster.this_actor import device_name, whereabouts
from shards.dataset.crash_points import crash_point
from shards.dataset.publish import Circumstances, adopt
from shards.errors import CorruptShardError, StorageError, UsageError
from shards.format.commit import Commit
from shards.format.plan import PlannedSample, PlannedShard
from shards.format.sample import Failure

READER_SECONDS = 300.0  # to wait for a reader that died: a process with torch may start slowly
WAITING_SECONDS = 1.0  # between two looks at whether the run is over, or whether a reader is back
# Batches that wait to be written. Reading comes in bursts of a stretch and is faster than writing, so as many as that;
# one of four 1024² samples in two layers and text modes takes 0.1 GB.
BATCHES_BEHIND = STRETCH


@dataclass(frozen=True)
class BuilderSpec:
    """Everything a builder needs to know; small and picklable.

    Attributes:
        finish: what to write, and where to.
        maker: makes what leads planned samples through the models; called once the first shard is to be made.
        superseded: keys of samples that are tried again further on in the plan, and so not made where they failed.
        devices: held for each builder, its share of the readers included.
        run: id of the run.
    """

    finish: FinishSpec
    maker: Callable[[], ShardMaker]
    superseded: frozenset[str] = frozenset()
    devices: float = 1.0
    run: str = ""


@dataclass
class _Attempt:
    """At one shard: how it began, and how far it is."""

    id: str
    shard: PlannedShard
    orders: Orders
    where: Finisher | Remote
    circumstances: Circumstances
    made: int = 0
    failed: int = 0
    busy_seconds: float = 0.0
    behind: deque[tuple[Future[int], Sequence[PlannedSample]]] = field(default_factory=deque)  # being written
    pen: ThreadPoolExecutor = field(
        default_factory=partial(ThreadPoolExecutor, 1, thread_name_prefix="writer")
    )

    def settle(self) -> None:
        """Count the samples of the oldest batch that were not sound, once it is written."""
        refused = self.behind.popleft()[0].result()
        self.made, self.failed = self.made - refused, self.failed + refused

    def drop(self) -> None:
        """Throw away what there is of the shard."""
        self.pen.shutdown(cancel_futures=True)
        self.where.drop(self.id)


class ShardBuilder:
    """One process with models in memory; each call makes one shard.

    Two calls run at once: the models are with one of them, while the rest of the other one's shard is being written
    and published.

    Args:
        spec: what to build with.
        monitor: handle of the run's `Monitor` actor.
        readers: handles of the run's `Reader` actors, where pictures are read elsewhere.
    """

    def __init__(self, spec: BuilderSpec, monitor: Any, readers: Sequence[Any] = ()) -> None:
        self._spec, self._monitor, self._readers = spec, monitor, readers
        self._device = device_name()
        self._itself = whereabouts(spec.run)
        self._gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
        self._models = threading.Lock()
        self._left_out = False
        self._here = Finisher(spec.finish)

    @cached_property
    def _maker(self) -> ShardMaker:
        # With the first shard and not in __init__, where an error would be a worker's traceback.
        itself = f"{worker_name(self._itself)}, {self._device}"
        with loading(f"the models cannot be loaded on {itself}", CannotLoadError):
            maker = self._spec.maker()
        for note in maker.notes:
            self._ask("note", f"{itself}: {note}")
        return maker

    def _ask(self, method: str, *arguments: Any) -> Any:
        return ray.get(getattr(self._monitor, method).remote(*arguments))

    def __call__(self, _row: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Make one shard, whichever the monitor names, and say what became of it: a row of one `outcome`."""
        while (outcome := self._one()) is Outcome.DIED:
            pass  # with the shard's reader; it is begun anew
        while self._left_out and not self._ask("is_finished"):
            # A row given back at once would soon be followed by all others.
            time.sleep(WAITING_SECONDS)
        return {"outcome": [outcome.value]}

    def _one(self) -> Outcome:
        """Ask for a shard and see it through."""
        with self._models:
            if self._left_out:
                return Outcome.NOTHING
            attempt = uuid.uuid4().hex
            orders: Orders = self._ask(
                "begin", attempt, self._itself, ray.get_runtime_context().current_actor
            )
            if orders.shard is None:
                return Outcome.NOTHING
            made = self._guarded(attempt, orders.shard, partial(self._make, attempt, orders.shard, orders))
        return made if isinstance(made, Outcome) else self._guarded(attempt, orders.shard, made)

    def _guarded(self, attempt: str, shard: PlannedShard, work: Callable[[], Any]) -> Any:
        """What work returns, or how it failed."""
        try:
            return work()
        except CannotLoadError as error:
            self._left_out = True
            self._ask("leave_out", worker_name(self._itself), attempt, str(error))
            return Outcome.LEFT_OUT
        except ShardLostError:
            return self._end(attempt, Outcome.DIED)
        except (StorageError, CorruptShardError, UsageError) as error:
            # The store's failure is every builder's: the run stops with its words instead of a worker's traceback.
            self._ask("stop", f"{shard.name}: {error}")
            return self._end(attempt, Outcome.REFUSED)

    def _make(self, attempt: str, shard: PlannedShard, orders: Orders) -> Outcome | Callable[[], Outcome]:
        """Make a shard up to its commit; gives what is left to do, or how it ended."""
        dataset = self._here.dataset
        if dataset.is_committed(shard.name):
            commit = dataset.commit(shard.name)
            outcome = Outcome.THERE if commit.made_by.run == self._spec.run else Outcome.TAKEN
            return self._found(attempt, outcome, commit)
        begun = datetime.now(UTC).isoformat(timespec="seconds")
        circumstances = Circumstances(
            attempt,
            device=self._device,
            begun=begun,
            gpus=self._gpus,
            made_by=self._itself,
            earlier=orders.earlier,
        )
        adopted = adopt(dataset, shard.name, shard.slice_hash, circumstances)
        if adopted is not None:
            return self._found(attempt, Outcome.ADOPTED, adopted)
        start = time.monotonic()
        _log("begun", attempt, shard=shard.name)
        # A reader that has what a dead builder left of a shard gets that shard again, and throws it away.
        readers = self._readers
        where = Remote(readers[shard.index % len(readers)]) if readers else self._here
        work = _Attempt(attempt, shard, orders, where, circumstances)
        self._open(work)
        try:
            whole = self._write(work)
        except BaseException:
            work.drop()
            raise
        if not whole:
            work.drop()
            return self._end(attempt, Outcome.STOPPED)
        wall = time.monotonic() - start
        work.circumstances = replace(
            circumstances,
            wall_seconds=wall,
            device_seconds=wall * self._spec.devices,
            busy_seconds=work.busy_seconds,
        )
        return partial(self._publish, work)

    def _open(self, work: _Attempt) -> None:
        """Open the shard; a reader that died is waited for, since every attempt before it is back would be lost too."""
        deadline = time.monotonic() + READER_SECONDS
        while True:
            try:
                work.where.begin(work.id, work.shard)
                return
            except ShardLostError:
                if time.monotonic() > deadline or not self._report(work):
                    raise
            time.sleep(WAITING_SECONDS)

    def _found(self, attempt: str, outcome: Outcome, commit: Commit) -> Outcome:
        """A shard that needed no making counts as far as it is."""
        self._ask("report", attempt, commit.samples, commit.failed, ())
        return self._end(attempt, outcome, commit)

    def _publish(self, work: _Attempt) -> Outcome:
        try:
            self._settle(work)
        except BaseException:
            work.drop()
            raise
        if not self._ask("may_publish", work.id):
            work.drop()
            return Outcome.STOPPED
        commit = work.where.commit(work.id, work.circumstances)
        if commit.attempt != work.id:  # another build was first: this attempt was for nothing
            return self._end(work.id, Outcome.DUPLICATE, commit)
        _log("committed", commit.attempt, shard=commit.name)
        return self._end(work.id, Outcome.ADOPTED if commit.adopted else Outcome.COMMITTED, commit)

    def _end(self, attempt: str, outcome: Outcome, commit: Commit | None = None) -> Outcome:
        self._ask("end", attempt, outcome, commit)
        return outcome

    def _write(self, work: _Attempt) -> bool:
        """Make the samples; False when the run stops before the shard's end.

        They are checked, counted and written by a thread, while the device is at the next batch or the next shard.
        """
        apart, given_up = self._suspects(work)
        most = 1 if apart else BATCHES_BEHIND  # one at a time, where it matters which one kills
        self._maker.prepare_thread()
        for step in self._maker.steps(work.shard.samples, apart, given_up):
            while work.behind and (len(work.behind) >= most or work.behind[0][0].done()):
                work.settle()
            if not self._report(work, step.samples):
                return False
            results = self._run(work, step)
            if results:
                work.behind.append((work.pen.submit(work.where.write, work.id, results), step.samples))
                crash_point("mid-shard")
        if apart:
            self._settle(work)
        return True

    def _settle(self, work: _Attempt) -> None:
        """Wait until all samples are written."""
        while work.behind:
            self._report(work)
            work.settle()
        self._report(work)
        work.pen.shutdown()

    def _run(self, work: _Attempt, step: Step) -> Sequence[Any]:
        for sample in step.samples:
            crash_point(f"sample-{sample.id}")
        with ending_with_the_device():
            results, busy = self._maker.timed(step.run)
        work.busy_seconds += busy
        failures = [result for result in results if isinstance(result, Failure)]
        work.made += len(results) - len(failures)
        work.failed += len(failures)
        for failure in failures:
            _log("failed", work.id, shard=work.shard.name, **asdict(failure))
        if failures:
            self._monitor.failed_by.remote(_reasons(results, step.samples))
        return results

    def _suspects(self, work: _Attempt) -> tuple[set[str], dict[str, Failure]]:
        """Ids of samples to make alone, as they may kill workers, and why others are not made at all."""
        superseded = RuntimeError("failed before; tried again in a later shard")
        given_up = {
            sample.id: Failure.from_exception("plan", superseded)
            for sample in work.shard.samples
            if sample.key in self._spec.superseded
        }
        deaths = work.orders.deaths
        for identity in [identity for identity in deaths if deaths[identity] >= DEATHS_FATAL]:
            error = RuntimeError(f"{deaths[identity]} workers died while making it")
            given_up[identity] = Failure.from_exception("worker", error)
        return {identity for identity in deaths if deaths[identity] >= DEATHS_ALONE}, given_up

    def _report(self, work: _Attempt, beginning: Sequence[PlannedSample] = ()) -> bool:
        """Tell the monitor how far the attempt is; returns whether to continue."""
        batches = [*(samples for _, samples in work.behind), beginning]
        at_work = tuple(sample.id for samples in batches for sample in samples)
        return bool(self._ask("report", work.id, work.made, work.failed, at_work))


def _reasons(results: Sequence[Any], samples: Sequence[PlannedSample]) -> list[tuple[str, str, str]]:
    """Why samples failed: class, message and caption, which is known where a step finishes what it began."""
    captions = [sample.caption for sample in samples] if len(samples) == len(results) else [""] * len(results)
    return [
        (result.error_class, result.message, caption)
        for result, caption in zip(results, captions, strict=True)
        if isinstance(result, Failure)
    ]


def _log(event: str, attempt: str, **facts: Any) -> None:
    """A line in this worker's own log, where an attempt's id is looked for."""
    print(json.dumps({"time": utc_now(), "event": event, "attempt": attempt, **facts}), flush=True)
