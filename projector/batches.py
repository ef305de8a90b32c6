"""Samples made in batches: one that cannot be made fails alone, and a batch that does not fit is halved."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch

from shards.errors import CorruptShardError, StorageError
from shards.plan import PlannedSample
from shards.sample import Failure, Sample


class BatchMaker(ABC):
    """What turns planned samples into samples; its kinds say how a batch is made.

    Args:
        batch_size: samples made together at first.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    @abstractmethod
    def _make(self, batch: Sequence[PlannedSample]) -> list[Sample | Failure]:
        """Make a batch together; what it raises, marked by `Stage`, becomes the failure of a sample made alone."""

    def batches(self, planned: Sequence[PlannedSample]) -> Iterator[Sequence[PlannedSample]]:
        """Cut a shard into batches, in plan order from its start, so that the same shard meets the same batches."""
        start = 0
        while start < len(planned):
            batch = planned[start : start + self.batch_size]
            yield batch
            start += len(batch)

    def make(self, batch: Sequence[PlannedSample]) -> list[Sample | Failure]:
        """Make samples.

        Args:
            batch: planned samples.

        Returns:
            for each, in order, the sample or why there is none. A sample that brings its batch down fails alone;
            a batch that does not fit in memory is halved, and the smaller size is kept.

        Raises:
            StorageError, CorruptShardError: what is read for it cannot be had, which is no fault of a sample.
        """
        parts: list[Sequence[PlannedSample]]
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
            parts = [[sample] for sample in batch]
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
