"""What driver, monitor, builders and readers tell one another of shards and attempts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from projector.making.steps import ShardMaker
from shards.format.commit import Maker, Try
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
        make_reader: loads what readers read pictures with, where there are readers.
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
