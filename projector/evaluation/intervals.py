"""Intervals of means over groups of pairs, and of differences between methods on the same groups.

Captions of one picture rise and fall together, so whole groups are drawn anew, not pairs. The interval is studentised,
with equal tails (Davison and Hinkley 1997, section 5.2): means of skewed values are themselves skewed, and with 30
pairs the plain percentile interval that says 95% covers 87 to 93%, this one 91 to 95% (gamma and lognormal values).

G groups, R replicates.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

from projector.evaluation.moments import Float64

REPLICATES = 1000
WEIGHTS_AT_A_TIME = 4_000_000  # 32 MB
LEVEL = 0.95
LEAST_GROUPS = 8  # with fewer, the spread of groups is itself not known
NORMAL = NormalDist()
MANY = 200  # degrees of freedom from which a series is exact to 1e-5
SAME = 1e-4  # of the baseline's error: differences below it are rounding, not methods


@dataclass(frozen=True)
class GroupSums:
    """A figure that is a ratio of two sums over groups, such as squared error over rows."""

    over: Float64
    """(G,) above the line."""
    under: Float64
    """(G,) below it."""

    @classmethod
    def of(cls, by_group: Mapping[str, Collection[float]]) -> "GroupSums":
        """Sums by group; the order of the groups does not depend on who measured them."""
        both = np.array([by_group[group] for group in sorted(by_group)], dtype=np.float64).reshape(-1, 2)
        return cls(both[:, 0], both[:, 1])

    def minus(self, other: "GroupSums") -> "GroupSums":
        """The difference to another method on the same groups."""
        assert np.allclose(self.under, other.under)
        return GroupSums(self.over - other.over, self.under)

    @property
    def value(self) -> float:
        """The figure itself."""
        return float(self.over.sum() / self.under.sum())


@dataclass(frozen=True)
class Resampled:
    """A figure in its own units, and its studentised replicates."""

    value: float
    error: float
    """Standard error over groups."""
    studentised: Float64
    """(R,) how far each replicate is from the figure, in the replicate's own standard errors."""

    def interval(self, level: float = LEVEL) -> list[float]:
        """Low and high end at a level of confidence."""
        if not len(self.studentised) or not self.error:
            return [self.value, self.value]
        low, high = np.quantile(self.studentised, ((1 + level) / 2, (1 - level) / 2))
        return [float(self.value - end * self.error) for end in (low, high)]

    @property
    def p(self) -> float:
        """How likely so large a value of either sign is where the truth is 0; the least is 2 / (R + 1)."""
        if not len(self.studentised) or not self.error:
            return 1.0
        seen = self.value / self.error
        beyond = min((self.studentised >= seen).sum(), (self.studentised <= seen).sum())
        return float(min(1.0, 2 * (beyond + 1) / (len(self.studentised) + 1)))


def resampled(figures: Mapping[str, GroupSums]) -> dict[str, Resampled]:
    """Draw groups anew, the same draws for all figures; empty with too few groups.

    Args:
        figures: by name, all of the same groups.
    """
    count = len(next(iter(figures.values())).over) if figures else 0
    if count < LEAST_GROUPS:
        return {}
    random = np.random.default_rng(0)
    parts = [_ratios_and_errors(figures, np.ones((1, count)))]
    for first in range(0, REPLICATES, (at_a_time := max(1, WEIGHTS_AT_A_TIME // count))):
        size = min(at_a_time, REPLICATES - first)
        weights = random.multinomial(count, np.full(count, 1 / count), size)
        parts.append(_ratios_and_errors(figures, weights.astype(np.float64)))
    found = {}
    for name, (ratio, error) in zip(figures, np.concatenate(parts, axis=2), strict=True):
        known = error[1:] > 0
        studentised = (ratio[1:] - ratio[0])[known] / error[1:][known]
        found[name] = Resampled(float(ratio[0]), float(error[0]), studentised)
    return found


def percentiles(groups: int) -> tuple[float, float]:
    """Percentiles of plain replicates for 95%, further out than 2.5 and 97.5 (Hesterberg 2015).

    Replicates of n groups spread less than the figure does, by the square root of (n - 1) / n, and as if n were large.
    """
    low = NORMAL.cdf(-t_quantile(groups - 1) * math.sqrt(groups / (groups - 1)))
    return 100 * low, 100 * (1 - low)


@lru_cache
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """How many standard errors an interval by Student's t goes to either side.

    Args:
        freedom: degrees of freedom, at least 1.
        level: of confidence, below 1.
    """
    z = NORMAL.inv_cdf((1 + level) / 2)
    if freedom >= MANY:  # Abramowitz and Stegun 26.7.5
        first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
        return z + first / freedom + second / freedom**2
    low, high = z, math.tan(math.pi / 2 * level)  # of infinite and of one degree
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < level else (low, middle)
    return high


def _t_within(t: float, freedom: int) -> float:
    """How likely Student's t is between -t and t: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def level_of_all(count: int) -> float:
    """The level of each of several intervals with which all hold at once at 95%, by Bonferroni's correction."""
    return 1 - (1 - LEVEL) / max(1, count)


def against_best(errors: Mapping[str, GroupSums], contestants: Collection[str]) -> dict[str, dict[str, Any]]:
    """Each method's difference to the best baseline, on the same groups.

    Args:
        errors: of every method; smaller is better.
        contestants: the methods that may be called better; the others are baselines.

    Returns:
        by method but the best baseline: `baseline`, its name; `difference`; with groups enough `interval`, 95% for
        all contestants together (Bonferroni's correction), and `p`, uncorrected; and `better`, whether the interval
        lies below 0. Empty without a baseline.
    """
    baselines = [name for name in errors if name not in contestants]
    if not baselines:
        return {}
    best = min(baselines, key=lambda name: (errors[name].value, name))
    level = level_of_all(len(contestants))
    differences = {name: sums.minus(errors[best]) for name, sums in errors.items() if name != best}
    drawn = resampled(differences)
    found = {}
    for name, difference in differences.items():
        entry: dict[str, Any] = {"baseline": best, "difference": difference.value, "better": False}
        if name in drawn:
            low, high = drawn[name].interval(level)
            counts = name in contestants and difference.value < -SAME * errors[best].value
            entry |= {"interval": [low, high], "p": drawn[name].p, "better": bool(counts and high < 0)}
        found[name] = entry
    return found


def _ratios_and_errors(figures: Mapping[str, GroupSums], weights: Float64) -> Float64:
    """(figures, 2, rows of weights) ratios under weights (…, G), and their standard errors by linearisation."""
    return np.stack([_ratio_and_error(sums, weights) for sums in figures.values()])


def _ratio_and_error(sums: GroupSums, weights: Float64) -> Float64:
    over, under = sums.over, sums.under
    total = weights @ np.stack([over, under, over * over, over * under, under * under], axis=1)
    ratio = total[:, 0] / total[:, 1]
    squares = total[:, 2] - 2 * ratio * total[:, 3] + ratio**2 * total[:, 4]
    # What is left of large squares that cancel is rounding.
    squares = np.where(squares > 1e-12 * total[:, 2], squares, 0.0)
    return np.stack([ratio, np.sqrt(squares * len(over) / (len(over) - 1)) / total[:, 1]])
