"""The run's one memory while it runs: who works on what, how far it is, whether to go on.

A Ray actor of its own, because builders live in other processes and on other machines. It holds nothing that a
restart needs: what is made is known from the commits alone.
"""

import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.building.messages import Event, Orders, Snapshot, Stuck, commit_figures
from ray_jobs.building.shard_schedule import choose, to_copy
from ray_jobs.cli.log import utc_now
from shards.format.commit import NOBODY, Commit, Maker, Try
from shards.format.plan import PlannedShard

FAILURE_GRACE = (
    20  # samples seen before the failed share counts: one bad sample among the first must not stop a run
)
# A message that begins with what its sample is called: 'a.jpg': image does not decode
NAMED = re.compile(r"""(['"])(.+?)\1: (.*)""", re.DOTALL)
NUMBERS = re.compile(r"\d+")
OF_THE_PICTURE = ("ImageError", "MissingPictureError")  # of the source: no other run makes it another
MOST_NAMES = 3  # of samples, for the commonest reason
LONGEST_NAME = 60  # characters
MAX_ATTEMPTS = (
    5  # tries at one shard within a run; a shard that kills its worker each time must not go on for ever
)
UNASKED_SECONDS = 300.0  # that a shard waits with nobody at work, which takes longer than any builder's start
DEATHS_ALONE = 2  # a sample that was at work in so many deaths is made alone, so that the next one names it
DEATHS_FATAL = 3  # and after so many it is given up


@dataclass
class _Hold:
    """One builder's try at a shard."""

    worker: str
    handle: Any
    attempt: str
    made_by: Maker
    begun: float
    seen: float  # when it last reported
    counted: float  # when it last finished samples
    made: int = 0
    failed: int = 0
    at_work: tuple[str, ...] = ()
    named_stuck: bool = False


@dataclass
class _Shard:
    planned: PlannedShard
    attempts: int = 0
    deaths: Counter[str] = field(default_factory=Counter)
    holds: dict[int, _Hold] = field(default_factory=dict)  # by ticket; two where it is made a second time
    publisher: int | None = None  # the ticket that may commit it
    done: bool = False
    earlier: list[Try] = field(default_factory=list)
    counted: tuple[int, int] = (0, 0)  # made and failed, of the try that is furthest or was committed


@dataclass
class _Cause:
    """Failures that say the same of different samples."""

    reason: str
    error_class: str
    count: int = 0
    names: list[str] = field(default_factory=list)


@dataclass
class _Pace:
    samples: int = 0
    seconds: float = 0.0


class Monitor:
    """Plain Python; `ray_jobs.jobs.build` turns it into an actor.

    Args:
        shards: to make, those of one size in the order in which they are given out.
        max_failed_fraction: the run is stopped when more than this share of its samples failed.
        max_consecutive_failures: and when so many fail one after the other.
        job: whose options these are.
        builders: that the run begins with; when so many cannot load the models, it is stopped.
    """

    def __init__(
        self,
        shards: Sequence[PlannedShard],
        max_failed_fraction: float,
        max_consecutive_failures: int,
        job: str = "build",
        builders: int = 1,
    ) -> None:
        self._job = job
        self._builders = builders
        self._left_out: set[str] = set()
        self._unasked = time.monotonic()
        self._max_failed_fraction = max_failed_fraction
        self._max_consecutive_failures = max_consecutive_failures
        self._shards = {shard.name: _Shard(shard) for shard in shards}
        self._waiting: dict[int, deque[_Shard]] = {}
        for shard in self._shards.values():
            self._waiting.setdefault(len(shard.planned.samples), deque()).append(shard)
        self._left = sum(len(shard.samples) for shard in shards)
        self._made = self._failed = 0
        self._held: dict[int, _Shard] = {}
        self._paces: dict[str, _Pace] = {}
        self._consecutive = 0
        self._stopping = ""
        self._abandoned: list[str] = []
        self._events: list[Event] = []
        self._causes: dict[str, _Cause] = {}
        self._too_many = False
        self._lost_seconds: defaultdict[str, float] = defaultdict(float)

    def begin(
        self, worker: str, ticket: int, handle: Any = None, attempt: str = "", made_by: Maker = NOBODY
    ) -> Orders:
        """A builder asks for work.

        Args:
            worker: who asks.
            ticket: that it holds; a ticket that comes a second time tells that its first worker died.
            handle: of the builder's actor.
            attempt: id of the try that begins.
            made_by: the builder's process.
        """
        if ticket in self._held:
            self._lost(ticket)
        if self._stopping:
            return Orders(None)
        shard = self._next(worker)
        if shard is None:
            return Orders(None)
        shard.attempts += 1
        moment = time.monotonic()
        shard.holds[ticket] = _Hold(worker, handle, attempt, made_by, moment, moment, moment)
        self._held[ticket] = shard
        self._happened("begun", shard, shard.holds[ticket], node=made_by.node, log=made_by.log)
        return Orders(shard.planned.spelled_out(), dict(shard.deaths), tuple(shard.earlier))

    def _lost(self, ticket: int) -> None:
        """What the dead worker had finished is forgotten; what it was at is remembered."""
        shard = self._held.pop(ticket)
        hold = shard.holds.pop(ticket)
        shard.deaths.update(hold.at_work)
        self._came_to_nothing(shard, hold, "died", hold.seen)
        self._happened("died", shard, hold, at_work=hold.at_work)
        if shard.publisher == ticket:
            shard.publisher = None
        self._recount(shard)
        self._make_available(shard)

    def _make_available(self, shard: _Shard) -> None:
        """Put a shard that nobody makes any more before the others of its size."""
        if not shard.holds and not shard.done:
            self._waiting.setdefault(len(shard.planned.samples), deque()).appendleft(shard)

    def leave_out(self, worker: str, ticket: int, attempt: str, reason: str) -> None:
        """A builder cannot load the models: its shard is another's, no attempt was made, and no sample is blamed.

        Args:
            worker: the builder.
            ticket, attempt: under which it had a shard.
            reason: in words, with its device.
        """
        self._left_out.add(worker)
        if not self._is_over(ticket, attempt):
            shard = self._held.pop(ticket)
            del shard.holds[ticket]
            shard.attempts -= 1
            self._recount(shard)
            self._make_available(shard)
        if len(self._left_out) >= self._builders:
            self.stop(reason)
        else:
            self.note(f"{reason}; it is left out, the other builders go on")

    def is_finished(self) -> bool:
        """Whether a builder that was left out need not stay: nothing is left, or nobody has asked for it for long."""
        now = time.monotonic()
        if self._held or not self._waiting:
            self._unasked = now
        return (
            bool(self._stopping) or not (self._held or self._waiting) or now - self._unasked > UNASKED_SECONDS
        )

    def _came_to_nothing(self, shard: _Shard, hold: _Hold, end: str, until: float) -> None:
        seconds = round(until - hold.begun, 3)
        self._lost_seconds[end] += seconds
        shard.earlier.append(Try(hold.attempt, end, seconds, hold.made_by))

    def _redeem(self, shard: _Shard, commit: Commit) -> None:
        """A try whose worker died came to something after all where its commit was put before."""
        for tried in [tried for tried in shard.earlier if tried.attempt == commit.attempt]:
            self._lost_seconds[tried.end] -= tried.seconds
            shard.earlier.remove(tried)

    def _happened(
        self, kind: str, shard: _Shard, hold: _Hold, commit: Commit | None = None, **facts: Any
    ) -> None:
        about = {"shard": shard.planned.name, "attempt": hold.attempt, "worker": hold.worker}
        self._events.append(Event(utc_now(), kind, about | facts, commit=commit))

    def _recount(self, shard: _Shard) -> None:
        """Count a shard as far as the try is that is furthest."""
        made, failed = shard.counted
        if not shard.done:
            shard.counted = max(
                ((hold.made, hold.failed) for hold in shard.holds.values()), default=(0, 0), key=sum
            )
        self._made += shard.counted[0] - made
        self._failed += shard.counted[1] - failed
        self._left -= sum(shard.counted) - made - failed

    def _next(self, worker: str) -> _Shard | None:
        """The shard that a builder should make now."""
        pace = self._paces.get(worker)
        own = pace.seconds / pace.samples if pace else None
        while self._waiting:
            size = choose(self._waiting, own, self._seconds_left(worker))
            shard = self._waiting[size].popleft()
            if not self._waiting[size]:
                del self._waiting[size]
            if shard.attempts < MAX_ATTEMPTS:
                return shard
            self._abandoned.append(shard.planned.name)
        return self._second_try(own)

    def _second_try(self, own: float | None) -> _Shard | None:
        """A shard under way with a builder so slow that this one would be done sooner."""
        alone = [shard for shard in self._held.values() if self._may_be_copied(shard)]
        if own is None or not alone:
            return None
        remaining = {number: self._remaining(shard) for number, shard in enumerate(alone)}
        sizes = [len(shard.planned.samples) for shard in alone]
        found = to_copy(remaining, sizes, own)
        return None if found is None else alone[found]

    def _may_be_copied(self, shard: _Shard) -> bool:
        return len(shard.holds) == 1 and not shard.done and shard.publisher is None and shard.attempts == 1

    def _remaining(self, shard: _Shard) -> tuple[int, float]:
        """Samples that the only builder of a shard has still to make, and its seconds per sample."""
        (hold,) = shard.holds.values()
        size = len(shard.planned.samples)
        pace = self._paces.get(hold.worker)
        usual = pace.seconds / pace.samples if pace else 0.0
        # A builder may finish a shard's samples all at its end, so silence tells something only after that long.
        return size - sum(shard.counted), max(usual, (time.monotonic() - hold.counted) / size)

    def _seconds_left(self, asking: str) -> float:
        """Until all builders together would have made what is not made yet; those not heard of are like the others."""
        at_work = {hold.worker for shard in self._held.values() for hold in shard.holds.values()} | {asking}
        paces = [pace for worker, pace in self._paces.items() if worker in at_work]
        if not paces:
            return 0.0
        mean = sum(pace.samples / pace.seconds for pace in paces) / len(paces)
        return self._left / (mean * len(at_work))

    def _is_over(self, ticket: int, attempt: str) -> bool:
        """Whether a try was taken for dead: its ticket is another's by now, or was put down by another."""
        return ticket not in self._held or self._held[ticket].holds[ticket].attempt != attempt

    def report(
        self, ticket: int, attempt: str = "", *, made: int, failed: int, at_work: tuple[str, ...]
    ) -> bool:
        """Progress within a shard.

        Args:
            ticket: under which it is made.
            attempt: id of the try; one that was taken for dead, as its node was out of reach, is told to stop.
            made: samples of this try finished so far.
            failed: samples of this try given up so far.
            at_work: ids of the samples about to be made.

        Returns:
            whether to go on.
        """
        if self._is_over(ticket, attempt):
            return False
        shard = self._held[ticket]
        hold, now = shard.holds[ticket], time.monotonic()
        finished = made + failed - hold.made - hold.failed
        if finished > 0 and hold.at_work:  # samples of a shard that was adopted were made by nobody here
            pace = self._paces.setdefault(hold.worker, _Pace())
            pace.samples += finished
            pace.seconds += max(now - hold.counted, 1e-6)
            hold.counted = now
        self._consecutive = 0 if made > hold.made else self._consecutive + max(0, failed - hold.failed)
        hold.made, hold.failed, hold.at_work, hold.seen = made, failed, at_work, now
        self._recount(shard)
        self._judge()
        return not self._stopping and not shard.done

    def may_publish(self, ticket: int, attempt: str = "") -> bool:
        """Whether a builder may commit its shard: the first one that asks may, until it dies."""
        if self._is_over(ticket, attempt):
            return False
        shard = self._held[ticket]
        if shard.publisher is None and not shard.done:
            shard.publisher = ticket
        return shard.publisher == ticket

    def end(
        self,
        ticket: int,
        attempt: str = "",
        *,
        done: bool,
        outcome: str = "",
        lost: bool = False,
        commit: Commit | None = None,
    ) -> None:
        """A builder has put its shard down.

        Args:
            ticket: under which it was made.
            attempt: id of the try; of one that was taken for dead its successor will tell, if only what it found.
            done: whether it is committed by now.
            outcome: what became of it.
            lost: whether what it did was for nothing.
            commit: that stands for it, this try's or another's.
        """
        if self._is_over(ticket, attempt):
            return
        shard = self._held.pop(ticket)
        self._recount(shard)
        if done and not shard.done:
            self._left -= len(shard.planned.samples) - sum(shard.counted)  # another build may have made it
            shard.done = True
        hold = shard.holds.pop(ticket)
        if lost:
            self._came_to_nothing(shard, hold, outcome, time.monotonic())
        if commit is not None:
            self._redeem(shard, commit)
        seconds = round(time.monotonic() - hold.begun, 3)
        self._happened(outcome, shard, hold, commit, seconds=seconds, **commit_figures(commit))
        self._recount(shard)
        if shard.publisher == ticket:
            shard.publisher = None

    def _judge(self) -> None:
        """Stop a run that is going wrong."""
        tried = self._made + self._failed
        reason = ""
        if self._consecutive > self._max_consecutive_failures:
            reason = (
                f"{self._consecutive} samples failed one after the other, more than "
                f"{self._job}.max_consecutive_failures {self._max_consecutive_failures} allows"
            )
        elif tried >= FAILURE_GRACE and self._failed > self._max_failed_fraction * tried:
            reason = (
                f"{self._failed} of {tried} samples failed, more than {self._job}.max_failed_fraction "
                f"{self._max_failed_fraction:g} allows"
            )
        if reason and not self._stopping:
            self._too_many = True
            self.stop(reason)

    def failed_by(self, failures: Sequence[tuple[str, str, str]]) -> None:
        """Why samples failed, for the run's last line.

        Args:
            failures: of each one the error's class, its message, and the sample's caption.
        """
        for error_class, message, caption in failures:
            named = NAMED.match(message)
            name, reason = (named[2], named[3]) if named else (caption, message)
            cause = self._causes.setdefault(NUMBERS.sub("#", reason), _Cause(reason, error_class))
            cause.count += 1
            shown = " ".join(name.split())[:LONGEST_NAME]
            if len(cause.names) < MOST_NAMES and shown not in cause.names:
                cause.names.append(shown)

    def note(self, text: str) -> None:
        """Something people should know."""
        self._events.append(Event(utc_now(), "note", {}, text))

    def take_events(self) -> list[Event]:
        """What happened since this was asked last."""
        events, self._events = self._events, []
        return events

    def stop(self, reason: str) -> None:
        """Ask every builder to stop at its next sample boundary; the first reason stays."""
        self._stopping = self._stopping or reason

    def stuck(self, seconds: float) -> list[Stuck]:
        """Builders that have reported nothing for so long; each is named once."""
        now, found = time.monotonic(), []
        for shard, hold in self._holds():
            if now - hold.seen > seconds and not hold.named_stuck:
                hold.named_stuck = True
                found.append(
                    Stuck(hold.worker, shard.planned.name, now - hold.seen, hold.at_work, hold.handle)
                )
        return found

    def _holds(self) -> Iterator[tuple[_Shard, _Hold]]:
        for shard in {shard.planned.name: shard for shard in self._held.values()}.values():
            for hold in shard.holds.values():
                yield shard, hold

    def snapshot(self) -> Snapshot:
        """The run so far."""
        return Snapshot(
            made=self._made,
            failed=self._failed,
            stopping=self._stopping,
            abandoned=tuple(self._abandoned),
            builders=len({hold.worker for _, hold in self._holds()}),
            lost=dict(self._lost_seconds),
            under_way=sum(time.monotonic() - hold.begun for _, hold in self._holds()),
            commonest=self._commonest(),
            lasting=self._lasting(),
        )

    def _commonest(self) -> str:
        """Why most samples failed, with the first names; empty where none did."""
        if not self._causes:
            return ""
        cause = max(self._causes.values(), key=lambda cause: cause.count)
        return f"{cause.reason} ({', '.join(cause.names)}{', …' if cause.count > len(cause.names) else ''})"

    def _lasting(self) -> bool:
        """Whether the run stops for failures most of which are of pictures that will be the same next time."""
        known = sum(cause.count for cause in self._causes.values())
        lasting = sum(cause.count for cause in self._causes.values() if cause.error_class in OF_THE_PICTURE)
        return self._too_many and lasting > known / 2
