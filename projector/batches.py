"""Work in batches: one item that cannot be made fails alone, and a batch that does not fit is halved.

A shard is made in steps (`ShardMaker.steps`); between two of them the run is told how far it is and may stop.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from shards.errors import CorruptShardError, StorageError
from shards.plan import PlannedSample
from shards.sample import Failure, Sample

Item = TypeVar("Item")
Made = TypeVar("Made")


class BatchMaker(ABC, Generic[Item, Made]):
    """What turns items into what is made of them; its kinds say how a batch is made.

    Args:
        batch_size: items made together at first.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    @abstractmethod
    def _make(self, batch: Sequence[Item]) -> list[Made | Failure]:
        """Make a batch together; what it raises, marked by `Stage`, becomes the failure of an item made alone."""

    def make(self, batch: Sequence[Item]) -> list[Made | Failure]:
        """Make items.

        Args:
            batch: of any length.

        Returns:
            for each, in order, what was made of it or why there is nothing. An item that brings its batch down fails
            alone; a batch that does not fit in memory is halved, and the smaller size is kept.

        Raises:
            StorageError, CorruptShardError: what is read for it cannot be had, which is no fault of an item.
        """
        parts: list[Sequence[Item]]
        try:
            return self._make(batch)
        except (StorageError, CorruptShardError):
            raise
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                return [Failure.from_exception("memory", error)]
            half = len(batch) // 2
            self.batch_size = min(self.batch_size, max(1, half))
            parts = [batch[:half], batch[half:]]
        except Exception as error:
            if len(batch) == 1:
                return [Failure.from_exception(_stage_of(error), error)]
            parts = [[item] for item in batch]
        # Here and not in the handler: there the exception still holds the tensors of the try that failed.
        torch.cuda.empty_cache()
        return [result for part in parts for result in self.make(part)]


class Stage:
    """Marks an exception with the stage it left from: `with Stage("image"): …`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and not hasattr(error, "stage"):
            error.stage = self.name  # type: ignore[attr-defined]


def _stage_of(error: BaseException) -> str:
    return str(getattr(error, "stage", "check"))


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


class InOneStage(ShardMaker):
    """One maker takes planned samples to the end.

    Args:
        maker: of them.
    """

    def __init__(self, maker: BatchMaker[PlannedSample, Any]) -> None:
        super().__init__()
        self.maker = maker

    def steps(
        self, planned: Sequence[PlannedSample], apart: Collection[str], given_up: Mapping[str, Failure]
    ) -> Iterator[Step]:
        """A step per batch."""
        for batch in batches(self.maker, planned, {*apart, *given_up}):
            yield Step(wanted(batch, given_up), partial(make_wanted, self.maker, batch, given_up))


def batches(
    maker: BatchMaker[PlannedSample, Any], planned: Sequence[PlannedSample], apart: Collection[str]
) -> Iterator[Sequence[PlannedSample]]:
    """Cut a shard into batches of the size that the maker has by then.

    Args:
        maker: whose size counts.
        planned: the shard's samples, cut in plan order from the first on.
        apart: ids of samples that stand alone; their batch mates then do too, so that the others stay as they were.
    """
    start = 0
    while start < len(planned):
        batch = planned[start : start + maker.batch_size]
        start += len(batch)
        if any(sample.id in apart for sample in batch):
            yield from ([sample] for sample in batch)
        else:
            yield batch


def wanted(batch: Sequence[PlannedSample], given_up: Mapping[str, Failure]) -> Sequence[PlannedSample]:
    """The samples of a batch that are made; one that was given up is at work in no step."""
    return [sample for sample in batch if sample.id not in given_up]


def make_wanted(
    maker: BatchMaker[PlannedSample, Made], batch: Sequence[PlannedSample], given_up: Mapping[str, Failure]
) -> list[Made | Failure]:
    """Make a batch; one that was given up stands alone in its own."""
    failure = given_up.get(batch[0].id)
    return maker.make(batch) if failure is None else [failure]


def make_sound(maker: BatchMaker[Item, Sample], items: Sequence[Item | Failure]) -> list[Sample | Failure]:
    """Make what can be made of earlier results, in batches of the maker's size; failures stay in their places."""
    sound = [item for item in items if not isinstance(item, Failure)]
    made: list[Sample | Failure] = []
    while len(made) < len(sound):
        made += maker.make(sound[len(made) : len(made) + maker.batch_size])
    following = iter(made)
    return [item if isinstance(item, Failure) else next(following) for item in items]
