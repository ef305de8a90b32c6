"""What the monitor tells: a builder what to do, the driver how far all are and what happened."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shards.format.commit import Commit, Try
from shards.format.plan import PlannedShard


@dataclass(frozen=True)
class Orders:
    """What a builder is told when it asks for work.

    Attributes:
        shard: to make; None where nothing is left, or the run is stopping.
        deaths: for its samples that were at work when a worker died, how often.
        earlier: tries at it in this run that came to nothing.
    """

    shard: PlannedShard | None
    deaths: Mapping[str, int] = field(default_factory=dict)
    earlier: tuple[Try, ...] = ()


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
        abandoned: shards that were given up, as their worker died each time.
        builders: at work.
        lost: wall seconds of tries that came to nothing, by what became of them.
        under_way: wall seconds of the tries at work.
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
        time: by the monitor's clock, so that the events of all machines stand in order.
        kind: what happened, in a word or two.
        facts: what is to be known of it, JSON.
        text: for people, who are not told of everything; empty then.
        commit: of a shard that was committed.
    """

    time: str
    kind: str
    facts: Mapping[str, Any]
    text: str = ""
    commit: Commit | None = None


def commit_figures(commit: Commit | None) -> dict[str, Any]:
    """What a line of the log says of a commit."""
    if commit is None:
        return {}
    names = ("samples", "failed", "causes", "bytes", "device", "device_seconds", "busy_seconds")
    return {name: getattr(commit, name) for name in names}
