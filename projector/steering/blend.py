"""Blending projected VL embeddings with text embeddings; pure functions.

The modes are those of the training guide's code base: interpolated, linear (which truncates), and AdaIN over the
whole sequence or per dimension. Its AdaIN gives the text the VL tokens' statistics, whose outliers break pictures;
here the VL tokens are given the text's, which the image model knows. Alpha 0 is the whole text in every mode.

S any sequence length, T text tokens, L the shorter of both, D hidden.
"""

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from shards.errors import UsageError

Blend = Literal["interpolate", "linear", "adain", "adain_per_dim"]

FLAT = 1e-6  # smaller standard deviations, relative to the text's, are rounding and are not divided by


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
    _check(vl, text, alpha)
    if alpha == 0.0:
        return text.clone()
    stretched = vl.float()
    if vl.shape[0] != text.shape[0]:
        stretched = F.interpolate(stretched.T[None], size=text.shape[0], mode="linear", align_corners=False)[
            0
        ].T
    return _mixed(stretched, text, alpha)


def blend_linear(vl: Tensor, text: Tensor, alpha: float) -> Tensor:
    """Mix position with position and cut the longer sequence off: most of a picture is lost on a short prompt.

    Args:
        vl: (S, D) projected VL embeddings.
        text: (T, D) text embeddings.
        alpha: 0 (text only) to 1 (VL only).

    Returns:
        (L, D) in the text's dtype and on its device; (T, D), the text, at alpha 0.

    Raises:
        UsageError: alpha outside [0, 1], or shapes that do not fit.
    """
    _check(vl, text, alpha)
    if alpha == 0.0:
        return text.clone()
    shorter = min(vl.shape[0], text.shape[0])
    return _mixed(vl[:shorter].float(), text[:shorter], alpha)


def blend_adain(vl: Tensor, text: Tensor, alpha: float) -> Tensor:
    """Give the VL tokens the text's mean and standard deviation over all numbers, then blend by interpolation.

    Adaptive instance normalisation (Huang and Belongie, 2017) towards the text, which conditions the image model.

    Args:
        vl: (S, D) projected VL embeddings.
        text: (T, D) text embeddings.
        alpha: 0 (text only) to 1 (VL only).

    Returns:
        (T, D) in the text's dtype and on its device.

    Raises:
        UsageError: alpha outside [0, 1], or shapes that do not fit.
    """
    _check(vl, text, alpha)
    return blend_interpolate(_renormalised(vl, text, (0, 1)), text, alpha)


def blend_adain_per_dim(vl: Tensor, text: Tensor, alpha: float) -> Tensor:
    """Give each dimension of the VL tokens the text's mean and standard deviation, then blend by interpolation.

    Args:
        vl: (S, D) projected VL embeddings.
        text: (T, D) text embeddings.
        alpha: 0 (text only) to 1 (VL only).

    Returns:
        (T, D) in the text's dtype and on its device. A dimension in which the VL tokens do not vary becomes the
        text's mean.

    Raises:
        UsageError: alpha outside [0, 1], or shapes that do not fit.
    """
    _check(vl, text, alpha)
    return blend_interpolate(_renormalised(vl, text, (0,)), text, alpha)


BLENDS: Mapping[Blend, Callable[[Tensor, Tensor, float], Tensor]] = {
    "interpolate": blend_interpolate,
    "linear": blend_linear,
    "adain": blend_adain,
    "adain_per_dim": blend_adain_per_dim,
}


def _check(vl: Tensor, text: Tensor, alpha: float) -> None:
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


def _mixed(vl: Tensor, text: Tensor, alpha: float) -> Tensor:
    return (alpha * vl.to(text.device) + (1 - alpha) * text.float()).to(text.dtype)


def _renormalised(vl: Tensor, text: Tensor, over: tuple[int, ...]) -> Tensor:
    """(S, D) float32: the VL tokens with the text's mean and standard deviation over these axes."""
    vl, text = vl.float().to(text.device), text.float()
    mean_vl, mean_text = vl.mean(over, keepdim=True), text.mean(over, keepdim=True)
    # Of a single token there is no unbiased estimate; dividing by n gives 0 there instead of NaN.
    std_vl = vl.std(over, correction=0, keepdim=True)
    std_text = text.std(over, correction=0, keepdim=True)
    scale = std_text / std_vl.clamp(min=FLAT * float(text.std(correction=0)) or FLAT)
    return (vl - mean_vl) * scale + mean_text
