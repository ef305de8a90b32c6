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

from projector.align import Alignment, masked_mean, soft_targets
from projector.data import Resident
from projector.networks import ProjectorNetwork
from projector.world import World

PENALTIES = tuple(
    float(penalty) for penalty in np.logspace(-5, 2, 29)
)  # of the mean eigenvalue, which is near 1


SOFT_ROUNDS = 3  # matches hardly move after the first
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
    def empty(cls, width: int) -> "NormalEquations":
        """Of no rows."""
        square = torch.zeros(width, width, dtype=torch.float64)
        return cls(0.0, square, square.clone(), torch.zeros(width, dtype=torch.float64))

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in rows (n, D) of both sides, standardised."""
        self.count += len(x)
        self.xx += (x.T @ x).double().cpu()
        self.xy += (x.T @ y).double().cpu()
        self.yy += y.double().square().sum(0).cpu()

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
    network: ProjectorNetwork, train_set: Resident, val_set: Resident, alignment: Alignment, world: World
) -> dict[str, float]:
    """Put the ridge solution into a network whose core is one linear layer.

    Under `soft` the first fit is on means; each further round matches tokens by what the last one predicts.
    The covariance of the inputs stays, so the rounds share one decomposition.

    Args:
        network: statistics set; its weights are overwritten.
        train_set: this worker's training pairs.
        val_set: this worker's held-out pairs; they choose the penalty.
        alignment: of the pairs.
        world: all workers; each adds up its own pairs.

    Returns:
        the penalty chosen, relative to the mean eigenvalue, and the rounds taken.
    """
    sets = (train_set, val_set)
    soft = alignment.kind == "soft"
    equations, held_out = (
        _equations(network, pairs, "mean" if soft else "rows").merged(world) for pairs in sets
    )
    spectrum = Spectrum.of(equations)
    penalty = _solve(network, spectrum, equations, held_out)
    if soft:
        for turn in range(SOFT_ROUNDS):
            equations, held_out = (_equations(network, pairs, "soft").merged(world) for pairs in sets)
            spectrum = Spectrum.of(equations) if turn == 0 else spectrum
            penalty = _solve(network, spectrum, equations, held_out)
    return {"penalty": penalty, "rounds": 1 + SOFT_ROUNDS * soft}


def _solve(
    network: ProjectorNetwork, spectrum: Spectrum, equations: NormalEquations, held_out: NormalEquations
) -> float:
    """Choose the penalty on held-out rows and set the network's weights; returns the penalty."""
    errors = spectrum.validation_errors(equations, held_out)
    penalty = PENALTIES[int(np.argmin(errors))]
    linear = cast(nn.Linear, network.core)
    with torch.no_grad():
        linear.weight.copy_(spectrum.solve(equations, penalty).T)
        linear.bias.zero_()  # both sides are centred
    return penalty


@torch.no_grad()
def _equations(
    network: ProjectorNetwork, pairs: Resident, rows: Literal["rows", "mean", "soft"]
) -> NormalEquations:
    """Add up this worker's rows: as aligned, one mean per pair, or softly matched to the network's predictions."""
    equations = NormalEquations.empty(network.shape.width)
    device = network.input_mean.device
    for part in torch.split(torch.arange(len(pairs.keys)), PAIRS_AT_A_TIME) if pairs.keys else ():
        batch = pairs.batch(part).to(device)
        x = (batch.inputs.float() - network.input_mean) / network.input_std
        y = network.standardise_target(batch.targets)
        if rows == "mean":
            equations.update(masked_mean(x, batch.input_mask)[:, 0], masked_mean(y, batch.target_mask)[:, 0])
            continue
        if rows == "soft":
            y = soft_targets(network(batch.inputs), y, batch.input_mask, batch.target_mask)
        equations.update(x[batch.input_mask], y[batch.input_mask])
    return equations
