"""Conditioning tensors to pictures, through the real ZImagePipeline."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from projector.models.image_settings import caption_rows


class ImageGenerator:
    """A Z-Image pipeline without its text encoder: it is conditioned on given tensors only.

    Args:
        pipeline: `ZImagePipeline`.
        height, width: of the pictures, multiples of 16 pixels.
        steps: of denoising.
        guidance: scale; 0 runs the transformer once a step.
        negative: (T, D) conditioning of the empty prompt, needed with guidance.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        height: int,
        width: int,
        steps: int = 8,
        guidance: float = 0.0,
        negative: torch.Tensor | None = None,
    ) -> None:
        if guidance > 0 and negative is None:
            raise ValueError(f"guidance {guidance} needs the conditioning of the empty prompt")
        self.pipeline = pipeline
        self.pipeline.set_progress_bar_config(disable=True)
        self.height, self.width, self.steps = height, width, steps
        self.guidance, self.negative = guidance, negative

    @classmethod
    def from_pretrained(
        cls, path: str, *, device: str, dtype: torch.dtype, revision: str | None = None, **settings: Any
    ) -> "ImageGenerator":
        """Load from a pipeline folder or hub id; text encoder and tokenizer are not read."""
        from diffusers import ZImagePipeline

        pipeline = ZImagePipeline.from_pretrained(
            path, text_encoder=None, tokenizer=None, dtype=dtype, revision=revision, use_safetensors=True
        )
        pipeline.to(device)
        return cls(pipeline, **settings)

    def to(self, device: str) -> None:
        """Move transformer and decoder."""
        self.pipeline.to(device)

    def decode_in_tiles(self) -> None:
        """Decode pictures piece by piece from now on, which takes less memory; their seams are blended."""
        self.pipeline.vae.enable_tiling()

    @property
    def decodes_in_tiles(self) -> bool:
        """Whether `decode_in_tiles` was called."""
        return bool(self.pipeline.vae.use_tiling)

    @torch.inference_mode()
    def one_step(self, rows: Sequence[int]) -> torch.Tensor:
        """One denoising step from fixed noise and conditioning, for checks and timing.

        Args:
            rows: of the conditioning, for each picture.

        Returns:
            (pictures, C, H/8, W/8) latents.
        """
        transformer = self.pipeline.transformer
        noise = torch.Generator("cpu").manual_seed(0)
        conditioning = torch.randn(max(rows), transformer.config.cap_feat_dim, generator=noise)
        conditioning = conditioning.to(transformer.device, transformer.dtype)
        latents: torch.Tensor = self.pipeline(
            prompt_embeds=[conditioning[:count] for count in rows],
            height=self.height,
            width=self.width,
            num_inference_steps=1,
            guidance_scale=0.0,
            generator=[torch.Generator("cpu").manual_seed(index) for index in range(len(rows))],
            output_type="latent",
        ).images
        return latents.float().cpu()  # waits for the device

    @torch.inference_mode()
    def generate(self, embeddings: Sequence[torch.Tensor], seeds: Sequence[int]) -> list[Image.Image]:
        """Make one picture per conditioning.

        Args:
            embeddings: (T, D) each, T may differ.
            seeds: of the starting noise, drawn on the CPU so that devices agree.

        Returns:
            RGB pictures.

        Raises:
            ValueError: a conditioning has more rows than the transformer has positions for.
        """
        most = caption_rows(self.pipeline.transformer.config.axes_lens)
        if (longest := max(map(len, embeddings))) > most:
            raise ValueError(f"a conditioning has {longest} rows; the image model takes at most {most}")
        conditioning = [embedding.to(self.pipeline.transformer.dtype) for embedding in embeddings]
        negative = (
            [self.negative.to(conditioning[0])] * len(conditioning) if self.negative is not None else None
        )
        decoded: torch.Tensor = self.pipeline(
            prompt_embeds=conditioning,
            negative_prompt_embeds=negative if self.guidance > 0 else None,
            height=self.height,
            width=self.width,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images
        return as_pictures(decoded)


def as_pictures(decoded: torch.Tensor) -> list[Image.Image]:
    """Decoded pictures as diffusers' `numpy_to_pil` rounds them, but on the device: a quarter of the bytes cross.

    Args:
        decoded: (B, 3, H, W), 0 to 1.

    Returns:
        RGB pictures.
    """
    levels = (decoded.permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8)
    return [Image.fromarray(pixels) for pixels in levels.cpu().numpy()]
