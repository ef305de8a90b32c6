"""What driver, builders, readers and monitor tell one another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from projector.making.steps import ShardMaker
from shards.format.commit import Commit, Maker, Try
from shards.format.plan import PlannedShard
from shards.format.sample import Expected, Failure


@dataclass(frozen=True)
class BuildSpec:
    """What the builders and readers of a run need to know; small and picklable.

    Attributes:
        run: its id.
        root: of the dataset.
        expected: what every sample must hold.
        spool: local folder for shards under construction; None for each machine's own.
        shard_bytes: what a full shard takes there, about.
        maker: makes what leads planned samples through the models; called once the first shard is to be made.
        make_reader: loads what readers read pictures with; None where there are no readers.
        superseded: keys of samples that are tried again further on in the plan, and so not made where they failed.
        devices: held for each builder, its share of the readers included.
    """

    run: str
    root: str
    expected: Expected
    spool: str | None
    shard_bytes: int
    maker: Callable[[], ShardMaker]
    make_reader: Callable[[], Any] | None = None
    superseded: frozenset[str] = frozenset()
    devices: float = 1.0


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
class Task:
    """What a builder gets when it asks for work.

    Attributes:
        shard: to make.
        deaths: for its samples that were at work when a worker died, how often.
        earlier: attempts at it in this run that were wasted.
    """

    shard: PlannedShard
    deaths: Mapping[str, int]
    earlier: tuple[Try, ...]


FailedSample = tuple[str, Failure]  # its caption, and why there is no sample


@dataclass(frozen=True)
class Written:
    """What became of results that were to be written.

    Attributes:
        made: samples that are in the shard now.
        failed: the others, written down as failed.
        busy_seconds: in which a reader's device was at work on them.
    """

    made: int
    failed: list[FailedSample]
    busy_seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """The run so far.

    Attributes:
        made, failed: samples of this run, in committed shards or in shards under way.
        stopping: why the run is being stopped, or empty.
        builders: active ones.
        lost: wall seconds of wasted attempts, by outcome.
        under_way: wall seconds of the attempts under way.
        commonest: why most samples failed that did in this run, with three of their names; empty where none did.
        lasting: whether the run was stopped for failures, most of which come again in every run.
    """

    made: int
    failed: int
    stopping: str
    builders: int = 0
    lost: Mapping[str, float] = field(default_factory=dict)
    under_way: float = 0.0
    commonest: str = ""
    lasting: bool = False


@dataclass(frozen=True)
class Event:
    """Something that happened, on one line.

    Attributes:
        kind: what happened, in a word or two.
        facts: what is to be known of it, JSON; its time by the monitor's clock, so that events of all machines are in
            order.
        text: for people, who do not get everything; empty then.
        commit: of a shard that was committed.
    """

    kind: str
    facts: Mapping[str, Any]
    text: str = ""
    commit: Commit | None = None
