"""Training losses as sums that add up over workers: a sum of errors here, a division by the global count
there.

B batch, L aligned positions, D hidden.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from projector.options import Loss
from shards.errors import OptionError


def dimension_weights(loss: Loss, named: Mapping[int, float] | None, target_std: Tensor) -> Tensor:
    """What one squared error in standardised space weighs, per dimension.

    Args:
        loss: `mse` weighs every standardised dimension alike, `raw_mse` by the target's variance, which makes
            it the error in raw units.
        named: weights by dimension that multiply those; the guide's are {396: 10, 4: 5}.
        target_std: (D,) the standardisation's standard deviations.

    Returns:
        (D,) float32.

    Raises:
        UsageError: a named dimension does not exist.
    """
    weights = (
        target_std.float() ** 2 if loss == "raw_mse" else torch.ones_like(target_std, dtype=torch.float32)
    )
    for dimension, weight in (named or {}).items():
        if dimension >= weights.numel():
            raise OptionError(
                f"dim_weights names dimension {dimension}, but the embeddings have {weights.numel()}; "
                f"use 0 to {weights.numel() - 1}"
            )
        weights[dimension] *= weight
    return weights


def masked_error(
    outputs: Tensor, targets: Tensor, mask: Tensor, weights: Tensor, pair_weights: Tensor, loss: Loss = "mse"
) -> Tensor:
    """Sum over the positions that exist of their errors.

    Args:
        outputs: (B, L, D) float32, standardised.
        targets: (B, L, D) float32, standardised.
        mask: (B, L) bool; what targets hold where it is False does not matter, not even NaN; outputs are finite.
        weights: (D,) from `dimension_weights`.
        pair_weights: (B,) what each pair counts.
        loss: `huber` is quadratic up to one standard deviation and linear beyond; `cosine` is one minus the cosine
            of the weighted vectors; the others are squared errors, averaged over dimensions.

    Returns:
        scalar; divided by the sum over all workers of mask times pair weight it is the loss.
    """
    kept = mask[..., None]
    if loss in ("mse", "raw_mse"):  # in few passes over (B, L, D): beside a small network's step they count
        sound = torch.where(
            kept, targets, 0.0
        )  # a NaN there would reach the gradient, though it weighs nothing
        squares = functional.mse_loss(outputs, sound, reduction="none") @ weights
        return (torch.where(mask, squares, 0.0).sum(-1) * pair_weights).sum() / weights.numel()
    outputs, targets = torch.where(kept, outputs, 0.0), torch.where(kept, targets, 0.0)
    if loss == "cosine":
        scale = weights.sqrt()
        errors = (1 - functional.cosine_similarity(outputs * scale, targets * scale, dim=-1)) * mask
    else:
        errors = (functional.huber_loss(outputs, targets, reduction="none") * weights).mean(-1)
    return (errors.sum(-1) * pair_weights).sum()


def spread_error(
    outputs: Tensor, targets: Tensor, output_mask: Tensor, target_mask: Tensor, pair_weights: Tensor
) -> Tensor:
    """Sum over pairs of how far the spread over a pair's tokens is from the target's, times the pair's positions.

    Squared error alone shrinks outputs towards the mean, where all tokens of a picture become one; this holds them
    apart. It is a term of each pair, so it adds up over workers as the errors do.

    Args:
        outputs: (B, M, D) standardised; `output_mask` (B, M) bool.
        targets: (B, L, D) standardised; `target_mask` (B, L) bool.
        pair_weights: (B,).

    Returns:
        scalar: sum over pairs of positions * mean over dimensions of (std - std)^2.
    """
    difference = masked_std(outputs, output_mask) - masked_std(targets, target_mask)
    return (difference.square().mean(-1) * output_mask.sum(1) * pair_weights).sum()


def masked_std(rows: Tensor, mask: Tensor) -> Tensor:
    """(B, D) standard deviation of (B, S, D) over the positions that exist; its gradient is finite at zero."""
    count = mask.sum(1)[:, None].clamp(min=1)
    kept = torch.where(mask[..., None], rows, 0.0)
    deviations = torch.where(mask[..., None], kept - (kept.sum(1) / count)[:, None], 0.0)
    return (deviations.square().sum(1) / count + 1e-12).sqrt()
