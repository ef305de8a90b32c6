"""What one builder does: take a planned shard, make its samples, commit it. Runs inside a Ray Data actor."""

import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import numpy as np
import ray

from projector.making.steps import STRETCH, ShardMaker, Step
from ray_jobs.building.messages import BuildSpec, FailedSample, Outcome, Task, Written, worker_name
from ray_jobs.building.shard_output import Finisher, Remote, ShardLostError
from ray_jobs.cli.log import log_line
from ray_jobs.cluster.device_trouble import CannotLoadError, ending_with_the_device, loading
from ray_jobs.cluster.this_actor import device_name, whereabouts
from shards.dataset.crash_points import crash_point
from shards.dataset.publish import Circumstances, adopt
from shards.errors import CorruptShardError, StorageError, UsageError
from shards.format.commit import Commit
from shards.format.plan import PlannedSample
from shards.format.sample import Failure

DEATHS_ALONE = 2  # a sample that was at work in so many deaths is made alone, so that the next one names it
DEATHS_FATAL = 3  # and after so many it is given up
READER_SECONDS = 300.0  # to wait for a reader that died: a process with torch may start slowly
WAITING_SECONDS = 1.0  # between two looks at whether the run is over, or whether a reader is back
# Batches that wait to be written. Reading comes in bursts of a stretch and is faster than writing, so as many as that;
# one of four 1024² samples in two layers and text modes takes 0.1 GB.
BATCHES_BEHIND = STRETCH


@dataclass
class _Attempt:
    """At one shard: how far it is, by what was written."""

    id: str
    task: Task
    where: Finisher | Remote
    made: int = 0
    failed: int = 0
    busy_seconds: float = 0.0
    opened: bool = False  # whether there is something to throw away
    unreported: list[FailedSample] = field(default_factory=list)  # since the last report
    behind: deque[tuple[Future[Written], Sequence[PlannedSample]]] = field(default_factory=deque)
    pen: ThreadPoolExecutor = field(
        default_factory=partial(ThreadPoolExecutor, 1, thread_name_prefix="writer")
    )

    def settle(self) -> None:
        """Wait for the oldest batch that is being written, and count it."""
        with ending_with_the_device():  # whose copies a batch may still wait for
            written = self.behind.popleft()[0].result()
        self.made += written.made
        self.failed += len(written.failed)
        self.busy_seconds += written.busy_seconds
        self.unreported += written.failed
        for _, failure in written.failed:
            log_line("failed", attempt=self.id, shard=self.task.shard.name, **asdict(failure))

    def close(self) -> None:
        """Throw away what is not committed."""
        self.pen.shutdown(cancel_futures=True)
        if self.opened:
            self.where.drop(self.id)


class ShardBuilder:
    """One process with models in memory; each call makes one shard.

    Two calls run at once: the models are with one of them, while the rest of the other one's shard is being written
    and published.

    Args:
        spec: what to build, and with what.
        monitor: handle of the run's `Monitor` actor.
        readers: handles of the run's `Reader` actors, where pictures are read elsewhere.
    """

    def __init__(self, spec: BuildSpec, monitor: Any, readers: Sequence[Any] = ()) -> None:
        self._spec, self._monitor, self._readers = spec, monitor, readers
        self._device = device_name()
        self._itself = whereabouts(spec.run)
        self._gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
        self._models = threading.Lock()
        self._left_out = False
        self._here = Finisher(spec)

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
        """Ask for a shard and see it through to its end, whatever that is."""
        with ExitStack() as turn:
            turn.enter_context(self._models)
            if self._left_out:
                return Outcome.NOTHING
            attempt, actor = uuid.uuid4().hex, ray.get_runtime_context().current_actor
            task: Task | None = self._ask("begin", attempt, self._itself, actor)
            if task is None:
                return Outcome.NOTHING
            log_line("begun", attempt=attempt, shard=task.shard.name)
            # A reader that has what a dead builder left of a shard gets that shard again, and throws it away.
            readers = self._readers
            where = Remote(readers[task.shard.index % len(readers)]) if readers else self._here
            work, commit, reason = _Attempt(attempt, task, where), None, ""
            try:
                outcome, commit = self._make_and_commit(work, turn)
            except CannotLoadError as error:
                self._left_out = True
                outcome, reason = Outcome.LEFT_OUT, str(error)
            except ShardLostError:
                outcome = Outcome.DIED
            except (StorageError, CorruptShardError, UsageError) as error:
                # The store's failure is every builder's: the run stops with its words, not a worker's traceback.
                outcome, reason = Outcome.REFUSED, f"{task.shard.name}: {error}"
            finally:
                work.close()
            log_line(outcome.value, attempt=attempt, shard=task.shard.name)
            self._ask("end", attempt, outcome, commit, reason)
            return outcome

    def _make_and_commit(self, work: _Attempt, turn: ExitStack) -> tuple[Outcome, Commit | None]:
        """Make a shard and commit it, unless it is there.

        Args:
            work: the attempt.
            turn: with the models; closed as soon as this shard has no more use for them.

        Returns:
            how it ended, and the commit that the shard has now, this attempt's or another's.
        """
        dataset, shard = self._here.dataset, work.task.shard
        if dataset.is_committed(shard.name):
            commit = dataset.commit(shard.name)
            return (Outcome.THERE if commit.made_by.run == self._spec.run else Outcome.TAKEN), commit
        circumstances = Circumstances(
            work.id,
            device=self._device,
            begun=datetime.now(UTC).isoformat(timespec="seconds"),
            gpus=self._gpus,
            made_by=self._itself,
            earlier=work.task.earlier,
        )
        adopted = adopt(dataset, shard.name, shard.slice_hash, circumstances)
        if adopted is not None:
            return Outcome.ADOPTED, adopted
        start = time.monotonic()
        self._open(work)
        if not self._make(work):
            return Outcome.STOPPED, None
        wall = time.monotonic() - start
        turn.close()
        self._settle(work)
        if not self._ask("may_publish", work.id):
            return Outcome.STOPPED, None
        spent = replace(
            circumstances,
            wall_seconds=wall,
            device_seconds=wall * self._spec.devices,
            busy_seconds=work.busy_seconds,
        )
        commit = work.where.commit(work.id, spent)
        work.opened = False
        if commit.attempt != work.id:  # another build was first: this attempt was for nothing
            return Outcome.DUPLICATE, commit
        return (Outcome.ADOPTED if commit.adopted else Outcome.COMMITTED), commit

    def _open(self, work: _Attempt) -> None:
        """Open the shard; a reader that died is waited for, since every attempt before it is back would be lost too."""
        deadline = time.monotonic() + READER_SECONDS
        work.opened = True
        while True:
            try:
                work.where.begin(work.id, work.task.shard)
                return
            except ShardLostError:
                if time.monotonic() > deadline or not self._report(work):
                    raise
            time.sleep(WAITING_SECONDS)

    def _make(self, work: _Attempt) -> bool:
        """Make the samples; False when the run stops before the shard's end.

        They are checked, counted and written by a thread, while the device is at the next batch or the next shard.
        """
        apart, given_up = self._suspects(work)
        most = 1 if apart else BATCHES_BEHIND  # one at a time, where it matters which one kills
        self._maker.prepare_thread()
        for step in self._maker.steps(work.task.shard.samples, apart, given_up):
            while work.behind and (len(work.behind) >= most or work.behind[0][0].done()):
                # One by one: failures in a row are counted from batch to batch.
                work.settle()
                self._report(work, step.samples)
            if not self._report(work, step.samples):
                return False
            self._run(work, step)
        if apart:
            self._settle(work)
        return True

    def _run(self, work: _Attempt, step: Step) -> None:
        for sample in step.samples:
            crash_point(f"sample-{sample.id}")
        with ending_with_the_device():
            results, busy = self._maker.timed(step.run)
        work.busy_seconds += busy
        if results:
            work.behind.append((work.pen.submit(work.where.write, work.id, results), step.samples))
            crash_point("mid-shard")

    def _settle(self, work: _Attempt) -> None:
        """Wait until all samples are written."""
        while work.behind:
            self._report(work)
            work.settle()
        self._report(work)

    def _suspects(self, work: _Attempt) -> tuple[set[str], dict[str, Failure]]:
        """Ids of samples to make alone, as they may kill workers, and why others are not made at all."""
        superseded = RuntimeError("failed before; tried again in a later shard")
        given_up = {
            sample.id: Failure.from_exception("plan", superseded)
            for sample in work.task.shard.samples
            if sample.key in self._spec.superseded
        }
        deaths = work.task.deaths
        for identity in [identity for identity in deaths if deaths[identity] >= DEATHS_FATAL]:
            error = RuntimeError(f"{deaths[identity]} workers died while making it")
            given_up[identity] = Failure.from_exception("worker", error)
        return {identity for identity in deaths if deaths[identity] >= DEATHS_ALONE}, given_up

    def _report(self, work: _Attempt, beginning: Sequence[PlannedSample] = ()) -> bool:
        """Tell the monitor how far the attempt is; returns whether to continue."""
        batches = [*(samples for _, samples in work.behind), beginning]
        # Once each, though the device may be at what is already being written: a death would count twice.
        at_work = tuple(dict.fromkeys(sample.id for samples in batches for sample in samples))
        unreported, work.unreported = work.unreported, []
        return bool(self._ask("report", work.id, work.made, work.failed, at_work, unreported))
