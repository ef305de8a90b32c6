"""Blending projected VL embeddings with text embeddings; pure functions.

The modes are those of the training guide's code base: interpolated, linear (which truncates), and AdaIN over the
whole sequence or per dimension. Its AdaIN gives the text the VL tokens' statistics, whose outliers break pictures;
here the VL tokens are given the text's, which the image model knows. Alpha 0 is the whole text in every mode.

Only the prompt's own rows are mixed. The template's rows are the same in every prompt and the attention sink among
them is 40 times as strong as others: mixed with a picture they are no longer what the image model was trained with.

S any sequence length, T text tokens, C caption rows among them, L the shorter of S and C, D hidden.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from projector.data.align import area_pool
from projector.data.template import SINK_RATIO, token_rms
from shards.errors import UsageError
from shards.format.sample import KIND_CAPTION

Blend = Literal["interpolate", "linear", "adain", "adain_per_dim"]

FLAT = 1e-6  # smaller standard deviations, relative to the text's, are rounding and are not divided by


def blend_interpolate(vl: Tensor, text: Tensor, alpha: float, kind: Tensor | None = None) -> Tensor:
    """Bring the VL sequence to the length of the prompt's own rows by area, so that every token counts, then mix.

    torch's linear interpolation reads two tokens for each row: 40 of a picture's 1,024 for a prompt of 20 rows.

    Args:
        vl: (S, D) projected VL embeddings.
        text: (T, D) text embeddings.
        alpha: 0 (text only) to 1 (VL only).
        kind: (T,) of each text row, as the text encoder gives it: only caption rows are mixed. None: all rows but
            attention sinks.

    Returns:
        (T, D) in the text's dtype and on its device: alpha * vl + (1 - alpha) * text in the rows that are mixed, the
        text in the others.

    Raises:
        UsageError: alpha outside [0, 1], shapes that do not fit, or no caption row.
    """
    rows = _mixed_rows(vl, text, alpha, kind)
    if alpha == 0.0:
        return text.clone()
    blended = text.clone()
    blended[rows] = _mixed(area_pool(vl.float(), int(rows.sum())), text[rows], alpha)
    return blended


def blend_linear(vl: Tensor, text: Tensor, alpha: float, kind: Tensor | None = None) -> Tensor:
    """Mix position with position and cut the longer sequence off: most of a picture is lost on a short prompt.

    Args:
        vl: (S, D) projected VL embeddings.
        text: (T, D) text embeddings.
        alpha: 0 (text only) to 1 (VL only).
        kind: (T,) of each text row, as the text encoder gives it: only caption rows are mixed. None: all rows but
            attention sinks.

    Returns:
        (T - C + L, D) in the text's dtype and on its device; (T, D), the text, at alpha 0.

    Raises:
        UsageError: alpha outside [0, 1], shapes that do not fit, or no caption row.
    """
    rows = _mixed_rows(vl, text, alpha, kind)
    if alpha == 0.0:
        return text.clone()
    places = torch.nonzero(rows)[:, 0]
    shorter = min(len(vl), len(places))
    blended = text.clone()
    blended[places[:shorter]] = _mixed(vl[:shorter].float(), text[places[:shorter]], alpha)
    kept = torch.ones_like(rows)
    kept[places[shorter:]] = False
    return blended[kept]


def blend_adain(vl: Tensor, text: Tensor, alpha: float, kind: Tensor | None = None) -> Tensor:
    """Give the VL tokens the text's mean and standard deviation over all numbers, then blend by interpolation.

    Adaptive instance normalisation (Huang and Belongie, 2017) towards the text, which conditions the image model.

    Args:
        vl: (S, D) projected VL embeddings.
        text: (T, D) text embeddings.
        alpha: 0 (text only) to 1 (VL only).
        kind: (T,) of each text row, as the text encoder gives it: only caption rows are mixed. None: all rows but
            attention sinks.

    Returns:
        (T, D) in the text's dtype and on its device.

    Raises:
        UsageError: alpha outside [0, 1], shapes that do not fit, or no caption row.
    """
    rows = _mixed_rows(vl, text, alpha, kind)
    return blend_interpolate(_renormalised(vl, text[rows], (0, 1)), text, alpha, kind)


def blend_adain_per_dim(vl: Tensor, text: Tensor, alpha: float, kind: Tensor | None = None) -> Tensor:
    """Give each dimension of the VL tokens the text's mean and standard deviation, then blend by interpolation.

    Args:
        vl: (S, D) projected VL embeddings.
        text: (T, D) text embeddings.
        alpha: 0 (text only) to 1 (VL only).
        kind: (T,) of each text row, as the text encoder gives it: only caption rows are mixed. None: all rows but
            attention sinks.

    Returns:
        (T, D) in the text's dtype and on its device. A dimension in which the VL tokens do not vary becomes the
        text's mean.

    Raises:
        UsageError: alpha outside [0, 1], shapes that do not fit, or no caption row.
    """
    rows = _mixed_rows(vl, text, alpha, kind)
    return blend_interpolate(_renormalised(vl, text[rows], (0,)), text, alpha, kind)


def blend_as_the_guide(vl: Tensor, text: Tensor, alpha: float) -> Tensor:
    """Mix as the training guide does: torch's linear interpolation to the text's length, template rows included.

    It reads two tokens for each row, and what it puts into the template's rows the image model has never seen there.

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
    stretched = functional.interpolate(vl.float().T[None], size=len(text), mode="linear", align_corners=False)
    return _mixed(stretched[0].T, text, alpha)


def concatenated(vl: Tensor, text: Tensor, kind: Tensor) -> Tensor:
    """Put rows behind a prompt's own, before the template's end.

    Args:
        vl: (S, D) projected VL embeddings.
        text: (T, D) text embeddings.
        kind: (T,) of each text row, as the text encoder gives it.

    Returns:
        (T + S, D) in the text's dtype and on its device.

    Raises:
        UsageError: shapes that do not fit, or no caption row.
    """
    _check(vl, text, 1.0)
    last = int(torch.nonzero(_caption_rows(text, kind))[-1]) + 1
    return torch.cat([text[:last], vl.to(text), text[last:]])


BLENDS: Mapping[Blend, Callable[[Tensor, Tensor, float, Tensor | None], Tensor]] = {
    "interpolate": blend_interpolate,
    "linear": blend_linear,
    "adain": blend_adain,
    "adain_per_dim": blend_adain_per_dim,
}


def _mixed_rows(vl: Tensor, text: Tensor, alpha: float, kind: Tensor | None) -> Tensor:
    """(T,) bool: the rows that a picture is mixed into, after the arguments were checked."""
    _check(vl, text, alpha)
    if kind is None:
        strength = token_rms(text)
        return strength <= SINK_RATIO * strength.median()
    return _caption_rows(text, kind)


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


def _caption_rows(text: Tensor, kind: Tensor) -> Tensor:
    """(T,) bool: the prompt's own rows."""
    if kind.shape != text.shape[:1]:
        raise UsageError(
            f"kind {tuple(kind.shape)} does not fit text {tuple(text.shape)}; give the kind of each of its rows"
        )
    rows = kind.to(text.device) == KIND_CAPTION
    if not rows.any():
        raise UsageError("kind names no caption row, so there is nothing to blend into; give a prompt")
    return rows


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
