"""The run's one memory while it runs: who works on what, how far it is, whether to go on.

A Ray actor of its own, because builders live in other processes and on other machines. It holds nothing that a
restart needs: what is made is known from the commits alone.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FAILURE_GRACE = (
    20  # samples seen before the failed share counts: one bad sample among the first must not stop a run
)
MAX_ATTEMPTS = (
    5  # tries at one shard within a run; a shard that kills its worker each time must not go on for ever
)
DEATHS_ALONE = 2  # a sample that was at work in so many deaths is made alone, so that the next one names it
DEATHS_FATAL = 3  # and after so many it is given up


@dataclass(frozen=True)
class Orders:
    """What a builder is told when it takes up a shard.

    Attributes:
        go: False when the run is stopping or the shard has been tried too often.
        attempt: 1 for the first try within this run.
        deaths: for samples that were at work when a worker died, how often.
    """

    go: bool
    attempt: int
    deaths: Mapping[str, int]


@dataclass(frozen=True)
class Stuck:
    """A builder that has reported nothing for too long.

    Attributes:
        worker: its host and pid.
        shard: what it works on.
        seconds: since its last report.
        at_work: ids of the samples it was making.
        handle: of its actor.
    """

    worker: str
    shard: str
    seconds: float
    at_work: tuple[str, ...]
    handle: Any


@dataclass(frozen=True)
class Snapshot:
    """The run so far.

    Attributes:
        made: samples finished in this run, in committed shards or in shards under way.
        failed: samples that could not be made.
        stopping: why the run is being stopped, or empty.
    """

    made: int
    failed: int
    stopping: str


@dataclass
class _Shard:
    attempts: int = 0
    made: int = 0
    failed: int = 0
    at_work: tuple[str, ...] = ()
    deaths: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Worker:
    seen: float
    shard: str
    handle: Any


class Monitor:
    """Plain Python; `ray_jobs.build` turns it into an actor.

    Args:
        max_failed_fraction: the run is stopped when more than this share of its samples failed.
        max_consecutive_failures: and when so many fail one after the other.
        job: whose options these are.
    """

    def __init__(self, max_failed_fraction: float, max_consecutive_failures: int, job: str = "build") -> None:
        self._job = job
        self._max_failed_fraction = max_failed_fraction
        self._max_consecutive_failures = max_consecutive_failures
        self._shards: dict[str, _Shard] = {}
        self._workers: dict[str, _Worker] = {}
        self._consecutive = 0
        self._stopping = ""

    def begin(self, worker: str, shard: str, handle: Any = None) -> Orders:
        """A builder takes up a shard; what an earlier try of it had finished is forgotten, it starts anew."""
        entry = self._shards.setdefault(shard, _Shard())
        entry.deaths.update(entry.at_work)
        entry.attempts += 1
        entry.made = entry.failed = 0
        entry.at_work = ()
        self._workers[worker] = _Worker(time.monotonic(), shard, handle)
        go = not self._stopping and entry.attempts <= MAX_ATTEMPTS
        return Orders(go, entry.attempts, dict(entry.deaths))

    def report(self, worker: str, shard: str, *, made: int, failed: int, at_work: tuple[str, ...]) -> bool:
        """Progress within a shard.

        Args:
            worker: who reports.
            shard: name of the shard.
            made: samples of this try finished so far.
            failed: samples of this try given up so far.
            at_work: ids of the samples about to be made.

        Returns:
            whether to go on.
        """
        entry = self._shards[shard]
        self._consecutive = 0 if made > entry.made else self._consecutive + max(0, failed - entry.failed)
        entry.made, entry.failed, entry.at_work = made, failed, at_work
        known = self._workers.get(worker)
        self._workers[worker] = _Worker(time.monotonic(), shard, known.handle if known else None)
        self._judge()
        return not self._stopping

    def end(self, worker: str) -> None:
        """A builder has put its shard down, committed or not."""
        self._workers.pop(worker, None)

    def _judge(self) -> None:
        """Stop a run that is going wrong."""
        now = self.snapshot()
        tried = now.made + now.failed
        if self._consecutive > self._max_consecutive_failures:
            self.stop(
                f"{self._consecutive} samples failed one after the other, more than "
                f"{self._job}.max_consecutive_failures {self._max_consecutive_failures} allows"
            )
        elif tried >= FAILURE_GRACE and now.failed > self._max_failed_fraction * tried:
            self.stop(
                f"{now.failed} of {tried} samples failed, more than {self._job}.max_failed_fraction "
                f"{self._max_failed_fraction:g} allows"
            )

    def stop(self, reason: str) -> None:
        """Ask every builder to stop at its next sample boundary; the first reason stays."""
        self._stopping = self._stopping or reason

    def stuck(self, seconds: float) -> list[Stuck]:
        """Builders that have reported nothing for so long; each is named once, then forgotten."""
        now = time.monotonic()
        found = [
            Stuck(name, worker.shard, now - worker.seen, self._shards[worker.shard].at_work, worker.handle)
            for name, worker in self._workers.items()
            if now - worker.seen > seconds
        ]
        for stuck in found:
            del self._workers[stuck.worker]
        return found

    def snapshot(self) -> Snapshot:
        """The run so far."""
        return Snapshot(
            made=sum(shard.made for shard in self._shards.values()),
            failed=sum(shard.failed for shard in self._shards.values()),
            stopping=self._stopping,
        )
