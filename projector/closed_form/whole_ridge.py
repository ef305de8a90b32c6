"""Ridge from all of a picture's tokens to a whole conditioning, in closed form and of low rank: where networks start.

From a few hundred pairs attention does not find which token tells what; a linear map that sees every token at its
place does. Its inputs are too many for normal equations (64 positions of 2560) and its pairs are few, so it is solved
in the dual: what is added up and inverted has a row for each pair.

N pairs, P positions of the inputs, R rows of a conditioning, D hidden, r rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from projector.data.world import World

PENALTIES = tuple(float(penalty) for penalty in np.logspace(-3, 2, 21))  # of the mean eigenvalue
STILL = 1e-10  # mean square of standardised numbers about their mean: smaller ones are rounding


@dataclass(frozen=True)
class WholeRidge:
    """A map of (P, D) inputs to (R, D) outputs: inputs x down x up + bias."""

    down: Tensor
    """(P, D, r) float32."""
    up: Tensor
    """(r, R, D) float32."""
    bias: Tensor
    """(R, D) float32."""
    penalty: float
    """Chosen, relative to the mean eigenvalue of the inputs' Gram matrix."""


def fit_whole(
    inputs: Tensor, targets: Tensor, places: Tensor, weights: Tensor, rank: int, world: World
) -> WholeRidge:
    """Solve ridge with an intercept, choose the penalty by leaving one out, and cut to the rank that loses least.

    Ridge of reduced rank: Mukherjee and Zhu, 2011, https://doi.org/10.1002/sam.10138. The error with one pair left
    out follows from the fit of all: Allen's PRESS, 1974, https://doi.org/10.1080/00401706.1974.10489157.

    Args:
        inputs: (n, P, D) of this worker's pairs, standardised.
        targets: (n, R, D) of the same.
        places: (n,) int64 places of these pairs among all, on the CPU.
        weights: (N,) float64, what each pair of all workers counts.
        rank: r at most.
        world: all workers; each calls this.

    Returns:
        the same map on every worker, on the CPU; the mean of the targets where all inputs or all targets are alike,
        as those of one pair are.
    """
    roots = (weights / weights.mean()).sqrt()  # rows times these are rows that count alike
    of_inputs, of_targets = (_gram(side, places, roots, world) for side in (inputs, targets))
    mean_input, mean_target = (_mean(side, places, roots, world) for side in (inputs, targets))
    if _still(of_inputs, inputs) or _still(of_targets, targets):
        down, up = torch.zeros(*mean_input.shape, 0), torch.zeros(0, *mean_target.shape)
        return WholeRidge(down, up, mean_target.float(), PENALTIES[-1])
    values, vectors = torch.linalg.eigh(of_inputs)
    values = values.clamp(min=0)
    errors = [
        _error_left_out(values, vectors, of_targets, roots, penalty * float(values.mean()))
        for penalty in PENALTIES
    ]
    best = PENALTIES[int(np.argmin(errors))]
    shrunk = best * float(values.mean())
    inverse = vectors / (values + shrunk) @ vectors.T
    fit = vectors * (values / (values + shrunk)) @ vectors.T
    spread, directions = torch.linalg.eigh(fit @ of_targets @ fit)
    kept = min(rank, len(weights))
    spread, directions = spread[-kept:].clamp(min=1e-12 * float(spread[-1])), directions[:, -kept:]
    scaled = fit @ directions / spread.sqrt()  # (N, r): the targets' own directions are its sums over pairs
    up = _summed(scaled, targets, places, roots, world)
    down = _summed(inverse @ of_targets @ scaled, inputs, places, roots, world)
    bias = mean_target - torch.einsum("pd,rpd,rqe->qe", mean_input, down, up)
    return WholeRidge(down.permute(1, 2, 0).float(), up.float(), bias.float(), best)


def _gram(rows: Tensor, places: Tensor, roots: Tensor, world: World) -> Tensor:
    """(N, N) float64 products of all pairs' centred rows, of whatever worker, times the roots of their weights."""
    count = len(roots)
    total = torch.zeros(count, count, dtype=torch.float64)
    for column in _columns(rows):
        everyone = torch.zeros(count, column.shape[1], dtype=torch.float64)
        everyone[places] = column
        everyone = world.add(everyone)
        everyone = (everyone - roots.square() @ everyone / count) * roots[:, None]
        total += everyone @ everyone.T
    return total


def _mean(rows: Tensor, places: Tensor, roots: Tensor, world: World) -> Tensor:
    """(positions, D) float64: mean over all pairs by their weights."""
    weights = roots[places].square() / len(roots)
    return world.add(torch.stack([weights @ column for column in _columns(rows)]))


def _still(gram: Tensor, rows: Tensor) -> bool:
    """Whether rows (n, positions, D) with these products do not differ from pair to pair."""
    return float(gram.trace()) <= STILL * len(gram) * rows.shape[1] * rows.shape[2]


def _error_left_out(
    values: Tensor, vectors: Tensor, of_targets: Tensor, roots: Tensor, penalty: float
) -> float:
    """Weighted squared error on each pair of the fit to all others, summed: residual over one minus leverage."""
    inverse = vectors / (values + penalty) @ vectors.T
    residuals = penalty**2 * ((inverse @ of_targets) * inverse).sum(1)
    # One minus leverage; the intercept has the weight's share.
    free = penalty * inverse.diagonal() - roots.square() / len(roots)
    return float((residuals / free.clamp(min=1e-9).square()).sum())


def _summed(shares: Tensor, rows: Tensor, places: Tensor, roots: Tensor, world: World) -> Tensor:
    """(r, positions, D) float64: sums of all pairs' centred and weighted rows by (N, r) shares."""
    scaled = shares * roots[:, None]
    centred = scaled - roots.square()[:, None] * scaled.sum(0) / len(roots)  # does what centred rows would
    mine = centred[places]
    found = [world.add(mine.T @ column) for column in _columns(rows)]
    return torch.stack(found, 1)


def _columns(rows: Tensor) -> Iterator[Tensor]:
    """(n, D) float64 of each position, one at a time: all together would be gigabytes."""
    for position in range(rows.shape[1]):
        yield rows[:, position].double().cpu()
