"""What a run's monitor tells its driver: how far it is, and what happened."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shards.format.commit import Commit


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
