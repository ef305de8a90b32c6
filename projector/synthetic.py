"""Pairs with known structure, made on the spot: what tests and benchmarks train on where no real weights are.

T text tokens, V vision-language tokens, D hidden, L latent.

A sample has a global latent (style, mood) and a few concepts, each a latent vector. Every caption token
speaks of one concept and every image token shows one, in different orders: which image token belongs to which
caption token is not written anywhere, as in real pairs. Either side is a linear image of its token's latent
plus noise, scaled per dimension. The scales follow what was published of Qwen3-4B and Qwen3-VL-4B: a median
standard deviation of 5.6, text dimension 4 at 87 and 396 at 1 without the sink, image tokens with a third
less variance and single dimensions far off.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from projector.data import KINDS, Pair, PairSource
from projector.options import TextMode, Tokens
from shards.sample import KIND_CAPTION, KIND_IMAGE

Floats = NDArray[np.float32]

MEDIAN_STD = 5.6
TEXT_STD = {4: 87.0, 396: 1.0}
IMAGE_STD = {4: 65.0, 396: 1.5}
COPY_NOISE = 0.045  # of a dimension's std: gives the caption's copy in the VL input a correlation of 0.999


@dataclass(frozen=True)
class Synthetic:
    """A world of pairs; a sample is a function of (seed, index), so any range can be made again."""

    width: int
    """D."""
    seed: int = 0
    """Of everything."""
    image_tokens: int = 64
    """Image tokens of a sample."""
    text_tokens: tuple[int, int] = (8, 40)
    """Fewest and most caption tokens."""
    latent: int = 16
    """Numbers in the global latent and in each concept's."""
    concepts: int = 4
    """Concepts of a sample."""
    text_signal: float = 0.6
    """Share of a caption token's variance that its latent explains; the rest no image can tell."""
    image_signal: float = 0.6
    """Share of an image token's variance that its latent explains."""

    def source(
        self,
        count: int,
        *,
        first: int = 0,
        text_mode: TextMode = "none",
        tokens: Tokens = "image",
        dtype: torch.dtype = torch.bfloat16,
    ) -> PairSource:
        """Pairs `first` to `first + count - 1` of this world."""
        maps = self._maps()

        def read(start: int, stop: int) -> Iterator[Pair]:
            for index in range(first + start, first + stop):
                yield self._pair(index, maps, text_mode, tokens, dtype)

        return PairSource(
            count, read, -8, text_mode, tokens, {"fingerprint": repr(self), "root": "synthetic"}
        )

    def _maps(self) -> dict[str, Floats]:
        random = np.random.default_rng([self.seed, 0])
        maps: dict[str, Floats] = {}
        for side, named, level in (("text", TEXT_STD, 1.0), ("image", IMAGE_STD, 0.8)):
            mix = random.normal(size=(2 * self.latent, self.width))
            maps[f"{side}_mix"] = (mix / np.linalg.norm(mix, axis=0)).astype(np.float32)
            std = level * MEDIAN_STD * np.exp(random.normal(scale=0.5, size=self.width))
            for dimension, value in named.items():
                if dimension < self.width:
                    std[dimension] = value
            maps[f"{side}_std"] = std.astype(np.float32)
            maps[f"{side}_mean"] = (std * random.normal(size=self.width)).astype(np.float32)
        return maps

    def _pair(
        self, index: int, maps: dict[str, Floats], text_mode: TextMode, tokens: Tokens, dtype: torch.dtype
    ) -> Pair:
        random = np.random.default_rng([self.seed, 1, index])
        everywhere = random.normal(size=self.latent)
        concepts = random.normal(size=(self.concepts, self.latent))
        spoken = random.integers(self.concepts, size=random.integers(*self.text_tokens, endpoint=True))
        shown = np.sort(random.integers(self.concepts, size=self.image_tokens))

        def side(name: str, order: NDArray[np.int64], signal: float) -> Floats:
            latent = np.concatenate([np.tile(everywhere, (len(order), 1)), concepts[order]], axis=1)
            noise = random.normal(size=(len(order), self.width))
            unit = np.sqrt(signal) * (latent @ maps[f"{name}_mix"]) + np.sqrt(1 - signal) * noise
            values: Floats = (maps[f"{name}_mean"] + maps[f"{name}_std"] * unit).astype(np.float32)
            return values

        text = side("text", spoken, self.text_signal)
        image = side("image", shown, self.image_signal)
        copy = text + COPY_NOISE * maps["text_std"] * random.normal(size=text.shape).astype(np.float32)
        parts = {KIND_IMAGE: image, KIND_CAPTION: copy}
        if text_mode == "none":
            del parts[KIND_CAPTION]
        kept = {kind: part for kind, part in parts.items() if kind in KINDS[tokens]}
        kinds = [np.full(len(part), kind, dtype=np.uint8) for kind, part in kept.items()]
        return Pair(
            f"synthetic-{index:06d}",
            torch.from_numpy(np.concatenate(list(kept.values()))).to(dtype),
            torch.from_numpy(np.concatenate(kinds)),
            torch.from_numpy(text).to(dtype),
        )
