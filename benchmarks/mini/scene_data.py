"""Scenes drawn, worded and tokenised ahead of training, by all cores, as tensors that fit a device whole.

Letters: N scenes, V wordings of each, S tokens of a sequence.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from projector.inference.text_encoder import template_around
from projector.models.tiny import make_tokenizer
from shards.scenes.captions import canonical, partial, varied
from shards.scenes.draw import draw_scene
from shards.scenes.scene import ATTRIBUTES, Scene, attributes, sample_scene

VOCABULARY = 512
ROWS = 96  # of a conditioning at most, template included
ANSWER = 128  # tokens of a caption with the answer that the text model learns to give
TWO_OBJECTS = 0.35  # of the scenes
VARIETY = 6  # wordings: canonical, three with every attribute, two with some
EMPTY = 0.2  # of the wordings with some attributes, those without any
TOKENIZER_CAPTIONS = 4000
PARTS = 2  # that the scenes are made in, so that they are the same on every machine


@dataclass(frozen=True)
class SceneData:
    """Scenes and their words."""

    pictures: torch.Tensor
    """(N, 3, 64, 64) uint8."""
    prompts: torch.Tensor
    """(N, V, ROWS) int64 token ids of wordings in their template, padded on the right."""
    prompt_lengths: torch.Tensor
    """(N, V) int64."""
    answers: torch.Tensor
    """(N, V, ANSWER) int64 the same with the answer behind."""
    answer_lengths: torch.Tensor
    """(N, V) int64."""

    def to(self, device: str) -> "SceneData":
        """The same on a device."""
        return SceneData(*(tensor.to(device) for tensor in vars(self).values()))


def scene_tokenizer() -> Any:
    """The tokenizer of the miniature models, learnt from captions of scenes."""
    generator = np.random.default_rng(0)
    captions = [
        varied(sample_scene(generator, 1 + index % 2), generator) for index in range(TOKENIZER_CAPTIONS)
    ]
    return make_tokenizer(captions, VOCABULARY)


def wordings(scene: Scene, generator: np.random.Generator) -> list[tuple[str, str]]:
    """Captions of a scene and, for each, the fixed wording of what it says."""
    whole = canonical(scene)
    found = [(whole, whole), *((varied(scene, generator), whole) for _ in range(3))]
    for _ in range(VARIETY - len(found)):
        names = [name for name in ATTRIBUTES if generator.random() < 0.5]
        if generator.random() < EMPTY:
            names = []
        said = [value for name, value in attributes(scene).items() if name.split(" ")[0] in names]
        found.append((partial(scene, names, generator), ", ".join(said)))
    return found


def make_scenes(count: int, seed: int, split: str = "train") -> list[Scene]:
    """Scenes with one thing or two."""
    generator = np.random.default_rng([seed, 1])
    return [
        sample_scene(generator, 2 if generator.random() < TWO_OBJECTS else 1, split) for _ in range(count)
    ]


def scenes_of(data: SceneData, seed: int = 0) -> list[Scene]:
    """The scenes that training data was made of."""
    share = len(data.pictures) // PARTS
    return [scene for part in range(PARTS) for scene in make_scenes(share, 1000 * seed + part)]


def _part(job: tuple[str, tuple[str, str], int, int]) -> tuple[np.ndarray, ...]:
    tokenizer_json, (before, after), count, seed = job
    tokenizer = Tokenizer.from_str(tokenizer_json)
    generator = np.random.default_rng([seed, 2])
    pictures = np.zeros((count, 3, 64, 64), np.uint8)
    prompts, answers = (
        np.zeros((count, VARIETY, ROWS), np.int16),
        np.zeros((count, VARIETY, ANSWER), np.int16),
    )
    lengths = np.zeros((2, count, VARIETY), np.int16)
    for place, scene in enumerate(make_scenes(count, seed)):
        pictures[place] = np.moveaxis(draw_scene(scene), -1, 0)
        for number, (caption, answer) in enumerate(wordings(scene, generator)):
            prompt = tokenizer.encode(f"{before}{caption}{after}").ids
            whole = tokenizer.encode(f"{before}{caption}{after}{answer}<|im_end|>").ids
            if (
                len(prompt) > ROWS or len(whole) > ANSWER
            ):  # a few long ones; the canonical wording always fits
                prompt = tokenizer.encode(f"{before}{canonical(scene)}{after}").ids
                whole = tokenizer.encode(f"{before}{canonical(scene)}{after}{answer}<|im_end|>").ids[:ANSWER]
            prompts[place, number, : len(prompt)] = prompt
            answers[place, number, : len(whole)] = whole
            lengths[:, place, number] = len(prompt), len(whole)
    return pictures, prompts, lengths[0], answers, lengths[1]


def make_data(tokenizer: Any, count: int, seed: int = 0) -> SceneData:
    """Training scenes, made by as many processes as there are cores."""
    share = -(-count // PARTS)
    words = tokenizer.backend_tokenizer.to_str()
    around = template_around(tokenizer, lambda text: text)
    jobs = [(words, around, share, 1000 * seed + part) for part in range(PARTS)]
    with ProcessPoolExecutor(min(PARTS, os.cpu_count() or 1)) as pool:
        parts: Sequence[tuple[np.ndarray, ...]] = list(pool.map(_part, jobs))
    pictures, prompts, prompt_lengths, answers, answer_lengths = (
        torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)
    )
    return SceneData(pictures, prompts.long(), prompt_lengths.long(), answers.long(), answer_lengths.long())
