"""What builders, monitor and driver tell one another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from shards.format.commit import Commit, Maker, Try
from shards.format.plan import PlannedShard


class Outcome(StrEnum):
    """What became of an attempt at a shard."""

    COMMITTED = "committed"
    ADOPTED = "adopted"  # it was there whole, left by a worker that died just before its commit
    THERE = "there"  # committed by a worker of this run that died since
    TAKEN = "taken"  # committed by another build before the attempt began
    DUPLICATE = "duplicate"  # committed by another build meanwhile
    STOPPED = "stopped"
    REFUSED = "refused"  # by the store, which stops the run
    DIED = "died"  # with its worker, or with the reader that had the shard
    LEFT_OUT = "left out"  # the models cannot be loaded there
    NOTHING = "nothing"  # no shard was left, so there was no attempt

    @property
    def committed(self) -> bool:
        """Whether the shard is committed by now, by whomever."""
        return self in (
            Outcome.COMMITTED,
            Outcome.ADOPTED,
            Outcome.THERE,
            Outcome.TAKEN,
            Outcome.DUPLICATE,
        )

    @property
    def wasted(self) -> bool:
        """Whether what the attempt did was for nothing."""
        return self in (Outcome.DUPLICATE, Outcome.STOPPED, Outcome.REFUSED, Outcome.DIED)


def worker_name(maker: Maker) -> str:
    """A builder's process, for people: `host:4711`."""
    return f"{maker.host}:{maker.pid}"


@dataclass(frozen=True)
class Orders:
    """What a builder gets when it asks for work.

    Attributes:
        shard: to make; None where nothing is left, or the run is stopping.
        deaths: for its samples that were at work when a worker died, how often.
        earlier: attempts at it in this run that were wasted.
    """

    shard: PlannedShard | None
    deaths: Mapping[str, int] = field(default_factory=dict)
    earlier: tuple[Try, ...] = ()


@dataclass(frozen=True)
class Stuck:
    """A builder (host and pid) that has reported nothing for so many seconds, what it works on, and its actor."""

    worker: str
    shard: str
    seconds: float
    at_work: tuple[str, ...]
    handle: Any


@dataclass(frozen=True)
class Snapshot:
    """The run so far.

    Attributes:
        made, failed: samples of this run, in committed shards or in shards under way.
        stopping: why the run is being stopped, or empty.
        abandoned: shards that were given up, as their worker died each time.
        builders: active ones.
        lost: wall seconds of wasted attempts, by outcome.
        under_way: wall seconds of the attempts under way.
        commonest: why most samples failed that did in this run, with three of their names; empty where none did.
        lasting: whether the run was stopped for failures, most of which come again in every run.
    """

    made: int
    failed: int
    stopping: str
    abandoned: tuple[str, ...] = ()
    builders: int = 0
    lost: Mapping[str, float] = field(default_factory=dict)
    under_way: float = 0.0
    commonest: str = ""
    lasting: bool = False


@dataclass(frozen=True)
class Event:
    """Something that happened, on one line.

    Attributes:
        time: by the monitor's clock, so that the events of all machines are in order.
        kind: what happened, in a word or two.
        facts: what is to be known of it, JSON.
        text: for people, who do not get everything; empty then.
        commit: of a shard that was committed.
    """

    time: str
    kind: str
    facts: Mapping[str, Any]
    text: str = ""
    commit: Commit | None = None
