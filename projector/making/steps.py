"""What a builder asks of whatever makes its samples: steps, between which it reports its progress and may stop.

Loads no torch: a builder has no use for it before its models are there, and a maker without models has none at all.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from shards.format.plan import PlannedSample
from shards.format.sample import Failure

Found = TypeVar("Found")
# Batches made up by length at a time. Their pictures wait until they are read in plan order: 5 MB each at 1024².
# Of the built-in prompts in batches of four 11% are then of mixed lengths, of 85% in plan order
# (`benchmarks/batch_masks.py`).
STRETCH = 16


@dataclass(frozen=True)
class Step:
    """One thing a device does on its way through a shard.

    Attributes:
        samples: at work in it.
        run: does it, and returns what it finished, in plan order over all steps: nothing, samples, or what another
            process makes samples of.
    """

    samples: Sequence[PlannedSample]
    run: Callable[[], Sequence[Any]]


class ShardMaker(ABC):
    """What leads a shard's samples through the models.

    Args:
        notes: what people should know of how it works.
    """

    def __init__(self, notes: Sequence[str] = ()) -> None:
        self.notes = tuple(notes)

    def prepare_thread(self) -> None:  # noqa: B027 - not every maker has something to do
        """Set what each thread of a process has of its own, before it takes the steps of a shard."""

    def timed(self, work: Callable[[], Found]) -> tuple[Found, float]:
        """Do some work; returns what it returns, and the seconds in which a device was at it."""
        begun = time.monotonic()
        return work(), time.monotonic() - begun

    @abstractmethod
    def steps(
        self, planned: Sequence[PlannedSample], apart: Collection[str], given_up: Mapping[str, Failure]
    ) -> Iterator[Step]:
        """The steps of a shard; the same arguments give the same batches.

        Args:
            planned: the shard's samples.
            apart: ids of samples that are made alone, to find out which one kills workers.
            given_up: why samples are not made at all, by id.
        """
