"""From noise to the pictures themselves: what flow matching holds a velocity to.

B batch, N pairs, K steps of sampling, C latent channels, h and w latent pixels.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from projector.data.pairs import PairPicture
from projector.inference.frozen_transformer import FrozenTransformer
from projector.inference.latent_encoder import LatentEncoder
from projector.teaching.keeper import Keeper
from shards.sources.picture import open_picture

ENCODED_TOGETHER = 8  # pictures


class Flows:
    """The straight ways from noise to some pairs' pictures.

    Args:
        model: the frozen model, whose noise levels are taken.
        folder: of its pipeline, whose autoencoder encodes the pictures that have no latents of the model's size.
        pictures: of the pairs, in their order.
        count: how many.
        label: what progress lines call them; "" for none.
        cache: local folder for what does not fit into memory.
    """

    def __init__(
        self,
        model: FrozenTransformer,
        folder: str,
        pictures: Iterator[PairPicture],
        count: int,
        *,
        label: str = "",
        cache: str | None = None,
    ) -> None:
        self._model, self._folder = model, folder
        self._encoder: LatentEncoder | None = None
        kept = Keeper(count, 1, model.numbers, torch.bfloat16, cache, label)
        self.seeds: list[int] = []
        while block := list(islice(pictures, ENCODED_TOGETHER)):
            for latents in self._latents(block):
                kept.append(latents.reshape(1, -1))
            self.seeds += [item.seed for item in block]
            kept.report(len(self.seeds))
        self._rows = kept.closed()
        self._encoder = None

    def at(self, pairs: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures with as much noise as there is before a step, and the way from the noise to them.

        The first step's noise is the picture's own, the others have noise of their own: alike in every run.

        Args:
            pairs: (B,) int64 places of pairs, on the CPU.
            steps: (B,) int64 steps, from 0, on the CPU.

        Returns:
            (B, C, h, w) float32 states, and (B, C, h, w) float32 velocities: clean latents minus noise.
        """
        seeds = [
            noise_seed(self.seeds[pair], step)
            for pair, step in zip(pairs.tolist(), steps.tolist(), strict=True)
        ]
        noise = self._model.noise(seeds)
        rows, _ = self._rows.gather(pairs)
        clean = rows.float().view(noise.shape).to(noise.device)
        sigmas = self._model.sigmas[steps].to(noise.device)[:, None, None, None]
        return torch.lerp(clean, noise, sigmas), clean - noise

    def _latents(self, block: Sequence[PairPicture]) -> list[Tensor]:
        """(C, h, w) of each: as they are held, or encoded."""
        shape = self._model.shape
        missing = [item for item in block if item.latents is None or tuple(item.latents.shape) != shape]
        encoded = iter(self._encoded(missing)) if missing else iter(())
        return [
            item.latents if item.latents is not None and tuple(item.latents.shape) == shape else next(encoded)
            for item in block
        ]

    def _encoded(self, block: Sequence[PairPicture]) -> Tensor:
        if self._encoder is None:
            self._encoder = LatentEncoder.from_pretrained(self._folder, device=self._model.device)
        height, width = self._model.size
        pictures = [open_picture(item.data) for item in block]
        return self._encoder.encode(pictures, height=height, width=width)


def noise_seed(seed: int, step: int) -> int:
    """The seed of a picture's noise at a step."""
    return (
        seed if step == 0 else int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
    )
