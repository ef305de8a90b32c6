"""Metrics of predicted against target embeddings: running sums in float64, mergeable, equal to plain numpy.

n rows (tokens or means), D hidden, K directions. Nothing here keeps rows except two small samples that need
them: the means of each pair, for retrieval, and a bounded number of projected tokens per pair, for the
Wasserstein distance.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.statistics import RunningStatistics

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

OUTLIER_RATIO = 2.0  # the guide's: a dimension with more than twice the target's std
COLLAPSED_RATIO = 0.5  # its mirror image, which regression to the mean produces
RMS_EPSILON = 1e-6  # of Qwen3's RMSNorm
TOKENS_PER_PAIR = (
    32  # evenly spaced, for the Wasserstein distance: keeps memory independent of the image's size
)


def rms_norm(rows: Tensor) -> Tensor:
    """Each row divided by its root mean square: what the DiT's first layer does to its conditioning."""
    return rows / (rows.square().mean(-1, keepdim=True) + RMS_EPSILON).sqrt()


class Moments:
    """Count, means, squared deviations and co-deviations of pairs of rows (x, y), per dimension."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean_x, self.mean_y, self.m2_x, self.m2_y, self.m_xy, self.squared_error = np.zeros((6, width))

    def update(self, x: Float64, y: Float64) -> None:
        """Take in rows (n, D) of both sides."""
        other = Moments(x.shape[1])
        other.count = len(x)
        other.mean_x, other.mean_y = x.mean(0), y.mean(0)
        dx, dy = x - other.mean_x, y - other.mean_y
        other.m2_x, other.m2_y, other.m_xy = (
            np.einsum("nd,nd->d", a, b) for a, b in ((dx, dx), (dy, dy), (dx, dy))
        )
        other.squared_error = np.einsum("nd,nd->d", x - y, x - y)
        self.merge(other)

    def merge(self, other: "Moments") -> None:
        """Take in what another one has seen (Chan, Golub and LeVeque 1979)."""
        total = self.count + other.count
        if not other.count:
            return
        delta_x, delta_y = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        between = self.count * other.count / total
        self.mean_x = self.mean_x + delta_x * other.count / total
        self.mean_y = self.mean_y + delta_y * other.count / total
        self.m2_x = self.m2_x + other.m2_x + delta_x**2 * between
        self.m2_y = self.m2_y + other.m2_y + delta_y**2 * between
        self.m_xy = self.m_xy + other.m_xy + delta_x * delta_y * between
        self.squared_error = self.squared_error + other.squared_error
        self.count = total

    @property
    def correlation(self) -> Float64:
        """(D,) Pearson correlation; 0 where either side never moves."""
        scale = np.sqrt(self.m2_x * self.m2_y)
        return np.divide(self.m_xy, scale, out=np.zeros_like(scale), where=scale > 0)

    @property
    def r2(self) -> Float64:
        """(D,) share of y's variance that x explains as it stands; NaN where y never moves."""
        ratio = np.full_like(self.m2_y, np.nan)
        return 1 - np.divide(self.squared_error, self.m2_y, out=ratio, where=self.m2_y > 0)


@dataclass
class Metrics:
    """Everything measured of one method.

    `content` rows are aligned one to one: row i of the prediction answers for row i of the target. `tokens`
    are the two sides' tokens as sets, of any number each, for how they are distributed.
    """

    target_mean: Float64
    """(D,) mean of target tokens in the training split."""
    target_std: Float64
    """(D,) their standard deviation; standardised errors are in its units."""
    directions: Float64
    """(D, K) unit vectors of the sliced Wasserstein distance."""
    content: Moments = field(init=False)
    normed: Moments = field(init=False)
    cosine: float = field(init=False, default=0.0)
    normed_cosine: float = field(init=False, default=0.0)
    spread_x: RunningStatistics = field(init=False)
    spread_y: RunningStatistics = field(init=False)
    queries: list[Float64] = field(init=False, default_factory=list)
    gallery: list[Float64] = field(init=False, default_factory=list)
    slices_x: list[Float32] = field(init=False, default_factory=list)
    slices_y: list[Float32] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        width = len(self.target_mean)
        self.content, self.normed = Moments(width), Moments(width)
        self.spread_x, self.spread_y = RunningStatistics(width), RunningStatistics(width)

    def update(
        self, predicted: Tensor, target: Tensor, predicted_tokens: Tensor, target_tokens: Tensor
    ) -> None:
        """Take in one pair.

        Args:
            predicted: (L, D) aligned predictions, raw.
            target: (L, D) aligned targets, raw.
            predicted_tokens: (P, D) predicted tokens whose distribution counts.
            target_tokens: (Q, D) real ones.
        """
        x, y = predicted.double(), target.double()
        self.content.update(x.numpy(), y.numpy())
        normed_x, normed_y = rms_norm(x), rms_norm(y)
        self.normed.update(normed_x.numpy(), normed_y.numpy())
        self.cosine += float(torch.cosine_similarity(x, y, dim=-1).sum())
        self.normed_cosine += float(torch.cosine_similarity(normed_x, normed_y, dim=-1).sum())
        for tokens, spread, slices in (
            (predicted_tokens, self.spread_x, self.slices_x),
            (target_tokens, self.spread_y, self.slices_y),
        ):
            rows = tokens.double().numpy()
            spread.update(rows)
            chosen = rows[np.unique(np.linspace(0, len(rows) - 1, TOKENS_PER_PAIR).round().astype(int))]
            slices.append((self._standardised(chosen) @ self.directions).astype(np.float32))
        self.queries.append(self._standardised(x.mean(0).numpy()))
        self.gallery.append(self._standardised(y.mean(0).numpy()))

    def _standardised(self, rows: Float64) -> Float64:
        return (rows - self.target_mean) / self.target_std

    def merge(self, other: "Metrics") -> None:
        """Take in what another worker has measured of the same method."""
        for name in ("content", "normed", "spread_x", "spread_y"):
            getattr(self, name).merge(getattr(other, name))
        self.cosine += other.cosine
        self.normed_cosine += other.normed_cosine
        for name in ("queries", "gallery", "slices_x", "slices_y"):
            getattr(self, name).extend(getattr(other, name))

    def result(self) -> dict[str, Any]:
        """The figures under the names of eval.json."""
        squared_error = self.content.squared_error / self.content.count
        moving = self.spread_y.std() > 0
        ratio = self.spread_x.std()[moving] / self.spread_y.std()[moving]
        recall = retrieval(np.array(self.queries), np.array(self.gallery))
        return {
            "mse": float(squared_error.mean()),
            "mse_standardized": float((squared_error / self.target_std**2).mean()),
            "cosine_similarity": self.cosine / self.content.count,
            "per_dim_correlation": float(np.median(self.content.correlation)),
            "r2": float(np.nanmedian(self.content.r2)),
            "std_ratio_range": [float(ratio.min()), float(ratio.max())],
            "outlier_dims": int((ratio > OUTLIER_RATIO).sum()),
            "collapsed_dims": int((ratio < COLLAPSED_RATIO).sum()),
            "recall_at_1": float(recall[0].mean()),
            "recall_at_5": float(recall[1].mean()),
            "rms_r2": float(np.nanmedian(self.normed.r2)),
            "rms_cosine": self.normed_cosine / self.content.count,
            "sliced_wasserstein": sliced_wasserstein(
                np.concatenate(self.slices_x), np.concatenate(self.slices_y)
            ),
        }


def retrieval(queries: Float64, gallery: Float64, ranks: tuple[int, ...] = (1, 5)) -> Float64:
    """Whether each query finds its own among all, by cosine similarity; ties count as half.

    A candidate exactly as similar as the own one counts as half a candidate before it. With a naive ">" a
    constant predictor would find its own first every time.

    Args:
        queries: (N, D) predicted means, standardised.
        gallery: (N, D) target means, standardised; row i is query i's own.
        ranks: k of each recall@k.

    Returns:
        (len(ranks), N): 1 where the own one's rank, from 1, is at most k, else 0.
    """
    x, y = (_unit(rows) for rows in (queries, gallery))
    own = np.einsum("nd,nd->n", x, y)
    better, equal = np.zeros(len(x)), np.zeros(len(x))
    for first in range(0, len(y), 1024):
        similarity = x @ y[first : first + 1024].T
        near = np.abs(similarity - own[:, None]) <= 1e-9
        better += ((similarity > own[:, None]) & ~near).sum(1)
        equal += near.sum(1)
    rank = 1 + better + (equal - 1) / 2  # the own one is among the equal
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


def random_directions(width: int, count: int, seed: int) -> Float64:
    """(D, K) unit vectors, evenly distributed over the sphere."""
    directions = np.random.default_rng(seed).normal(size=(width, count))
    unit: Float64 = directions / np.linalg.norm(directions, axis=0)
    return unit


def _unit(rows: Float64) -> Float64:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Float64 = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return unit
