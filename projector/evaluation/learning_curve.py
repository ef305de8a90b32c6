"""The learning curve: a power law through validation losses by number of pairs, and what twice the pairs would bring.

loss(n) = floor + scale * n ** -exponent, as it is commonly found for networks and closed forms alike
(Hestness et al. 2017, https://arxiv.org/abs/1712.00409).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

EXPONENTS = np.geomspace(0.02, 3.0, 400)
LEAST_POINTS = 4
DRAWS = 400  # of the parametric bootstrap
LEAST_NOISE = (
    1e-4  # of a loss, relative: draws that agree to the last digit still say little of the next number
)


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PowerLaw:
    """A fitted curve.

    Attributes:
        floor: the loss that no number of pairs goes below.
        scale: what one pair leaves above it.
        exponent: how fast that shrinks.
        gain_of_doubling: by how much the loss falls from the most pairs measured to twice as many.
    """

    floor: Estimate
    scale: Estimate
    exponent: Estimate
    gain_of_doubling: Estimate

    def at(self, pairs: float) -> float:
        """The loss expected with so many pairs."""
        parameters = np.array([self.floor.value, self.scale.value, self.exponent.value])
        return float(_curve(parameters, np.array([pairs], dtype=np.float64))[0])


def fit_curve(losses: Mapping[int, Sequence[float]], *, seed: int = 0) -> PowerLaw | None:
    """Fit a power law with a floor by weighted least squares.

    The exponent is searched on a grid; floor and scale, neither of them negative, follow from it in closed form.
    Intervals are a parametric bootstrap: losses drawn anew around the fitted curve with the spread of the draws,
    or of the points around the curve where that is larger.

    Args:
        losses: by number of pairs, one for each draw of so many pairs: draws of the same pairs would hide their luck.
        seed: of the bootstrap.

    Returns:
        the curve; None where it is not known: with fewer than four numbers of pairs, through any three of which some
        curve goes exactly, or where no number has two draws.

    Raises:
        ValueError: a number of pairs below one, or a loss that is not finite.
    """
    pairs = np.array(sorted(losses), dtype=np.float64)
    if len(pairs) and pairs[0] < 1:
        raise ValueError(f"numbers of pairs are at least 1, not {sorted(losses)}")
    if len(pairs) < LEAST_POINTS or max(map(len, losses.values())) < 2:
        return None
    means = np.array([np.mean(losses[int(n)]) for n in pairs])
    if not np.isfinite(means).all():
        raise ValueError(f"losses are not finite: {means.tolist()}")
    counts = np.array([len(losses[int(n)]) for n in pairs], dtype=np.float64)
    found = _solve(pairs, means[None], counts)[0]
    fitted = _curve(found, pairs)
    noise = _noise(losses, pairs, means, fitted, counts)
    random = np.random.default_rng(seed)
    drawn = fitted + random.normal(size=(DRAWS, len(pairs))) * noise / np.sqrt(counts)
    again = _solve(pairs, drawn, counts)
    gains = np.array([_gain(parameters, pairs[-1]) for parameters in again])
    parts = [
        Estimate(float(value), *(float(end) for end in np.quantile(column, (0.025, 0.975))))
        for value, column in zip((*found, _gain(found, pairs[-1])), (*again.T, gains), strict=True)
    ]
    return PowerLaw(*parts)


def _solve(pairs: Doubles, losses: Doubles, weights: Doubles) -> Doubles:
    """(K, 3) floor, scale and exponent with the least weighted squared error, for (K, N) losses."""
    best = np.full(len(losses), np.inf)
    found = np.zeros((len(losses), 3))
    share = weights / weights.sum()
    for exponent in EXPONENTS:
        falling = (pairs / pairs[0]) ** -exponent
        centre, level = falling @ share, losses @ share
        spread = ((falling - centre) ** 2) @ share
        scale = np.maximum(0.0, (losses - level[:, None]) @ (share * (falling - centre)) / spread)
        floor = level - scale * centre
        # Where the floor came out below zero it is zero, and the scale is the best one for that.
        through_zero = (losses * falling) @ share / ((falling**2) @ share)
        scale, floor = np.where(floor < 0, through_zero, scale), np.maximum(0.0, floor)
        error = ((losses - floor[:, None] - scale[:, None] * falling) ** 2) @ share
        better = error < best
        best[better] = error[better]
        found[better] = np.stack(
            [floor, scale * pairs[0] ** exponent, np.full(len(losses), exponent)], axis=1
        )[better]
    return found


def _curve(parameters: Doubles, pairs: Doubles) -> Doubles:
    floor, scale, exponent = parameters
    values: Doubles = floor + scale * pairs**-exponent
    return values


def _gain(parameters: Doubles, pairs: float) -> float:
    _, scale, exponent = parameters
    return float(scale * (pairs**-exponent - (2 * pairs) ** -exponent))


def _noise(
    losses: Mapping[int, Sequence[float]], pairs: Doubles, means: Doubles, fitted: Doubles, counts: Doubles
) -> float:
    """Standard deviation of one loss: of the draws around their mean, or of the means around the curve if larger."""
    within = sum(
        float(np.sum((np.asarray(losses[int(n)]) - m) ** 2)) for n, m in zip(pairs, means, strict=True)
    )
    draws = float(np.sqrt(within / (counts.sum() - len(pairs))))
    around = float(np.sqrt(np.sum(counts * (means - fitted) ** 2) / (len(pairs) - 3)))
    return max(draws, around, LEAST_NOISE * float(means.mean()))
