"""Pairs with known structure, made on the spot: what tests and benchmarks train on where no real weights are.

T text tokens, V vision-language tokens, D hidden, L latent.

A sample has a global latent (style, mood) and a few concepts, each a latent vector. Every caption token
speaks of one concept and every image token shows one, in different orders: which image token belongs to which
caption token is not written anywhere, as in real pairs. Either side is a linear image of its token's latent
plus noise, scaled per dimension. The scales follow what was published of Qwen3-4B and Qwen3-VL-4B: a median
standard deviation of 5.6, text dimension 4 at 87 and 396 at 1 without the sink, image tokens with a third
less variance and single dimensions far off.

Around the caption stands a template. Its first token is the attention sink, which holds 13,504 in dimension 4
and -4,544 in dimension 396; being causal, the whole prefix is the same in every prompt. With the published
prompts' 23 tokens that one token makes the published standard deviations of those two (2,753 and 949). The VL
input is template, marker, image, marker, in text mode `caption` a copy of the caption's tokens at a
correlation of 0.999, template.

`Synthetic(width)` has unrelated maps on its two sides; `Synthetic.realistic(width)` relates them as two models
with a common ancestor are: standard deviations over dimensions correlate by 0.74, as published for image
tokens, and content lies partly in the same directions, so that even the identity carries some.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from projector.data.pairs import KINDS, Pair, PairSource
from projector.options import TextMode, Tokens
from shards.format.sample import KIND_CAPTION, KIND_IMAGE, KIND_MARKER, KIND_TEMPLATE, Array

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

MEDIAN_STD = 5.6
TEXT_STD = {4: 87.0, 396: 1.0}
IMAGE_STD = {4: 65.0, 396: 1.5}
SINK = {4: 13504.0, 396: -4544.0}  # published minimum and maximum; exact in bfloat16
COPY_NOISE = 0.045  # of a dimension's std: gives the caption's copy in the VL input a correlation of 0.999
STRAY_FACTOR = 8.0  # how far off an image token's stray dimensions are
PREFIX, SUFFIX = 3, 5  # tokens of `<|im_start|>user\n` and `<|im_end|>\n<|im_start|>assistant\n`
PROBE_PENALTY = 0.01  # of the mean variance


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
    mix_kinship: float = 0.0
    """How far an image token's content lies in the directions in which a caption token's does: 0 to 1."""
    scale_kinship: float = 0.0
    """Correlation over dimensions of the two sides' means and log standard deviations."""
    stray: float = 0.0
    """Share of dimensions whose spread in image tokens is far above a caption token's."""
    fidelity: float = 1.0
    """Correlation of what the picture shows with what the caption says, per latent number."""

    @classmethod
    def realistic(cls, width: int, seed: int = 0, **changes: Any) -> "Synthetic":
        """A world whose sides are related as Qwen3-4B's and Qwen3-VL-4B's are; see the module's text."""
        kinship = {"mix_kinship": 0.6, "scale_kinship": 0.79, "stray": 0.002, "fidelity": 0.85}
        return cls(width, seed, **(kinship | changes))

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

        def read(start: int, stop: int) -> Iterator[Pair]:
            for index in range(first + start, first + stop):
                yield self._pair(index, text_mode, tokens, dtype)

        return PairSource(
            count, read, -8, text_mode, tokens, {"fingerprint": repr(self), "root": "synthetic"}
        )

    def latents(self, indices: Sequence[int]) -> Doubles:
        """What the samples are about: the global latent and the mean of the concepts, (N, 2L)."""
        contents = [self._content(index) for index in indices]
        rows: Doubles = np.array([np.concatenate([each[1], each[2].mean(0)]) for each in contents])
        return rows

    @cached_property
    def _maps(self) -> dict[str, Floats]:
        random = np.random.default_rng([self.seed, 0])
        maps: dict[str, Floats] = {}
        shares = (self.mix_kinship, self.scale_kinship, self.scale_kinship)
        texts: list[Doubles] = []
        for side, named, level in (("text", TEXT_STD, 1.0), ("image", IMAGE_STD, 0.8)):
            sizes = ((2 * self.latent, self.width), (self.width,), (self.width,))
            drawn = [random.normal(size=size) for size in sizes]
            if side == "image":
                drawn = [
                    share * text + np.sqrt(1 - share**2) * own
                    for share, text, own in zip(shares, texts, drawn, strict=True)
                ]
            else:
                texts = drawn
            mix, log_std, mean = drawn
            maps[f"{side}_mix"] = (mix / np.linalg.norm(mix, axis=0)).astype(np.float32)
            std = level * MEDIAN_STD * np.exp(0.5 * log_std)
            if side == "image":
                std[self._stray_dimensions] *= STRAY_FACTOR
            for dimension, value in named.items():
                if dimension < self.width:
                    std[dimension] = value
            maps[f"{side}_std"] = std.astype(np.float32)
            maps[f"{side}_mean"] = (std * mean).astype(np.float32)
        return maps

    @property
    def _stray_dimensions(self) -> NDArray[np.int64]:
        count = round(self.stray * self.width)
        chosen: NDArray[np.int64] = np.random.default_rng([self.seed, 3]).choice(
            self.width, count, replace=False
        )
        return chosen

    @cached_property
    def _template(self) -> dict[str, Floats]:
        """Rows that are the same in every prompt: the prefix with the sink, the suffix, the vision markers."""
        random = np.random.default_rng([self.seed, 2])
        unit = random.normal(size=(PREFIX + SUFFIX + 2, self.width))
        rows: Floats = (self._maps["text_mean"] + self._maps["text_std"] * unit).astype(np.float32)
        for dimension, value in SINK.items():
            if dimension < self.width:
                rows[0, dimension] = value
        end = PREFIX + SUFFIX
        return {"prefix": rows[:PREFIX], "suffix": rows[PREFIX:end], "markers": rows[end:]}

    def _content(self, index: int) -> tuple[np.random.Generator, Doubles, Doubles]:
        """A sample's generator, its global latent (L,) and its concepts (concepts, L)."""
        random = np.random.default_rng([self.seed, 1, index])
        everywhere = random.normal(size=self.latent)
        return random, everywhere, random.normal(size=(self.concepts, self.latent))

    def _order(self, random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which concept each caption token speaks of, and which one each image token shows."""
        spoken = random.integers(self.concepts, size=random.integers(*self.text_tokens, endpoint=True))
        return spoken, np.sort(random.integers(self.concepts, size=self.image_tokens))

    def shown(self, index: int) -> Doubles:
        """What each image token of a sample is about: the global latent and its concept's, (image tokens, 2L)."""
        random, everywhere, concepts = self._content(index)
        _, shown = self._order(random)
        rows: Doubles = np.concatenate([np.tile(everywhere, (len(shown), 1)), concepts[shown]], axis=1)
        return rows

    def _sides(self, index: int) -> dict[str, Floats]:
        """Caption tokens, image tokens, and the caption's copy on the VL side."""
        maps = self._maps
        random, everywhere, concepts = self._content(index)
        spoken, shown = self._order(random)

        other = np.random.default_rng([self.seed, 5, index]).normal(size=(1 + self.concepts, self.latent))
        said = np.concatenate([everywhere[None], concepts])
        pictured = self.fidelity * said + np.sqrt(1 - self.fidelity**2) * other

        def side(name: str, order: NDArray[np.int64], signal: float) -> Floats:
            meant = said if name == "text" else pictured
            latent = np.concatenate([np.tile(meant[0], (len(order), 1)), meant[1 + order]], axis=1)
            noise = random.normal(size=(len(order), self.width))
            unit = np.sqrt(signal) * (latent @ maps[f"{name}_mix"]) + np.sqrt(1 - signal) * noise
            values: Floats = (maps[f"{name}_mean"] + maps[f"{name}_std"] * unit).astype(np.float32)
            return values

        text = side("text", spoken, self.text_signal)
        image = side("image", shown, self.image_signal)
        copy = text + COPY_NOISE * maps["text_std"] * random.normal(size=text.shape).astype(np.float32)
        return {"text": text, "image": image, "copy": copy}

    def _pair(self, index: int, text_mode: TextMode, tokens: Tokens, dtype: torch.dtype) -> Pair:
        sides = self._sides(index)
        parts = {KIND_IMAGE: sides["image"], KIND_CAPTION: sides["copy"]}
        if text_mode == "none":
            del parts[KIND_CAPTION]
        kept = {kind: part for kind, part in parts.items() if kind in KINDS[tokens]}
        kinds = [np.full(len(part), kind, dtype=np.uint8) for kind, part in kept.items()]
        return Pair(
            f"synthetic-{index:06d}",
            torch.from_numpy(np.concatenate(list(kept.values()))).to(dtype),
            torch.from_numpy(np.concatenate(kinds)),
            torch.from_numpy(sides["text"]).to(dtype),
        )

    def encodings(
        self, index: int, text_modes: Sequence[TextMode] = ("caption", "none")
    ) -> dict[str, tuple[Floats, Array]]:
        """What the encoders give of a sample, template and sink included.

        Args:
            index: of the sample.
            text_modes: of the VL side.

        Returns:
            `text` and `vl.MODE`, each (tokens, D) float32 and the tokens' kinds.
        """
        sides, fixed = self._sides(index), self._template
        layout = [(fixed["prefix"], KIND_TEMPLATE), (fixed["markers"][:1], KIND_MARKER)]
        layout += [(sides["image"], KIND_IMAGE), (fixed["markers"][1:], KIND_MARKER)]
        copy, end = [(sides["copy"], KIND_CAPTION)], [(fixed["suffix"], KIND_TEMPLATE)]
        parts = {"text": [(fixed["prefix"], KIND_TEMPLATE), (sides["text"], KIND_CAPTION), *end]}
        parts |= {f"vl.{mode}": layout + (copy if mode == "caption" else []) + end for mode in text_modes}
        return {
            name: (
                np.concatenate([rows for rows, _ in blocks]),
                np.concatenate([np.full(len(rows), kind, dtype=np.uint8) for rows, kind in blocks]),
            )
            for name, blocks in parts.items()
        }


@dataclass(frozen=True)
class ContentProbe:
    """Reads what a sample is about out of tokens: a linear reader of its latents, fitted on real caption tokens.

    Fitted by ridge on standardised caption tokens of the training split, token by token. A method's tokens
    are read one by one and the readings averaged over the sample. Real caption tokens give the ceiling, a
    constant gives 0.
    """

    mean: Doubles
    """(D,) of caption tokens."""
    std: Doubles
    """(D,) of caption tokens."""
    weights: Doubles
    """(D, 2L)."""

    @classmethod
    def fit(cls, pairs: Iterable[Pair], latents: Doubles) -> "ContentProbe":
        """Fit on pairs' caption tokens; row i of `latents` (N, 2L) is what pair i is about."""
        tokens = [pair.text.float().numpy() for pair in pairs]
        rows = np.concatenate(tokens)
        mean, std = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
        std = np.where(std > 0, std, 1.0)
        rows = ((rows - mean) / std).astype(np.float32)
        wanted = np.repeat(latents - latents.mean(0), [len(part) for part in tokens], axis=0)
        covariance = (rows.T @ rows).astype(np.float64) / len(rows)
        covariance += PROBE_PENALTY * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        return cls(mean, std, np.linalg.solve(covariance, rows.T @ wanted / len(rows)))

    def read(self, tokens: Tensor) -> Doubles:
        """(2L,) from tokens (P, D), raw: the mean of their readings, which is the reading of their mean."""
        reading: Doubles = ((tokens.double().mean(0).numpy() - self.mean) / self.std) @ self.weights
        return reading

    def score(self, readings: Doubles, latents: Doubles) -> float:
        """Mean over latent numbers of the correlation of readings (N, 2L) with the truth (N, 2L), over samples."""
        x, y = readings - readings.mean(0), latents - latents.mean(0)
        scale = np.sqrt((x**2).sum(0) * (y**2).sum(0))
        moving = scale > 1e-9 * np.sqrt((y**2).sum(0))
        return float(np.where(moving, (x * y).sum(0) / np.where(moving, scale, 1.0), 0.0).mean())
