"""Z-Image's transformer on stacked tensors: conditionings of one length, pictures of one size, no lists.

diffusers' class takes lists and pads each item by itself, which costs more than the arithmetic where the model is
small, and stands in the way of CUDA graphs. Stacked, the same modules give the same velocities.

Letters: B batch, C latent channels, H and W latent pixels, L rows of the conditioning, D its width, E size of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from projector.inference.rotary import use_real_rotations

MULTIPLE = 32  # diffusers' SEQ_MULTI_OF: rows of captions and pictures are padded to it
PATCH = "2-1"  # two by two latent pixels of one frame, Z-Image's only patch size


def dense_velocities(
    transformer: Any, latents: Tensor, times: Tensor, rows: Tensor, exists: Tensor | None = None
) -> Tensor:
    """Velocities as `ZImageTransformer2DModel` gives them.

    Args:
        transformer: the model; it rotates in real numbers from now on.
        latents: (B, C, H, W).
        times: (B,) 1 - sigma, from 0 (noise) to 1.
        rows: (B, L, D) conditionings, L a multiple of 32.
        exists: (B, L) bool, False where a row is padding; None: every row is real.

    Returns:
        (B, C, H, W): clean latents minus noise.

    Raises:
        ValueError: L is no multiple of 32.
    """
    if rows.shape[1] % MULTIPLE:
        raise ValueError(f"conditionings have {rows.shape[1]} rows; pad them to a multiple of {MULTIPLE}")
    use_real_rotations(transformer)
    batch, channels, height, width = latents.shape
    shape = (height // 2, width // 2)
    time = transformer.t_embedder(times * transformer.t_scale).type_as(latents)
    patches = latents.view(batch, channels, shape[0], 2, shape[1], 2).permute(0, 2, 4, 3, 5, 1)
    x = transformer.all_x_embedder[PATCH](patches.reshape(batch, shape[0] * shape[1], 4 * channels))
    count = x.shape[1]
    padding = -count % MULTIPLE
    if padding:
        x = torch.cat([x, transformer.x_pad_token.to(x).expand(batch, padding, -1)], 1)
    of_rows, of_picture = _rotations(transformer, rows.shape[1], shape, padding, latents.device)
    of_rows, of_picture = of_rows.expand(batch, -1, -1, -1), of_picture.expand(batch, -1, -1, -1)
    call = _recomputed if transformer.gradient_checkpointing and torch.is_grad_enabled() else _called
    for block in transformer.noise_refiner:
        x = block(x, None, of_picture, time)
    caption = transformer.cap_embedder(rows)
    if exists is not None:
        caption = torch.where(exists[..., None], caption, transformer.cap_pad_token.to(caption))
    for block in transformer.context_refiner:
        caption = call(block, caption, None, of_rows)
    whole, rotations = torch.cat([x, caption], 1), torch.cat([of_picture, of_rows], 1)
    for block in transformer.layers:
        whole = call(block, whole, None, rotations, time)
    out = transformer.all_final_layer[PATCH](whole, c=time)[:, :count]
    velocities: Tensor = out.view(batch, *shape, 2, 2, channels).permute(0, 5, 1, 3, 2, 4)
    return velocities.reshape(batch, channels, height, width)


def _called(block: Any, *arguments: Any) -> Tensor:
    return block(*arguments)  # type: ignore[no-any-return]


def _recomputed(block: Any, *arguments: Any) -> Tensor:
    """The same, with the block's activations made again in the backward pass instead of kept."""
    return checkpoint(block, *arguments, use_reentrant=False)  # type: ignore[no-any-return]


def _rotations(
    transformer: Any, rows: int, shape: tuple[int, int], padding: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(1, L, E / 2, 2) of the caption's rows and (1, patches + padding, E / 2, 2) of the picture's."""
    caption = torch.zeros(rows, 3, dtype=torch.int64, device=device)
    caption[:, 0] = torch.arange(1, rows + 1, device=device)
    picture = torch.zeros(shape[0] * shape[1] + padding, 3, dtype=torch.int64, device=device)
    count = shape[0] * shape[1]
    picture[:count, 0] = rows + 1
    picture[:count, 1] = torch.arange(shape[0], device=device).repeat_interleave(shape[1])
    picture[:count, 2] = torch.arange(shape[1], device=device).repeat(shape[0])
    return transformer.rope_embedder(caption)[None], transformer.rope_embedder(picture)[None]
