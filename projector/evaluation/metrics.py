"""Metrics of predicted against target embeddings: sums in float64, mergeable, equal to plain numpy.

n rows (tokens or means), D hidden, K directions, R weightings.

Of each group of pairs two numbers are kept, its squared error and its rows; nothing else grows with the number of
pairs. Two figures need samples rather than sums, retrieval and the Wasserstein distance: they keep a bounded number
of pairs, the same ones whatever the order or the workers.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from projector.evaluation.distances import retrieval, sliced_wasserstein, weighted_wasserstein
from projector.evaluation.intervals import GroupSums, percentiles, resampled
from projector.evaluation.moments import (
    REPLICATES,
    Float64,
    Moments,
    WeightedSums,
    bootstrap_weights,
    row_sums,
)

Float32 = NDArray[np.float32]

OUTLIER_RATIO = 2.0  # the guide's: a dimension with more than twice the target's std
COLLAPSED_RATIO = 0.5  # its mirror image, which regression to the mean produces
RMS_EPSILON = 1e-6  # of Qwen3's RMSNorm
TOKENS_PER_PAIR = 32  # evenly spaced, for the Wasserstein distance
KEPT_PAIRS = 1000  # candidates of retrieval, as in the 1K test sets of image-text retrieval
DIRECTIONS_OF_REPLICATES = 16  # of the Wasserstein distance: its interval needs no more
NAMED_DIMENSIONS = (4, 396)  # the published outliers
WORST = 10
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def rms_norm(rows: Tensor) -> Tensor:
    """Each row divided by its root mean square: what the DiT's first layer does to its conditioning."""
    return rows / (rows.square().mean(-1, keepdim=True) + RMS_EPSILON).sqrt()


@dataclass(frozen=True)
class Standard:
    """The units that errors are measured in: those of target tokens in the training split."""

    mean: Float64
    """(D,) mean."""
    std: Float64
    """(D,) standard deviation, 1 where it is 0."""
    directions: Float64
    """(D, K) unit vectors of the sliced Wasserstein distance."""

    def standardised(self, rows: Float64) -> Float64:
        """Rows (…, D) in these units."""
        return (rows - self.mean) / self.std

    def slices(self, tokens: Float64) -> Float32:
        """(k, K) a bounded number of tokens (n, D) along the directions."""
        chosen = tokens[np.unique(np.linspace(0, len(tokens) - 1, TOKENS_PER_PAIR).round().astype(int))]
        return (self.standardised(chosen) @ self.directions).astype(np.float32)

    def target(
        self, key: str, content: Tensor, tokens: Tensor, replicates: int = REPLICATES, *, group: str = ""
    ) -> "Target":
        """A pair's caption side, measured once for all methods.

        Args:
            key: of the pair.
            group: of the pair; decides its weights in the replicates. Empty: a group of its own.
            content: (L, D) the rows that predictions answer for, raw.
            tokens: (Q, D) the caption's tokens, for how they are distributed.
            replicates: of the bootstrap.
        """
        rows = content.double()
        everything = tokens.double().numpy()
        shifted = everything - self.mean
        return Target(
            key=key,
            group=group or key,
            weights=bootstrap_weights(group or key, replicates),
            content=rows,
            normed=rms_norm(rows),
            tokens=len(everything),
            token_sums=np.stack([shifted.sum(0), np.einsum("nd,nd->d", shifted, shifted)]),
            gallery=self.standardised(rows.mean(0).numpy()).astype(np.float32),
            slices=self.slices(everything),
        )


@dataclass(frozen=True)
class Target:
    """What figures need of a pair's caption side; made by `Standard.target`."""

    key: str
    group: str
    """What is drawn anew together."""
    weights: Float64
    """(R,) what the pair counts in the figure itself and in each replicate."""
    content: Tensor
    """(L, D) float64."""
    normed: Tensor
    """(L, D) the same after RMSNorm."""
    tokens: int
    """Q."""
    token_sums: Float64
    """(2, D) sums of tokens and of their squares, about the standard's mean."""
    gallery: Float32
    """(D,) mean of the content, standardised."""
    slices: Float32
    """(k, K) tokens along the directions."""


@dataclass(frozen=True)
class _Kept:
    """A pair of the bounded sample."""

    target: Target
    query: Float32
    """(D,) mean of the predictions, standardised."""
    slices: Float32
    """(k, K) predicted tokens along the directions."""


class Metrics:
    """Everything measured of one method.

    Content rows are aligned one to one: row i of the prediction answers for row i of the target. Tokens are
    the two sides' tokens as sets, of any number each, for how they are distributed.

    Args:
        standard: the units.
        replicates: of the bootstrap, the same as the targets'; 0 for no intervals.
    """

    def __init__(self, standard: Standard, replicates: int = REPLICATES) -> None:
        self.standard = standard
        width, weightings = len(standard.mean), 1 + replicates
        self._content = WeightedSums((5, width), weightings)
        self._normed = WeightedSums((5, width), weightings)
        self._tokens = WeightedSums((4, width), weightings)
        self._scalars = WeightedSums((5,), weightings)
        self._kept: dict[str, _Kept] = {}
        self._errors: dict[str, Float64] = {}

    def update(self, target: Target, predicted: Tensor, tokens: Tensor) -> None:
        """Take in one pair.

        Args:
            target: its caption side.
            predicted: (L, D) aligned predictions, raw.
            tokens: (P, D) predicted tokens whose distribution counts.
        """
        x, y = predicted.double(), target.content
        normed = rms_norm(x)
        error = (((x - y).numpy() / self.standard.std) ** 2).mean(1).sum()
        self._add_error(target.group, np.array([error, len(x)]))
        everything = tokens.double().numpy()
        shifted = everything - self.standard.mean
        weights = target.weights
        self._content.add(weights, row_sums(x.numpy() - self.standard.mean, y.numpy() - self.standard.mean))
        self._normed.add(weights, row_sums(normed.numpy(), target.normed.numpy()))
        sums = np.stack([shifted.sum(0), np.einsum("nd,nd->d", shifted, shifted)])
        self._tokens.add(weights, np.concatenate([sums, target.token_sums]))
        cosines = [
            float(torch.cosine_similarity(a, b, dim=-1).sum()) for a, b in ((x, y), (normed, target.normed))
        ]
        self._scalars.add(weights, np.array([len(x), len(everything), target.tokens, *cosines]))
        query = self.standard.standardised(x.mean(0).numpy()).astype(np.float32)
        self._keep(target.key, _Kept(target, query, self.standard.slices(everything)))

    def _keep(self, key: str, kept: _Kept) -> None:
        self._kept[key] = kept
        if len(self._kept) > KEPT_PAIRS:
            del self._kept[max(self._kept, key=_lot)]

    def _add_error(self, group: str, error: Float64) -> None:
        self._errors[group] = self._errors.get(group, 0.0) + error

    def merge(self, other: "Metrics") -> None:
        """Take in what another worker has measured of the same method."""
        for group, error in other._errors.items():
            self._add_error(group, error)
        for name in ("_content", "_normed", "_tokens", "_scalars"):
            getattr(self, name).merge(getattr(other, name))
        for key, kept in other._kept.items():
            self._keep(key, kept)

    @property
    def rows(self) -> int:
        """Content rows taken in."""
        return int(self._scalars.total[0, 0])

    def profile(self) -> dict[str, Float64]:
        """Per dimension (D,): `std_ratio` of tokens (NaN where the target never moves), `correlation`, `r2`."""
        content = Moments(self.rows, self._content.total[0])
        return {
            "std_ratio": self._std_ratio(0),
            "correlation": content.correlation,
            "r2": content.r2,
        }

    def errors(self) -> GroupSums:
        """Standardised squared error and rows of each group; all methods meet the same groups."""
        return GroupSums.of(self._errors)

    def result(self) -> dict[str, Any]:
        """The figures under the names of eval.json, their intervals, and the dimensions that stand out."""
        sums = [self._of_sums(weighting) for weighting in range(len(self._scalars.total))]
        figures, replicates = sums[0], {}
        for name in figures:
            replicates[name] = np.array([found[name] for found in sums[1:] if found])
        del replicates["std_ratio_range"]  # the most extreme of a resample says little of the extremes
        for name, (figure, seen) in self._of_kept().items():
            figures[name], replicates[name] = figure, seen
        return {**figures, **self._intervals(replicates), **self._standing_out()}

    def _intervals(self, replicates: dict[str, Float64]) -> dict[str, Any]:
        """By figure the 95% interval over groups; nothing where there are too few of them, or no replicates."""
        errors = resampled({"mse_standardized": self.errors()})
        if not errors or not len(next(iter(replicates.values()))):
            return {}
        ends = percentiles(len(self._errors))
        found = {name: np.percentile(seen, ends).tolist() for name, seen in replicates.items()}
        found |= {name: each.interval() for name, each in errors.items()}
        return {"intervals": found}

    def _of_sums(self, weighting: int) -> dict[str, Any]:
        """The figures that sums give under a weighting; nothing where no pair counts in it."""
        count, _, _, cosine, normed_cosine = self._scalars.total[weighting]
        if not count:
            return {}
        content = Moments(count, self._content.total[weighting])
        ratio = self._std_ratio(weighting)
        ratio = ratio[~np.isnan(ratio)]
        error = content.squared_error
        return {
            "mse": float(error.mean()),
            "mse_standardized": float((error / self.standard.std**2).mean()),
            "cosine_similarity": float(cosine / count),
            "per_dim_correlation": float(np.median(content.correlation)),
            "r2": _nanmedian(content.r2),
            "std_ratio_range": [float(ratio.min()), float(ratio.max())] if len(ratio) else [1.0, 1.0],
            "outlier_dims": int((ratio > OUTLIER_RATIO).sum()),
            "collapsed_dims": int((ratio < COLLAPSED_RATIO).sum()),
            "rms_r2": _nanmedian(Moments(count, self._normed.total[weighting]).r2),
            "rms_cosine": float(normed_cosine / count),
        }

    def _std_ratio(self, weighting: int) -> Float64:
        _, predicted, real, _, _ = self._scalars.total[weighting]
        sums = self._tokens.total[weighting]
        empty = np.zeros_like(sums[0])
        x = Moments(predicted, np.stack([sums[0], empty, sums[1], empty, empty])).variance_x
        y = Moments(real, np.stack([sums[2], empty, sums[3], empty, empty])).variance_x
        return np.sqrt(np.divide(x, y, out=np.full_like(x, np.nan), where=y > 0))

    def _of_kept(self) -> dict[str, tuple[float, Float64]]:
        """Figures of the kept pairs, and their values in the replicates."""
        kept = [self._kept[key] for key in sorted(self._kept)]
        weights = np.array([pair.target.weights for pair in kept]).T
        counting = weights[1:][weights[1:].any(1)]
        groups = [pair.target.group for pair in kept]
        queries, gallery = (
            np.array(side, dtype=np.float64)
            for side in ([pair.query for pair in kept], [pair.target.gallery for pair in kept])
        )
        found = {
            f"recall_at_{rank}": (float(hits.mean()), counting @ hits / counting.sum(1))
            for rank, hits in zip((1, 5), retrieval(queries, gallery, groups), strict=True)
        }
        clouds = [[pair.slices for pair in kept], [pair.target.slices for pair in kept]]
        x, y = (np.concatenate(cloud) for cloud in clouds)
        distance = sliced_wasserstein(x, y)
        few = slice(0, DIRECTIONS_OF_REPLICATES)
        each = [
            np.repeat(np.vstack([weights[:1], counting]), [len(part) for part in cloud], axis=1)
            for cloud in clouds
        ]
        spread = weighted_wasserstein(x[:, few], each[0], y[:, few], each[1])
        found["sliced_wasserstein"] = (distance, distance + spread[1:] - spread[0])
        return found

    def _standing_out(self) -> dict[str, Any]:
        """Quantiles of the correlation, the published outlier dimensions and the worst ones by name."""
        profile = self.profile()

        def at(dimension: int) -> dict[str, float | None]:
            values = {name: float(values[dimension]) for name, values in profile.items()}
            return {name: None if np.isnan(value) else value for name, value in values.items()}

        correlation = profile["correlation"]
        moving = np.flatnonzero(~np.isnan(profile["std_ratio"]))
        worst = moving[np.argsort(correlation[moving], kind="stable")[:WORST]]
        return {
            "correlation_quantiles": {
                f"{quantile:g}": float(np.quantile(correlation, quantile)) for quantile in QUANTILES
            },
            "dimensions": {str(d): at(d) for d in NAMED_DIMENSIONS if d < len(correlation)},
            "worst_dimensions": [{"dimension": int(d), **at(int(d))} for d in worst],
        }


def _lot(key: str) -> bytes:
    """By which pairs are drawn into the bounded sample: the same whatever the order and the workers."""
    return hashlib.sha256(key.encode()).digest()


def _nanmedian(values: Float64) -> float:
    return float(np.nanmedian(values)) if not np.isnan(values).all() else 0.0
