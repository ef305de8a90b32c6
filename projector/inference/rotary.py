"""Z-Image's attention with its rotary embedding in real numbers.

diffusers turns queries and keys to complex numbers and back. On an H200 that and the other small kernels around it
took 46% of the kernel time, and inductor cannot fuse complex operators. In real numbers the same rotation compiles
into the kernels beside it.

Letters: B batch, S sequence, H heads, E size of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class RealRotations:
    """The rotary table of a transformer as pairs of cosine and sine.

    Args:
        table: of diffusers: (S, axes) positions to (S, E / 2) complex numbers.
    """

    def __init__(self, table: Any) -> None:
        self.table = table

    def __call__(self, positions: Tensor) -> Tensor:
        """(S, axes) positions to (S, E / 2, 2) cosines and sines, float32."""
        return torch.view_as_real(self.table(positions))


class RealRotaryAttention:
    """The attention of a Z-Image block, called as diffusers calls its `ZSingleStreamAttnProcessor`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        """Attend within a sequence.

        Args:
            attn: the block's `Attention`, whose weights are used.
            hidden_states: (B, S, D).
            encoder_hidden_states: there for the caller's sake; Z-Image has one stream.
            attention_mask: (B, S) bool, True where a position exists; None: everywhere.
            freqs_cis: (B, S, E / 2, 2) from `RealRotations`.

        Returns:
            (B, S, D).
        """
        query, key, value = (
            linear(hidden_states).unflatten(-1, (attn.heads, -1))
            for linear in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if freqs_cis is not None:
            query, key = rotated(query, freqs_cis), rotated(key, freqs_cis)
        mask = None if attention_mask is None else attention_mask[:, None, None, :]
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, mask)
        output: Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
        return output


def rotated(x: Tensor, rotations: Tensor) -> Tensor:
    """Turn neighbouring pairs of numbers by an angle for each position, in float32.

    Args:
        x: (B, S, H, E).
        rotations: (B, S, E / 2, 2) cosines and sines.

    Returns:
        (B, S, H, E), the type of `x`.
    """
    cosine, sine = rotations[:, :, None, :, 0], rotations[:, :, None, :, 1]
    first, second = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    return turned.flatten(-2).type_as(x)


def use_real_rotations(transformer: Any) -> None:
    """Have a `ZImageTransformer2DModel` rotate in real numbers from now on; doing so twice changes nothing."""
    if not isinstance(transformer.rope_embedder, RealRotations):
        transformer.rope_embedder = RealRotations(transformer.rope_embedder)
        _set_processors(transformer, RealRotaryAttention())


def use_complex_rotations(transformer: Any) -> None:
    """Have it rotate as diffusers does again."""
    from diffusers.models.transformers.transformer_z_image import ZSingleStreamAttnProcessor

    if isinstance(transformer.rope_embedder, RealRotations):
        transformer.rope_embedder = transformer.rope_embedder.table
        _set_processors(transformer, ZSingleStreamAttnProcessor())


def _set_processors(transformer: Any, processor: Any) -> None:
    for block in (*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers):
        block.attention.set_processor(processor)
