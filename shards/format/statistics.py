"""Per-dimension running statistics: one pass, float64, mergeable over shards and workers in any order."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


class RunningStatistics:
    """Count, mean and sum of squared deviations of rows of numbers.

    Blocks are merged by Chan, Golub and LeVeque's update (1979), which keeps its precision where a sum of squares
    loses it: the 4B models have dimensions whose mean is thousands of times their spread.

    Args:
        dimensions: numbers in a row (D).
    """

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.mean: Float64 = np.zeros(dimensions)
        self.m2: Float64 = np.zeros(dimensions)

    def update(self, block: NDArray[Any]) -> None:
        """Take in rows.

        Args:
            block: (n, D), any floating dtype.
        """
        if len(block) == 0:
            return
        rows = np.asarray(block, dtype=np.float64)
        mean = rows.mean(axis=0)
        deviations = rows - mean
        self._merge(len(rows), mean, np.einsum("nd,nd->d", deviations, deviations))

    def merge(self, other: "RunningStatistics") -> None:
        """Take in what another one has seen."""
        self._merge(other.count, other.mean, other.m2)

    def _merge(self, count: int, mean: Float64, m2: Float64) -> None:
        if count == 0:
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.m2 = self.m2 + m2 + delta**2 * (self.count * count / total)
        self.count = total

    def variance(self) -> Float64:
        """Population variance per dimension (divided by n), zeros before any row."""
        return self.m2 / max(self.count, 1)

    def std(self) -> Float64:
        """Population standard deviation per dimension."""
        deviation: Float64 = np.sqrt(self.variance())
        return deviation

    def to_json(self) -> dict[str, Any]:
        """Count, and mean and m2 as base64 of little-endian float64: exact, and a third of the digits' size."""
        return {"count": self.count, "mean": _encode(self.mean), "m2": _encode(self.m2)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunningStatistics":
        """The statistics that `to_json` wrote; ValueError on anything else."""
        mean, m2 = _decode(data["mean"]), _decode(data["m2"])
        if mean.shape != m2.shape or not isinstance(data["count"], int) or data["count"] < 0:
            raise ValueError("statistics: count, mean and m2 do not fit together")
        statistics = cls(len(mean))
        statistics.count, statistics.mean, statistics.m2 = data["count"], mean, m2
        return statistics


def _encode(values: Float64) -> str:
    return base64.b64encode(values.astype("<f8").tobytes()).decode()


def _decode(text: str) -> Float64:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f8").astype(np.float64)
