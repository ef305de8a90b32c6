"""Scenes as prompts: captions in many wordings, each with its canonical wording and its attributes."""

import hashlib
from dataclasses import dataclass

import numpy as np

from shards.format.splits import normalise_caption
from shards.prompts.prompt import Prompt, PromptSource
from shards.scenes.captions import WORDS, canonical, varied
from shards.scenes.scene import Scene, attributes, sample_scene

VERSION = 1  # of the captions; raised whenever the same seed gives others
SOURCE_SEED = 0
REPEATS = 1_000  # captions in a row that were there before, until the split counts as exhausted


@dataclass(frozen=True)
class ScenePrompt:
    """A scene with a caption in one of many wordings."""

    scene: Scene
    caption: str

    @property
    def canonical(self) -> str:
        """The scene's one fixed wording."""
        return canonical(self.scene)

    @property
    def categories(self) -> dict[str, str]:
        """The scene's attributes by name, a second thing's as "shape 2" and so on."""
        return attributes(self.scene)


def scene_prompts(count: int, seed: int, objects: int = 1, split: str = "train") -> tuple[ScenePrompt, ...]:
    """Draw prompts with different captions; of one seed, fewer prompts are the first of more.

    Args:
        count: of prompts.
        seed: the same seed gives the same prompts.
        objects: number of things in each scene, 1 or 2.
        split: whose scenes to draw, one of SPLITS.

    Raises:
        ValueError: objects or split is unknown, or the split has too few different captions.
    """
    generator = np.random.default_rng(seed)
    prompts: list[ScenePrompt] = []
    seen: set[str] = set()
    repeats = 0
    while len(prompts) < count:
        scene = sample_scene(generator, objects, split)
        caption = varied(scene, generator)
        if (key := normalise_caption(caption)) in seen:
            repeats += 1
            if repeats == REPEATS:
                raise ValueError(
                    f"count = {count}; split {split} gave {len(prompts)} different captions, ask for fewer"
                )
            continue
        repeats = 0
        seen.add(key)
        prompts.append(ScenePrompt(scene, caption))
    return tuple(prompts)


def scene_source(count: int) -> PromptSource:
    """The prompts of a run on the miniature models, unless it names others: scenes with one thing.

    Args:
        count: of prompts; fewer are the first of more.
    """
    prompts = tuple(
        Prompt(
            prompt.caption,
            content=prompt.scene.things[0].shape,
            style=prompt.scene.things[0].pattern,
            subject=prompt.scene.background,
        )
        for prompt in scene_prompts(count, SOURCE_SEED)
    )
    return PromptSource("scenes", hashlib.sha256(f"scenes {VERSION} {WORDS}".encode()).hexdigest(), prompts)
