"""Per-dimension sums over pairs of rows, under many weightings of the pairs at once; they add up over workers.

D hidden, R weightings, F fields.

The first weighting counts every pair once and gives the figure itself. The others are a Poisson bootstrap
(Chamandy, Muralidharan, Najmi and Naidu 2012): each replicate counts a group of pairs Poisson(1) times, drawn from its
name. No worker needs to know how many pairs there are, and their order does not matter.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

REPLICATES = 100  # 2.5% at either end are two or three of them
PAIRS_AT_A_TIME = 32  # added up in one product
STILL = 1e-12  # of the mean square about the origin: a variance below that is rounding


def bootstrap_weights(group: str, replicates: int = REPLICATES) -> Float64:
    """(1 + replicates,): how often a group's pairs count in the figure itself (once) and in each replicate."""
    seed = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")
    return np.concatenate([[1.0], np.random.default_rng(seed).poisson(1.0, replicates)])


class WeightedSums:
    """Sums of one array per pair under R weightings: memory does not grow with the number of pairs.

    Args:
        shape: of a pair's array.
        weightings: R.
    """

    def __init__(self, shape: tuple[int, ...], weightings: int) -> None:
        self._total: Float64 = np.zeros((weightings, *shape))
        self._waiting: list[tuple[Float64, Float64]] = []

    def add(self, weights: Float64, values: Float64) -> None:
        """Take in a pair's array under its weights (R,)."""
        self._waiting.append((weights, values))
        if len(self._waiting) == PAIRS_AT_A_TIME:
            self._flush()

    def merge(self, other: "WeightedSums") -> None:
        """Take in what another one has summed."""
        self._total = self.total + other.total

    @property
    def total(self) -> Float64:
        """(R, *shape)."""
        self._flush()
        return self._total

    def _flush(self) -> None:
        if self._waiting:
            weights, values = (np.stack(side) for side in zip(*self._waiting, strict=True))
            self._total = self._total + np.tensordot(weights.T, values, axes=1)
            self._waiting = []


def row_sums(x: Float64, y: Float64) -> Float64:
    """(5, D) sums of x, y, x², y² and xy over rows (n, D)."""
    return np.stack([x.sum(0), y.sum(0), *(np.einsum("nd,nd->d", a, b) for a, b in ((x, x), (y, y), (x, y)))])


@dataclass(frozen=True)
class Moments:
    """What `row_sums` say of n rows (x, y), both counted from the same origin."""

    count: float
    """n."""
    sums: Float64
    """(5, D)."""

    @property
    def variance_x(self) -> Float64:
        """(D,) population variance of x; exactly 0 where x never moves."""
        return self._variance(0, 2)

    @property
    def variance_y(self) -> Float64:
        """(D,) population variance of y; exactly 0 where y never moves."""
        return self._variance(1, 3)

    def _variance(self, first: int, second: int) -> Float64:
        square = self.sums[second] / self.count
        variance = square - (self.sums[first] / self.count) ** 2
        moving: Float64 = np.where(variance > STILL * square, variance, 0.0)
        return moving

    @property
    def squared_error(self) -> Float64:
        """(D,) mean of (x - y)²."""
        error = (self.sums[2] - 2 * self.sums[4] + self.sums[3]) / self.count
        positive: Float64 = np.maximum(error, 0.0)
        return positive

    @property
    def correlation(self) -> Float64:
        """(D,) Pearson correlation; 0 where either side never moves."""
        together: Float64 = self.sums[4] / self.count - self.sums[0] * self.sums[1] / self.count**2
        scale: Float64 = np.sqrt(self.variance_x * self.variance_y)
        correlation: Float64 = np.divide(together, scale, out=np.zeros_like(scale), where=scale > 0)
        return correlation

    @property
    def r2(self) -> Float64:
        """(D,) share of y's variance that x explains as it stands; NaN where y never moves."""
        variance = self.variance_y
        ratio = np.full_like(variance, np.nan)
        return 1 - np.divide(self.squared_error, variance, out=ratio, where=variance > 0)
