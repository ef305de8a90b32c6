"""The run's one memory while it runs: who makes which shard, how far all are, whether to continue.

A Ray actor of its own, because builders are in other processes and on other machines. It holds nothing that a
restart needs: what is made is known from the commits alone.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.building.failure_budget import FailureBudget
from ray_jobs.building.messages import FailedSample, Outcome, Task, worker_name
from ray_jobs.cli.log import utc_now
from ray_jobs.planning.shard_schedule import choose
from ray_jobs.progress.snapshot import Event, Snapshot
from shards.dataset.progress_figures import duration
from shards.format.commit import Commit, Maker, Try
from shards.format.plan import PlannedShard

MAX_ATTEMPTS = 5  # at one shard within a run; a shard that kills its worker each time must not go on for ever
UNASKED_SECONDS = 300.0  # that a shard waits with no active builder: longer than any builder's start
TOLD_OF_A_COMMIT = ("samples", "failed", "causes", "bytes", "device", "device_seconds", "busy_seconds")


@dataclass
class _Shard:
    planned: PlannedShard
    attempts: int = 0
    deaths: Counter[str] = field(default_factory=Counter)
    earlier: list[Try] = field(default_factory=list)


@dataclass
class _Attempt:
    """One builder's attempt at a shard, while it is under way."""

    id: str
    shard: _Shard
    made_by: Maker
    worker: str
    handle: Any
    begun: float
    seen: float  # when it last reported
    counted: float  # when it last finished samples
    made: int = 0
    failed: int = 0
    at_work: tuple[str, ...] = ()
    named_stuck: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What every line about it says."""
        return {"shard": self.shard.planned.name, "attempt": self.id, "worker": self.worker}


class Monitor:
    """Plain Python; `ray_jobs.building.run` turns it into an actor.

    Args:
        shards: to make, those of one size in the order in which they are given out.
        budget: of failures, which stop the run when they are too many.
        builders: that the run begins with; when so many cannot load the models, it is stopped.
    """

    def __init__(self, shards: Sequence[PlannedShard], budget: FailureBudget, builders: int = 1) -> None:
        self._budget, self._builders = budget, builders
        self._waiting: defaultdict[int, deque[_Shard]] = defaultdict(deque)  # by size
        for shard in shards:
            self._waiting[len(shard.samples)].append(_Shard(shard))
        self._under_way: dict[str, _Attempt] = {}
        self._process_of: dict[str, Maker] = {}  # by actor, which outlives its processes
        self._dead: set[Maker] = set()
        self._left_out: set[str] = set()
        self._paces: dict[str, tuple[int, float]] = {}  # by worker: samples, and the seconds that they took
        self._unasked = time.monotonic()
        self._stopping = ""
        self._too_many_failed = False
        self._events: list[Event] = []
        self._lost_seconds: defaultdict[str, float] = defaultdict(float)

    def begin(self, attempt: str, made_by: Maker, handle: Any = None) -> Task | None:
        """A builder asks for work.

        Args:
            attempt: id of what begins.
            made_by: the builder's process; another process of the same actor has died then, and stays dead even if
                its node was only out of reach.
            handle: of the actor.

        Returns:
            None where nothing is left, or the run is stopping.
        """
        if made_by in self._dead:
            return None
        last, self._process_of[made_by.actor] = self._process_of.get(made_by.actor, made_by), made_by
        if last != made_by:
            self._dead.add(last)
            for lost in [each.id for each in self._under_way.values() if each.made_by == last]:
                self.end(lost, Outcome.DIED)
        worker = worker_name(made_by)
        shard = None if self._stopping else self._next(worker)
        if shard is None:
            return None
        shard.attempts += 1
        now = time.monotonic()
        begun = _Attempt(attempt, shard, made_by, worker, handle, begun=now, seen=now, counted=now)
        self._under_way[attempt] = begun
        self._tell("begun", **begun.facts, node=made_by.node, log=made_by.log)
        return Task(shard.planned.spelled_out(), dict(shard.deaths), tuple(shard.earlier))

    def _next(self, asking: str) -> _Shard | None:
        """The shard that a builder should make now."""
        while self._waiting:
            size = choose(self._waiting, self._seconds_per_sample(asking), self._seconds_left(asking))
            shard = self._waiting[size].popleft()
            if not self._waiting[size]:
                del self._waiting[size]
            if shard.attempts < MAX_ATTEMPTS:
                return shard
            name = shard.planned.name
            text = f"{name}: given up, its worker died each of {MAX_ATTEMPTS} times"
            self._tell("abandoned", text, shard=name)
        return None

    def _seconds_per_sample(self, builder: str) -> float | None:
        samples, seconds = self._paces.get(builder, (0, 0.0))
        return seconds / samples if samples else None

    def _seconds_left(self, asking: str) -> float:
        """Until all builders together would have made what is not made; those not heard of are like the others."""
        active = {attempt.worker for attempt in self._under_way.values()} | {asking}
        known = [seconds for builder in active if (seconds := self._seconds_per_sample(builder))]
        if not known:
            return 0.0
        left = sum(size * len(shards) for size, shards in self._waiting.items())
        left += sum(len(e.shard.planned.samples) - e.made - e.failed for e in self._under_way.values())
        return left * len(known) / sum(1 / seconds for seconds in known) / len(active)

    def report(
        self,
        attempt: str,
        made: int,
        failed: int,
        at_work: Sequence[str],
        failures: Sequence[FailedSample] = (),
    ) -> bool:
        """Progress within a shard.

        Args:
            attempt: whose.
            made, failed: samples finished and given up so far.
            at_work: ids of the samples about to be made.
            failures: since the last report, for the run's last line.

        Returns:
            whether to continue; one that was declared dead, as its node was out of reach, does not.
        """
        found = self._under_way.get(attempt)
        if found is None:
            return False
        now, finished = time.monotonic(), made + failed - found.made - found.failed
        if finished > 0:
            samples, seconds = self._paces.get(found.worker, (0, 0.0))
            self._paces[found.worker] = samples + finished, seconds + max(now - found.counted, 1e-6)
            found.counted = now
        self._budget.add_reasons(failures)
        self._count(found, made, failed)
        found.at_work, found.seen = tuple(at_work), now
        return not self._stopping

    def _count(self, attempt: _Attempt, made: int, failed: int) -> None:
        reason = self._budget.count(made - attempt.made, failed - attempt.failed)
        attempt.made, attempt.failed = made, failed
        if reason and not self._stopping:
            self._too_many_failed = True
            self.stop(reason)

    def may_publish(self, attempt: str) -> bool:
        """Whether an attempt may commit its shard: one that was declared dead may not."""
        return attempt in self._under_way

    def end(self, attempt: str, outcome: Outcome, commit: Commit | None = None, reason: str = "") -> None:
        """A shard was put down; what a dead worker had finished is forgotten, what it was at is remembered.

        Args:
            attempt: whose it was; nothing changes where that was declared dead before.
            outcome: what became of it.
            commit: that stands for the shard, this attempt's or another's.
            reason: why the models cannot be loaded, or the store refuses; in words.
        """
        ended = self._under_way.pop(attempt, None)
        if ended is None:
            return
        shard, dead = ended.shard, outcome is Outcome.DIED
        seconds = round((ended.seen if dead else time.monotonic()) - ended.begun, 3)
        if not outcome.committed:
            self._count(ended, 0, 0)
            self._waiting[len(shard.planned.samples)].appendleft(shard)
        elif commit:
            self._count(ended, commit.samples, commit.failed)
        if dead:
            shard.deaths.update(set(ended.at_work))
        if outcome.wasted:
            self._lost_seconds[outcome.value] += seconds
            shard.earlier.append(Try(attempt, outcome.value, seconds, ended.made_by))
        # An attempt whose worker died was not for nothing where its commit was put before.
        for tried in [tried for tried in shard.earlier if commit and tried.attempt == commit.attempt]:
            self._lost_seconds[tried.end] -= tried.seconds
            shard.earlier.remove(tried)
        figures = {name: getattr(commit, name) for name in TOLD_OF_A_COMMIT} if commit else {}
        about = {"at_work": ended.at_work} if dead else {"seconds": seconds}
        self._tell(outcome.value, commit=commit, **ended.facts, **about, **figures)
        if outcome is Outcome.LEFT_OUT:
            self._leave_out(ended, reason)
        elif reason:
            self.stop(reason)

    def _leave_out(self, ended: _Attempt, reason: str) -> None:
        """A builder cannot load the models: its shard is another's, no attempt was made, and no sample is blamed."""
        ended.shard.attempts -= 1
        self._left_out.add(ended.worker)
        if len(self._left_out) >= self._builders:
            self.stop(reason)
        else:
            self.note(f"{reason}; it is left out, the other builders continue")

    def is_finished(self) -> bool:
        """Whether a builder that was left out need not stay: nothing is left, or nobody has asked for it for long."""
        now = time.monotonic()
        if self._under_way or not self._waiting:
            self._unasked = now
        nothing_left = not (self._under_way or self._waiting)
        return bool(self._stopping) or nothing_left or now - self._unasked > UNASKED_SECONDS

    def note(self, text: str) -> None:
        """Something people should know."""
        self._tell("note", text)

    def _tell(self, kind: str, text: str = "", commit: Commit | None = None, **facts: Any) -> None:
        self._events.append(Event(kind, {**facts, "time": utc_now()}, text, commit))

    def take_events(self) -> list[Event]:
        """What happened since this was asked last."""
        events, self._events = self._events, []
        return events

    def stop(self, reason: str) -> None:
        """Ask every builder to stop at its next sample boundary; the first reason stays."""
        self._stopping = self._stopping or reason

    def stuck(self, seconds: float) -> list[Any]:
        """The actors of builders that have reported nothing for so long, to be restarted; each is named once."""
        now, found = time.monotonic(), []
        for attempt in self._under_way.values():
            if now - attempt.seen > seconds and not attempt.named_stuck:
                attempt.named_stuck = True
                found.append(attempt.handle)
                text = (
                    f"{attempt.shard.planned.name}: {attempt.worker} has finished nothing for "
                    f"{duration(now - attempt.seen)} "
                    f"(at work on {', '.join(attempt.at_work) or 'nothing that it reported'}); restarting it"
                )
                self._tell("stuck", text, **attempt.facts)
        return found

    def snapshot(self) -> Snapshot:
        """The run so far."""
        now = time.monotonic()
        return Snapshot(
            made=self._budget.made,
            failed=self._budget.failed,
            stopping=self._stopping,
            builders=len({attempt.worker for attempt in self._under_way.values()}),
            lost=dict(self._lost_seconds),
            under_way=sum(now - attempt.begun for attempt in self._under_way.values()),
            commonest=self._budget.commonest(),
            lasting=self._too_many_failed and self._budget.mostly_lasting(),
        )
