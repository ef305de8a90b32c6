"""Distances that need the samples themselves: retrieval among them, and how two clouds of tokens lie.

N samples, D hidden, K directions, R weightings.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

CANDIDATES_AT_A_TIME = 1024
QUANTILES = 512  # at which weighted clouds are compared


def retrieval(
    queries: Float64, gallery: Float64, groups: Sequence[str], ranks: tuple[int, ...] = (1, 5)
) -> Float64:
    """Whether each query finds its own among all, by cosine similarity; ties count as half.

    A candidate exactly as similar as the own one counts as half a candidate before it. With a naive ">" a
    constant predictor would find its own first every time.

    Args:
        queries: (N, D) predicted means, standardised.
        gallery: (N, D) target means, standardised; row i is query i's own.
        groups: of each row; other captions of the same picture are no candidates, since they are not wrong.
        ranks: k of each recall@k.

    Returns:
        (len(ranks), N): 1 where the own one's rank, from 1, is at most k, else 0.
    """
    x, y = (_unit(rows) for rows in (queries, gallery))
    own = np.einsum("nd,nd->n", x, y)
    of_group = np.unique(list(groups), return_inverse=True)[1]
    better, equal = np.zeros(len(x)), np.zeros(len(x))
    for first in range(0, len(y), CANDIDATES_AT_A_TIME):
        some = slice(first, first + CANDIDATES_AT_A_TIME)
        similarity = x @ y[some].T
        near = np.abs(similarity - own[:, None]) <= 1e-9
        other = of_group[:, None] != of_group[some]
        better += ((similarity > own[:, None]) & ~near & other).sum(1)
        equal += (near & other).sum(1)
    rank = 1 + better + equal / 2
    return np.stack([(rank <= k).astype(np.float64) for k in ranks])


def sliced_wasserstein(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> float:
    """Distance between two clouds: root mean over directions of the squared 2-Wasserstein distance along
    each.

    Exact for any two numbers of points: both empirical quantile functions are steps, compared step by step.

    Args:
        x: (n, K) one cloud, projected on K directions.
        y: (m, K) the other.
    """
    n, m = len(x), len(y)
    cuts = np.unique(np.concatenate([np.arange(1, n + 1) / n, np.arange(1, m + 1) / m]).round(12))
    weights = np.diff(cuts, prepend=0.0)
    middle = cuts - weights / 2
    along_x, along_y = np.sort(x, axis=0), np.sort(y, axis=0)
    gap = along_x[(middle * n).astype(int)] - along_y[(middle * m).astype(int)]
    return float(np.sqrt((weights[:, None] * gap**2).sum(0).mean()))


def weighted_wasserstein(
    x: NDArray[np.floating[Any]], weights_x: Float64, y: NDArray[np.floating[Any]], weights_y: Float64
) -> Float64:
    """`sliced_wasserstein` of weighted clouds, for many weightings; quantiles are compared at 512 places.

    Args:
        x, y: (n, K) and (m, K) clouds, projected.
        weights_x, weights_y: (R, n) and (R, m) what each point counts; no row may be all zeros.

    Returns:
        (R,) distances.
    """
    along = [_quantiles(points, weights) for points, weights in ((x, weights_x), (y, weights_y))]
    distances: Float64 = np.sqrt(((along[0] - along[1]) ** 2).mean((1, 2)))
    return distances


def _quantiles(points: NDArray[np.floating[Any]], weights: Float64) -> Float64:
    """(R, QUANTILES, K) of points (n, K) under weights (R, n)."""
    order = np.argsort(points, axis=0)
    places = (np.arange(QUANTILES) + 0.5) / QUANTILES
    found = np.empty((len(weights), QUANTILES, points.shape[1]))
    for direction in range(points.shape[1]):
        cumulated = np.cumsum(weights[:, order[:, direction]], axis=1)
        along = points[order[:, direction], direction]
        for row, total in enumerate(cumulated):
            found[row, :, direction] = along[np.searchsorted(total, places * total[-1])]
    return found


def random_directions(width: int, count: int, seed: int) -> Float64:
    """(D, K) unit vectors, evenly distributed over the sphere."""
    directions = np.random.default_rng(seed).normal(size=(width, count))
    unit: Float64 = directions / np.linalg.norm(directions, axis=0)
    return unit


def _unit(rows: Float64) -> Float64:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Float64 = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return unit
