"""Training losses as sums that add up over workers: a sum of errors here, a division by the global count
there.

B batch, L aligned positions, D hidden.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from projector.options import Loss
from shards.errors import UsageError


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
            raise UsageError(
                f"train.dim_weights names dimension {dimension}, but the embeddings have {weights.numel()}; "
                f"use 0 to {weights.numel() - 1}"
            )
        weights[dimension] *= weight
    return weights


def masked_squared_error(outputs: Tensor, targets: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Sum over the positions that exist of the weighted mean squared error over dimensions.

    Args:
        outputs: (B, L, D) float32, standardised.
        targets: (B, L, D) float32, standardised.
        mask: (B, L) bool; what stands where it is False does not matter, not even NaN.
        weights: (D,) from `dimension_weights`.

    Returns:
        scalar; divided by the number of True in all workers' masks it is the loss.
    """
    difference = torch.where(mask[..., None], outputs - targets, 0.0)
    return (difference**2 * weights).sum() / outputs.shape[-1]
