"""A mask over part of the picture splits an entry of a conditioning in two, whose masks together are the entry's own.

ComfyUI averages the entries of a conditioning at each place, weighted by their masks, and resizes masks to the latent.
B pictures, H height, W width.
"""

from typing import Any

import torch
from torch import Tensor

from shards.errors import UsageError


def inside_and_outside(
    values: dict[str, Any], mask: Tensor | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Values of an entry where the mask is 1 and where it is 0; a mask between the two mixes both.

    Args:
        values: the entry's own, which may have a mask already.
        mask: (H, W) or (B, H, W), 0 to 1; None: everywhere.

    Returns:
        the values of each side, None where there is no such place.
    """
    if mask is None:
        return values, None
    if mask.dim() not in (2, 3):
        raise UsageError(f"mask of shape {tuple(mask.shape)}; expected (H, W) or (B, H, W): connect a MASK")
    mask = mask.reshape(-1, *mask.shape[-2:]).float().clamp(0, 1)
    sides = [_narrowed(values.get("mask"), side) for side in (mask, 1 - mask)]
    inside, outside = (values | {"mask": side} if side.any() else None for side in sides)
    return inside, outside


def _narrowed(earlier: Tensor | None, side: Tensor) -> Tensor:
    """(B, H, W) product of the entry's mask, in whose size it is, and a side."""
    if earlier is None:
        return side
    earlier = earlier.reshape(-1, *earlier.shape[-2:])
    if len({len(earlier), len(side)} - {1}) > 1:
        raise UsageError(
            f"mask of {len(side)} pictures on a conditioning with a mask of {len(earlier)}; give one or as many"
        )
    size = tuple(earlier.shape[-2:])
    sized = torch.nn.functional.interpolate(side[:, None], size, mode="bilinear")[:, 0]
    return earlier * sized.to(earlier)
