"""Scores of the miniature world: which attributes a picture shows, read from its pixels."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from shards.scenes.captions import attributes_named
from shards.scenes.read_back import read_scene
from shards.scenes.scene import attributes


def attribute_scores(
    pictures: Sequence[Image.Image], prompt: str, reference: Image.Image, things: int = 1
) -> list[dict[str, float]]:
    """Hold what pictures show against what prompt and reference ask for.

    Args:
        pictures: RGB.
        prompt: a caption of a scene or of part of one; empty for none.
        reference: RGB, of a scene.
        things: in the reference.

    Returns:
        for each picture `adherence`, the share of the attributes that the prompt names and in which it differs from the
        reference, and `fidelity`, the share of the reference's attributes that the prompt does not name. A score is
        absent where there is no such attribute.
    """
    named = attributes_named(prompt)
    things = 2 if any(name.endswith(" 2") for name in named) else things
    own = _seen(reference, things)
    asked = {name: value for name, value in named.items() if own.get(name) != value}
    kept = {name: value for name, value in own.items() if name not in named}
    scores = []
    for picture in pictures:
        seen = _seen(picture, things)
        wanted = {"adherence": asked, "fidelity": kept}
        scores.append({name: _share(seen, which) for name, which in wanted.items() if which})
    return scores


def _seen(picture: Image.Image, things: int) -> dict[str, str]:
    return attributes(read_scene(np.asarray(picture), things))


def _share(seen: Mapping[str, str], wanted: Mapping[str, str]) -> float:
    return sum(seen.get(name) == value for name, value in wanted.items()) / len(wanted)
