"""How a reference picture conditions Z-Image, alone or together with a prompt: every mode, for every method.

R rows of a picture, T rows of a prompt, S tokens read from a picture, P and E rows of the template's begin and end,
D hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from projector.data.align import evenly
from projector.network.blend import BLENDS, Blend, blend_as_the_guide, concatenated
from projector.network.projector import Projector
from shards.errors import UsageError

Mode = Literal["alone", "concat", "guidance", "blend", "interpolate"]
MODES: tuple[Mode, ...] = get_args(Mode)
WITH_PROMPT: tuple[Mode, ...] = ("concat", "guidance", "blend", "interpolate")
DIALLED: tuple[Mode, ...] = ("guidance", "blend", "interpolate")
"""Modes with a value to turn, 0 (the text) to 1 (the picture); the others have one value, 1."""


@dataclass(frozen=True)
class ReferenceRows:
    """A picture in the image model's words: what a method makes of its tokens, and the template around it."""

    prefix: Tensor
    """(P, D) the template's constant tokens."""
    rows: Tensor
    """(R, D) what stands in the place of a caption's rows."""
    suffix: Tensor | None
    """(E, D) the template's end; None where nobody knows it."""
    sequence: Tensor
    """(S, D) what the method makes of every token."""

    @property
    def whole(self) -> Tensor:
        """(P + R + E, D): the picture alone.

        Raises:
            UsageError: the template's end is not known.
        """
        if self.suffix is None:
            raise UsageError(
                "the projector does not predict the template's end, and without it a picture alone is no whole "
                "conditioning; give the end's mean over the training data, or a prompt"
            )
        return torch.cat([self.prefix, self.rows, self.suffix])


def projected(projector: Projector, embeddings: Tensor, suffix: Tensor | None = None) -> ReferenceRows:
    """Make rows with a projector.

    Args:
        projector: of the embeddings' layer and tokens.
        embeddings: (S, D) raw VL embeddings of a picture; attention sinks among them are left out.
        suffix: (E, D) mean of the template's end over the training data, for projectors that do not predict it.
    """
    ordinary = projector.ordinary(embeddings)
    whole = projector.conditioning(ordinary)
    before, behind = projector.network.shape.prefix, projector.network.shape.suffix
    last = len(whole) - behind
    return ReferenceRows(
        whole[:before],
        whole[before:last],
        whole[last:] if behind else _like(suffix, whole),
        projector(ordinary),
    )


def unprojected(
    projector: Projector, embeddings: Tensor, apply: Callable[[Tensor], Tensor], suffix: Tensor | None = None
) -> ReferenceRows:
    """Make rows with another method, as many and between the same template as the projector's.

    Args:
        projector: that the method is held against.
        embeddings: (S, D) raw VL embeddings of a picture; attention sinks among them are left out.
        apply: (S, D) raw tokens to (S, D) raw rows.
        suffix: (E, D) mean of the template's end over the training data; None: the projector's, if it has one.
    """
    return untouched(projector, projector.ordinary(embeddings).float(), apply, suffix)


def untouched(
    projector: Projector,
    tokens: Tensor,
    apply: Callable[[Tensor], Tensor] = lambda rows: rows,
    suffix: Tensor | None = None,
) -> ReferenceRows:
    """The same of all tokens, and of readers other than the projector's, such as the graft.

    Args:
        projector, apply, suffix: see `unprojected`.
        tokens: (S, D) float32 of a picture.
    """
    network = projector.network
    if suffix is None and network.shape.suffix:
        suffix = network.text_suffix
    chosen = evenly(tokens, int(projector.config.get("length", len(tokens))))
    return ReferenceRows(
        network.text_prefix.to(tokens),
        apply(chosen).to(tokens),
        _like(suffix, tokens),
        apply(tokens).to(tokens),
    )


def conditionings(
    reference: ReferenceRows,
    mode: Mode,
    prompt: Tensor | None = None,
    kind: Tensor | None = None,
    *,
    value: float = 1.0,
    blend: Blend = "interpolate",
) -> tuple[Tensor, Tensor | None]:
    """Make what the image model is conditioned on.

    Args:
        reference: the picture.
        mode: `alone` takes no prompt. `concat`: its rows behind the prompt's own, within the prompt's template.
            `guidance`: two conditionings, between whose velocities the image model goes. `blend`: mixed into the
            prompt's own rows. `interpolate`: the training guide's way, which mixes into the template's rows as well.
        prompt: (T, D) the text encoder's embeddings of a prompt, template included.
        kind: (T,) of each prompt row, as the text encoder gives it.
        value: of the dial, where the mode has one; that of guidance is given to the image model.
        blend: how mode `blend` mixes.

    Returns:
        the conditioning and, under guidance, the second one (`ImageGenerator.generate`, `references`), else None.

    Raises:
        UsageError: an unknown mode, a mode that wants a prompt without one, or shapes that do not fit.
    """
    if mode not in MODES:
        raise UsageError(f"mode = {mode!r}; expected one of {', '.join(MODES)}")
    if mode == "alone":
        return reference.whole, None
    if prompt is None or kind is None:
        raise UsageError(f"mode = {mode!r} wants a prompt and the kind of its rows; alone takes none")
    if mode == "guidance":
        return prompt, reference.whole.to(prompt)
    if mode == "concat":
        return concatenated(reference.rows, prompt, kind), None
    if mode == "blend":
        return BLENDS[blend](reference.rows.to(prompt), prompt, value, kind), None
    return blend_as_the_guide(reference.sequence.to(prompt), prompt, value), None


def _like(rows: Tensor | None, other: Tensor) -> Tensor | None:
    return None if rows is None else rows.to(other)
