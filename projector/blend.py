"""Blending projected VL embeddings with text embeddings; pure functions.

S any sequence length, T text tokens, D hidden.
"""

from torch import Tensor
from torch.nn import functional as F

from shards.errors import UsageError


def blend_interpolate(vl: Tensor, text: Tensor, alpha: float) -> Tensor:
    """Stretch or shrink the VL sequence to the text's length by linear interpolation, then mix the two.

    Args:
        vl: (S, D) projected VL embeddings.
        text: (T, D) text embeddings.
        alpha: 0 (text only) to 1 (VL only).

    Returns:
        (T, D) in the text's dtype and on its device: alpha * vl + (1 - alpha) * text.

    Raises:
        UsageError: alpha outside [0, 1], or shapes that do not fit.
    """
    if not 0.0 <= alpha <= 1.0:  # NaN fails this, too
        raise UsageError(f"alpha = {alpha} is outside [0, 1]; 0 is text only, 1 is VL only")
    if (
        vl.dim() != 2
        or text.dim() != 2
        or vl.shape[-1] != text.shape[-1]
        or not vl.shape[0]
        or not text.shape[0]
    ):
        raise UsageError(
            f"cannot blend vl {tuple(vl.shape)} with text {tuple(text.shape)}; "
            "both must be (sequence, D) with the same D and at least one token"
        )
    if alpha == 0.0:
        return text.clone()
    stretched = vl.float()
    if vl.shape[0] != text.shape[0]:
        stretched = F.interpolate(stretched.T[None], size=text.shape[0], mode="linear", align_corners=False)[
            0
        ].T
    return (alpha * stretched.to(text.device) + (1 - alpha) * text.float()).to(text.dtype)
