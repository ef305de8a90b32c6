"""Ridge regression in closed form: one pass for the normal equations, one eigendecomposition for every penalty.

n rows, D hidden. Everything happens in standardised space, where the condition number is about 2.7e3; raw, with the
attention sink in, it is 2.4e9. Rows are multiplied in float32 blocks and added up in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from projector.world import World

PENALTIES = tuple(float(penalty) for penalty in np.logspace(-5, 2, 29))  # of the mean eigenvalue, which is near 1


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

    def update_targets(self, x: Tensor, y: Tensor) -> None:
        """Take in rows whose x has been seen before: xx stays."""
        self.xy += (x.T @ y).double().cpu()
        self.yy += y.double().square().sum(0).cpu()

    def forget_targets(self) -> None:
        """Start over with new y for the same x."""
        self.xy.zero_()
        self.yy.zero_()

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
