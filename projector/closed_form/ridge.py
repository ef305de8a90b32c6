"""Ridge regression in closed form: one pass for the normal equations, one eigendecomposition for every
penalty.

n rows, D hidden. Everything happens in standardised space, where the condition number is about 2.7e3; raw,
with the attention sink in, it is 2.4e9. Rows are multiplied in float32 blocks and added up in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from projector.data.align import Alignment, area_weights, masked_mean, soft_targets
from projector.data.packed import Batch, Held
from projector.data.world import World
from projector.network.architectures import ProjectorNetwork, Shape

PENALTIES = tuple(
    float(penalty) for penalty in np.logspace(-5, 2, 29)
)  # of the mean eigenvalue, which is near 1
PAIRS_AT_A_TIME = 64


@dataclass
class NormalEquations:
    """Sums over rows (x, y) of x xᵀ, x yᵀ and y², about fixed origins: they add up over blocks and workers."""

    count: float
    xx: Tensor
    """(D, D) float64."""
    xy: Tensor
    """(D, D) float64."""
    yy: Tensor
    """(D,) float64."""

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> "NormalEquations":
        """Of no rows."""
        square = torch.zeros(width, width, dtype=torch.float64, device=device)
        return cls(0.0, square, square.clone(), square.new_zeros(width))

    def update(self, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """Take in rows.

        Args:
            x, y: (n, D) both sides, standardised.
            weights: (n,) what each row counts.
        """
        self.count += float(weights.sum())
        weighted = x * weights[:, None]
        self.xx += (weighted.T @ x).double()
        self.xy += (weighted.T @ y).double()
        self.yy += (y.double().square() * weights[:, None]).sum(0)

    def merged(self, world: World) -> "NormalEquations":
        """The sums over all workers."""
        count = world.add(torch.tensor([self.count], dtype=torch.float64))
        return NormalEquations(float(count), world.add(self.xx), world.add(self.xy), world.add(self.yy))


@dataclass(frozen=True)
class Spectrum:
    """The eigendecomposition of x's covariance, from which the solution for any penalty follows."""

    values: Tensor
    """(D,) eigenvalues, float64."""
    vectors: Tensor
    """(D, D) eigenvectors in columns, float64."""

    @classmethod
    def of(cls, equations: NormalEquations) -> "Spectrum":
        """Decompose xx / n."""
        values, vectors = torch.linalg.eigh(equations.xx / equations.count)
        return cls(values.clamp(min=0), vectors)

    def solve(self, equations: NormalEquations, penalty: float) -> Tensor:
        """Weights W (D in, D out) that minimise |xW - y|² / n + penalty * mean eigenvalue * |W|², float64.

        Args:
            equations: with the xx that was decomposed.
            penalty: relative to the mean eigenvalue.
        """
        rotated = self.vectors.T @ (equations.xy / equations.count)
        return self.vectors @ (rotated / (self.values + penalty * self.values.mean())[:, None])

    def validation_errors(
        self, equations: NormalEquations, held_out: NormalEquations, penalties: Sequence[float] = PENALTIES
    ) -> list[float]:
        """Mean squared error per number on held-out rows, for every penalty, without touching a row again."""
        a = self.vectors.T @ (equations.xy / equations.count)
        b = self.vectors.T @ (held_out.xy / held_out.count)
        agreement = (a * b).sum(1)
        energy = (self.vectors.T @ (held_out.xx / held_out.count) @ self.vectors) * (a @ a.T)
        total = float(held_out.yy.sum() / held_out.count)
        errors = []
        for penalty in penalties:
            shrink = 1 / (self.values + penalty * self.values.mean())
            fitted = float(shrink @ energy @ shrink) - 2 * float(shrink @ agreement)
            errors.append((total + fitted) / len(self.values))
        return errors


def fit_ridge(
    network: ProjectorNetwork, train_set: Held, val_set: Held, alignment: Alignment, world: World
) -> dict[str, float]:
    """Put the ridge solution into a network whose core is one linear layer.

    Under `soft` the first fit is on means, which are also what held-out pairs judge; the second is on tokens
    matched by what the first predicts, and is kept where held-out pairs say it is better. More rounds were
    tried: the matches no longer move.

    Args:
        network: statistics set; its weights are overwritten.
        train_set: this worker's training pairs.
        val_set: this worker's held-out pairs; they choose the penalty.
        alignment: of the pairs.
        world: all workers; each adds up its own pairs.

    Returns:
        the penalty chosen, relative to the mean eigenvalue, and the held-out error.
    """
    soft = alignment.kind == "soft"
    held_out = _equations(network, val_set, "mean" if soft else "rows").merged(world)
    found = _solve(
        network, _equations(network, train_set, "mean" if soft else "rows").merged(world), held_out
    )
    if not soft:
        return found
    on_means = cast(nn.Linear, network.core).weight.detach().clone()
    matched = _solve(network, _equations(network, train_set, "soft").merged(world), held_out)
    if matched["held_out_error"] < found["held_out_error"]:
        return matched
    with torch.no_grad():
        cast(nn.Linear, network.core).weight.copy_(on_means)
    return found


def _solve(
    network: ProjectorNetwork, equations: NormalEquations, held_out: NormalEquations
) -> dict[str, float]:
    """Choose the penalty on held-out rows and set the network's weights."""
    spectrum = Spectrum.of(equations)
    errors = spectrum.validation_errors(equations, held_out)
    best = int(np.argmin(errors))
    linear = cast(nn.Linear, network.core)
    with torch.no_grad():
        linear.weight.copy_(spectrum.solve(equations, PENALTIES[best]).T)
        linear.bias.zero_()  # both sides are centred
    return {"penalty": PENALTIES[best], "held_out_error": errors[best]}


@torch.no_grad()
def _equations(
    network: ProjectorNetwork, pairs: Held, rows: Literal["rows", "mean", "soft"]
) -> NormalEquations:
    """Add up this worker's rows: as aligned, one mean per pair, or softly matched to the network's predictions."""
    device = network.input_mean.device
    equations = NormalEquations.empty(network.shape.width, device)
    parts = torch.split(torch.arange(len(pairs.keys)), PAIRS_AT_A_TIME) if pairs.keys else ()
    for batch in (held.to(device) for held in pairs.batches(parts)):
        x = (batch.inputs.float() - network.input_mean) / network.input_std
        y, mask = network.standardise_target(batch.targets), batch.target_mask
        if rows == "mean":
            x, y = masked_mean(x, batch.input_mask), masked_mean(y, mask)
            mask = mask[:, :1]
        elif rows == "soft":
            y, mask = soft_targets(network(batch.inputs), y, batch.input_mask, mask), batch.input_mask
        else:
            x = _at_targets(x, batch)
        weights = batch.weights[:, None].expand_as(mask)[mask]
        equations.update(x[mask], y[mask], weights)
    return equations


def _at_targets(x: Tensor, batch: Batch) -> Tensor:
    """Inputs (B, S, D) at the targets' positions (B, L, D); a network without positions was given all tokens."""
    have, want = batch.input_mask.sum(1), batch.target_mask.sum(1)
    if torch.equal(have, want):
        return x
    return area_weights(have, want).float() @ torch.where(batch.input_mask[..., None], x, 0.0)


def ridge_like(
    network: ProjectorNetwork, train_set: Held, val_set: Held, alignment: Alignment, world: World
) -> tuple[ProjectorNetwork, dict[str, float]]:
    """The ridge solution for a network's pairs, in its standardisation.

    Args:
        network: any kind, statistics set.
        train_set, val_set, alignment, world: see `fit_ridge`.

    Returns:
        a linear network, and what `fit_ridge` found.
    """
    ridge = ProjectorNetwork(Shape("ridge", network.shape.width, hidden=0, queries=0)).to(world.device)
    for name in ("input_mean", "input_std", "target_mean", "target_std"):
        getattr(ridge, name).copy_(getattr(network, name))
    return ridge, fit_ridge(ridge, train_set, val_set, alignment, world)
