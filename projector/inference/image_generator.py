"""Conditioning tensors to pictures, through the real ZImagePipeline."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from PIL import Image
from torch import nn

from projector.inference.copies import onto
from projector.inference.image_settings import caption_rows


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
        _calculate_once(self.pipeline.scheduler)
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

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What the device's time goes to."""
        return (self.pipeline.transformer, self.pipeline.vae.decoder)

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
    def generate(
        self,
        embeddings: Sequence[torch.Tensor],
        seeds: Sequence[int],
        *,
        references: Sequence[torch.Tensor] | None = None,
        weight: float = 1.0,
    ) -> list[Image.Image]:
        """Make one picture per conditioning.

        Args:
            embeddings: (T, D) each, T may differ.
            seeds: of the starting noise, drawn on the CPU so that devices agree.
            references: (R, D) each, a second conditioning for each picture: every step runs the transformer on both.
            weight: w of v = v_text + w (v_reference - v_text): 0 is the text's picture, 1 the reference's.

        Returns:
            RGB pictures.

        Raises:
            ValueError: a conditioning has more rows than the transformer has positions for, or references are not as
                many as pictures.
        """
        levels, _ = self.generate_with_latents(embeddings, seeds, references=references, weight=weight)
        return [Image.fromarray(pixels) for pixels in levels.cpu().numpy()]

    @torch.inference_mode()
    def generate_with_latents(
        self,
        embeddings: Sequence[torch.Tensor],
        seeds: Sequence[int],
        *,
        references: Sequence[torch.Tensor] | None = None,
        weight: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same without waiting for the device, and with what the decoder makes the pictures from.

        Returns:
            (B, H, W, 3) uint8 RGB pictures and (B, C, H / 8, W / 8) float32 latents, on the device.
        """
        last: list[torch.Tensor] = []

        def keep(_pipeline: Any, _step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
            last[:] = [given["latents"]]
            return given

        most = caption_rows(self.pipeline.transformer.config.axes_lens)
        if (longest := max(map(len, [*embeddings, *(references or ())]))) > most:
            raise ValueError(f"a conditioning has {longest} rows; the image model takes at most {most}")
        if references is not None and len(references) != len(embeddings):
            raise ValueError(
                f"{len(references)} references for {len(embeddings)} conditionings; one for each"
            )
        transformer = self.pipeline.transformer
        conditioning, second = (
            [rows.to(transformer.device, transformer.dtype) for rows in side]
            for side in (embeddings, references or ())
        )
        negative = (
            [self.negative.to(conditioning[0])] * len(conditioning) if self.negative is not None else None
        )
        with _towards(transformer, second, weight) if second else nullcontext():
            decoded: torch.Tensor = self.pipeline(
                prompt_embeds=conditioning,
                negative_prompt_embeds=negative if self.guidance > 0 else None,
                height=self.height,
                width=self.width,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                latents=self._noise(seeds),
                output_type="pt",
                callback_on_step_end=keep,
            ).images
        return as_levels(decoded), last[0].float()

    def _noise(self, seeds: Sequence[int]) -> torch.Tensor:
        """(B, C, H / 8, W / 8): what the pipeline draws on the CPU; its own copy to the device would wait for that."""
        transformer, scale = self.pipeline.transformer, self.pipeline.vae_scale_factor
        shape = (1, transformer.in_channels, self.height // scale, self.width // scale)
        drawn = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
        return onto(transformer.device, torch.cat(drawn))


def _calculate_once(scheduler: Any) -> None:
    """Have a scheduler keep the noise levels of its last call: each time their copy would wait for the device."""
    calculate = scheduler.set_timesteps
    asked: Any = None
    found: dict[str, Any] = {}

    @wraps(calculate)
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        nonlocal asked
        if asked != (args, kwargs):
            calculate(*args, **kwargs)
            asked = (args, kwargs)
            found.update(vars(scheduler))
        vars(scheduler).update(found)

    scheduler.set_timesteps = set_timesteps


@contextmanager
def _towards(transformer: Any, references: Sequence[torch.Tensor], weight: float) -> Iterator[None]:
    """Let the transformer see each picture with its reference, too, and move its velocity towards what that gives.

    The pipeline's own guidance cannot: its scale counts from the prompt away from the second conditioning, and a
    negative one, which would be towards it, switches it off. With both, what is guided away from the empty prompt is
    the moved velocity.
    """
    count = len(references)

    def with_references(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        latents, times, conditioning = inputs
        return [*latents, *latents[:count]], torch.cat([times, times[:count]]), [*conditioning, *references]

    def moved(_module: Any, _inputs: tuple[Any, ...], output: tuple[Any, ...]) -> tuple[Any, ...]:
        velocities = output[0]
        pairs = zip(velocities[:count], velocities[-count:], strict=True)
        mixed = [torch.lerp(own.float(), reference.float(), weight) for own, reference in pairs]
        return ([*mixed, *velocities[count:-count]],)

    hooks = (
        transformer.register_forward_pre_hook(with_references),
        transformer.register_forward_hook(moved),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def as_levels(decoded: torch.Tensor) -> torch.Tensor:
    """Decoded pictures as diffusers' `numpy_to_pil` rounds them, but on the device: a quarter of the bytes cross.

    Args:
        decoded: (B, 3, H, W), 0 to 1.

    Returns:
        (B, H, W, 3) uint8.
    """
    return (decoded.permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8)
