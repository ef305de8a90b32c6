"""The workers of a training run, seen from one of them: torch.distributed where it runs, else one alone."""

from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from shards.format.statistics import RunningStatistics


@dataclass(frozen=True)
class World:
    """Who this worker is among how many."""

    rank: int
    """This worker, from 0."""
    size: int
    """Number of workers."""
    device: torch.device
    """Where this worker computes."""

    @classmethod
    def join(cls, device: torch.device | str | None = None) -> "World":
        """The current process group, or a world of one.

        Args:
            device: of this worker; None takes the current GPU where there is one, else the CPU.
        """
        if device is None:
            device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
        together = distributed.is_available() and distributed.is_initialized()
        rank, size = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        return cls(rank, size, torch.device(device))

    def share(self, count: int) -> range:
        """This worker's contiguous part of `count` things; parts differ by one at most."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def add(self, numbers: Tensor) -> Tensor:
        """Sum over all workers, elementwise and on every worker; every worker must call it."""
        if self.size == 1:
            return numbers
        total = numbers.to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.to(numbers.device)

    def merge(self, statistics: RunningStatistics) -> RunningStatistics:
        """The statistics over everything that any worker saw, the same on every worker."""
        if self.size == 1:
            return statistics
        width = len(statistics.mean)
        table = torch.zeros(self.size, 2 * width + 1, dtype=torch.float64)
        table[self.rank, 0] = statistics.count
        table[self.rank, 1 : 1 + width] = torch.from_numpy(statistics.mean)
        table[self.rank, 1 + width :] = torch.from_numpy(statistics.m2)
        merged = RunningStatistics(width)
        for row in self.add(table).numpy():
            part = RunningStatistics(width)
            part.count, part.mean, part.m2 = int(row[0]), row[1 : 1 + width], row[1 + width :]
            merged.merge(part)
        return merged
