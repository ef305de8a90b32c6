"""Pictures to the latents that Z-Image's transformer works on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


class LatentEncoder:
    """The autoencoder's first half.

    Args:
        vae: `AutoencoderKL` of the pipeline.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, path: str, *, device: torch.device) -> "LatentEncoder":
        """Load from a pipeline folder, in float32: it is small beside the transformer."""
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(
            path, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True
        )
        return cls(vae.to(device))

    @torch.no_grad()
    def encode(self, pictures: Sequence[Image.Image], *, height: int, width: int) -> Tensor:
        """The latents that pictures are decoded from.

        Args:
            pictures: of any size; what does not fit the proportions is cut off around the middle.
            height, width: in pixels, that they are brought to.

        Returns:
            (B, C, height / 8, width / 8) float32 on the CPU: the posterior's mean, shifted and scaled as
            `ZImagePipeline` undoes it before it decodes.
        """
        fitted = [
            ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
            for picture in pictures
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in fitted]))
        pixels = pixels.permute(0, 3, 1, 2).to(self._vae.device).float() / 127.5 - 1
        mean = self._vae.encode(pixels).latent_dist.mode()
        latents: Tensor = (mean - self._vae.config.shift_factor) * self._vae.config.scaling_factor
        return latents.float().cpu()
