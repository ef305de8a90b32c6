"""Work in batches: one item that cannot be made fails alone, and a batch that does not fit is halved."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import nn

from projector.making.broken_device import DeviceBrokenError, device_is_broken
from shards.errors import CorruptShardError, StorageError
from shards.format.sample import Failure, Sample

Item = TypeVar("Item")
Made = TypeVar("Made")


class BatchMaker(ABC, Generic[Item, Made]):
    """What turns items into what is made of them; its kinds say how a batch is made.

    Args:
        batch_size: items made together at first.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Parts of models that the device's time goes to; none where no model is at work."""
        return ()

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
            DeviceBrokenError: no item of this process can be made any more; end it.
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
            raise_if_device_is_broken(error)
            if len(batch) == 1:
                return [Failure.from_exception(_stage_of(error), error)]
            parts = [[item] for item in batch]
        # Here and not in the handler: there the exception still holds the tensors of the try that failed.
        torch.cuda.empty_cache()
        return [result for part in parts for result in self.make(part)]


def raise_if_device_is_broken(error: Exception) -> None:
    """Raise DeviceBrokenError where an error left the GPU useless; its words are those of the error."""
    if device_is_broken():
        raise DeviceBrokenError(" ".join(str(error).split())[:500]) from error


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


def make_sound(maker: BatchMaker[Item, Sample], items: Sequence[Item | Failure]) -> list[Sample | Failure]:
    """Make what can be made of earlier results, in batches of the maker's size; failures stay in their places."""
    sound = [item for item in items if not isinstance(item, Failure)]
    made: list[Sample | Failure] = []
    while len(made) < len(sound):
        made += maker.make(sound[len(made) : len(made) + maker.batch_size])
    following = iter(made)
    return [item if isinstance(item, Failure) else next(following) for item in items]
