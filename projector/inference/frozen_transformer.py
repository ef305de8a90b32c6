"""The image model as training looks through it: velocities under given conditionings, with gradients for those alone.

Letters: B batch, C latent channels, h and w latent pixels, K steps of sampling, L rows of a conditioning, D its width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from projector.inference.dense_transformer import MULTIPLE, dense_velocities

LATENT_PIXEL = 8  # picture pixels along an edge of a latent pixel: Z-Image's autoencoder


class FrozenTransformer:
    """Z-Image's transformer with the noise levels of its pipeline.

    Args:
        transformer: `ZImageTransformer2DModel`; takes no gradients of its own from now on.
        scheduler: `FlowMatchEulerDiscreteScheduler`.
        height, width: of the pictures, multiples of 16 pixels.
        steps: of sampling, K.
    """

    def __init__(self, transformer: Any, scheduler: Any, *, height: int, width: int, steps: int) -> None:
        self._transformer = transformer.eval().requires_grad_(False)
        self._shape = (transformer.in_channels, height // LATENT_PIXEL, width // LATENT_PIXEL)
        self.steps = steps
        self.sigmas = pipeline_sigmas(scheduler, self._shape[1] // 2 * (self._shape[2] // 2), steps)
        if self.device.type == "cuda":  # activations of 34 blocks at 1024² would not fit beside the weights
            transformer.enable_gradient_checkpointing()

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        device: torch.device,
        height: int,
        width: int,
        steps: int,
        dtype: torch.dtype | None = None,
    ) -> "FrozenTransformer":
        """Load transformer and scheduler from a pipeline folder; without a dtype bfloat16 on GPUs, float32 on CPUs."""
        from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel

        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        transformer = ZImageTransformer2DModel.from_pretrained(
            path, subfolder="transformer", torch_dtype=dtype, use_safetensors=True
        )
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(path, subfolder="scheduler")
        return cls(transformer.to(device), scheduler, height=height, width=width, steps=steps)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self._transformer.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        dtype: torch.dtype = self._transformer.dtype
        return dtype

    @property
    def config(self) -> Mapping[str, Any]:
        """The transformer's settings, as its config.json has them."""
        config: Mapping[str, Any] = self._transformer.config
        return config

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
        return LATENT_PIXEL * self._shape[1], LATENT_PIXEL * self._shape[2]

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, h, w of a latent picture."""
        return self._shape

    @property
    def numbers(self) -> int:
        """C * h * w, of a latent picture."""
        return int(torch.Size(self._shape).numel())

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """(B, C, h, w) float32: what the pipeline starts from with these seeds, drawn on the CPU."""
        drawn = [
            torch.randn((1, *self._shape), generator=torch.Generator("cpu").manual_seed(seed))
            for seed in seeds
        ]
        return torch.cat(drawn).to(self.device)

    def velocities(self, latents: Tensor, sigmas: Tensor, rows: Tensor, exists: Tensor) -> Tensor:
        """What the model answers, to each conditioning as if it were alone.

        Its length, rounded up, decides the place of the picture behind it; conditionings of one such length are
        computed together.

        Args:
            latents: (B, C, h, w) float32 noisy latents.
            sigmas: (B,) their noise levels.
            rows: (B, L, D) conditionings, padded on the right; gradients flow to them.
            exists: (B, L) bool, False where a row is padding.

        Returns:
            (B, C, h, w) float32: clean latents minus noise.
        """
        lengths = [padded_length(count) for count in exists.sum(1).tolist()]
        if len(set(lengths)) == 1:
            return self._velocities(latents, sigmas, rows, exists, lengths[0])
        found = torch.zeros_like(latents)
        for length in sorted(set(lengths)):
            part = torch.tensor([place for place, own in enumerate(lengths) if own == length])
            part = part.to(latents.device)
            some = self._velocities(
                latents[part], sigmas[part.to(sigmas.device)], rows[part], exists[part], length
            )
            found = found.index_copy(0, part, some)
        return found

    def _velocities(
        self, latents: Tensor, sigmas: Tensor, rows: Tensor, exists: Tensor, length: int
    ) -> Tensor:
        """Velocities under conditionings that are padded to one length."""
        padding, dtype = length - rows.shape[1], self._transformer.dtype  # cut off where that is below zero
        rows, exists = F.pad(rows, (0, 0, 0, padding)), F.pad(exists, (0, padding))
        found = dense_velocities(
            self._transformer, latents.to(dtype), (1 - sigmas).to(self.device), rows.to(dtype), exists
        )
        return found.float()

    @torch.no_grad()
    def trajectory(self, conditionings: Sequence[Tensor], seeds: Sequence[int]) -> Tensor:
        """Sample pictures and keep the velocity of each step.

        Args:
            conditionings: (T, D) each.
            seeds: of the starting noise.

        Returns:
            (B, K, C, h, w) float32.
        """
        longest = max(map(len, conditionings))
        rows = torch.stack([F.pad(each.float(), (0, 0, 0, longest - len(each))) for each in conditionings])
        lengths = torch.tensor([len(each) for each in conditionings])
        exists = (torch.arange(longest) < lengths[:, None]).to(self.device)
        latents, rows = self.noise(seeds), rows.to(self.device)
        found = []
        for step in range(self.steps):
            velocity = self.velocities(latents, self.sigmas[step].expand(len(rows)), rows, exists)
            found.append(velocity)
            latents = latents + (self.sigmas[step] - self.sigmas[step + 1]).to(self.device) * velocity
        return torch.stack(found, 1)

    def states(self, noise: Tensor, velocities: Tensor, steps: Tensor) -> Tensor:
        """Where a trajectory was before a step: rebuilt in float32, since differences of stored states lose digits.

        Args:
            noise: (B, C, h, w) it began with.
            velocities: (B, K, C, h, w) of all its steps.
            steps: (B,) int64, from 0.

        Returns:
            (B, C, h, w) float32.
        """
        taken = torch.arange(self.steps, device=steps.device) < steps[:, None]
        lengths = torch.where(taken, (self.sigmas[:-1] - self.sigmas[1:]).to(steps.device), 0.0)
        return noise + torch.einsum("bk,bkchw->bchw", lengths.to(noise.device), velocities.float())


def padded_length(rows: int) -> int:
    """Rows that the transformer pads a conditioning to; the place of the picture behind it depends on that."""
    return rows + -rows % MULTIPLE


def pipeline_sigmas(scheduler: Any, patches: int, steps: int) -> Tensor:
    """(K + 1,) float32 noise levels, the last one 0, as `ZImagePipeline` sets them.

    Args:
        scheduler: of the pipeline.
        patches: of the latent picture, which shift the levels where the scheduler asks for it.
        steps: K.
    """
    from diffusers.pipelines.z_image import pipeline_z_image as library

    config = scheduler.config
    shift = library.calculate_shift(
        patches,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    library.retrieve_timesteps(
        scheduler, steps, "cpu", sigmas=library.get_default_z_image_sigmas(steps), mu=shift
    )
    sigmas: Tensor = scheduler.sigmas.float()
    return sigmas
