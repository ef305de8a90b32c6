"""The run's one memory while it runs: who works on what, how far it is, whether to go on.

A Ray actor of its own, because builders live in other processes and on other machines. It holds nothing that a
restart needs: what is made is known from the commits alone.
"""

import time
from collections import Counter
from dataclasses import dataclass, field, replace

FAILURE_GRACE = (
    20  # samples seen before the failed share counts: one bad sample among the first must not stop a run
)
MAX_ATTEMPTS = (
    3  # tries at one shard within a run; a shard that kills its worker each time must not go on for ever
)


@dataclass(frozen=True)
class Orders:
    """What a builder is told when it takes up a shard.

    Attributes:
        go: False when the run is stopping or the shard has been tried too often.
        attempt: 1 for the first try within this run.
        suspects: ids of samples at work when an earlier try died; they are made alone or given up.
    """

    go: bool
    attempt: int
    suspects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """The run so far.

    Attributes:
        made: samples finished in this run, in committed shards or in shards under way.
        failed: samples that could not be made.
        workers: builders that have reported.
        stopping: why the run is being stopped, or empty.
    """

    made: int = 0
    failed: int = 0
    workers: int = 0
    stopping: str = ""


@dataclass
class _Shard:
    attempts: int = 0
    made: int = 0
    failed: int = 0
    at_work: tuple[str, ...] = ()
    deaths: Counter[str] = field(default_factory=Counter)


class Monitor:
    """Plain Python; `ray_jobs.build` turns it into an actor.

    Args:
        max_failed_fraction: the run is stopped when more than this share of its samples failed.
    """

    def __init__(self, max_failed_fraction: float) -> None:
        self._max_failed_fraction = max_failed_fraction
        self._shards: dict[str, _Shard] = {}
        self._seen: dict[str, float] = {}
        self._stopping = ""

    def begin(self, worker: str, shard: str) -> Orders:
        """A builder takes up a shard; what an earlier try of it had finished is forgotten, it starts anew."""
        entry = self._shards.setdefault(shard, _Shard())
        entry.deaths.update(entry.at_work)
        entry.attempts += 1
        entry.made = entry.failed = 0
        entry.at_work = ()
        self._seen[worker] = time.monotonic()
        go = not self._stopping and entry.attempts <= MAX_ATTEMPTS
        return Orders(go, entry.attempts, tuple(entry.deaths))

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
        entry.made, entry.failed, entry.at_work = made, failed, at_work
        self._seen[worker] = time.monotonic()
        now = self.snapshot()
        tried = now.made + now.failed
        if not self._stopping and tried >= FAILURE_GRACE and now.failed > self._max_failed_fraction * tried:
            self._stopping = (
                f"{now.failed} of {tried} samples failed, more than build.max_failed_fraction "
                f"{self._max_failed_fraction:g} allows"
            )
        return not self._stopping

    def stop(self, reason: str) -> None:
        """Ask every builder to stop at its next sample boundary."""
        self._stopping = self._stopping or reason

    def snapshot(self) -> Snapshot:
        """The run so far."""
        return replace(
            Snapshot(workers=len(self._seen), stopping=self._stopping),
            made=sum(shard.made for shard in self._shards.values()),
            failed=sum(shard.failed for shard in self._shards.values()),
        )
