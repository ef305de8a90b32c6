"""Edits of scenes by their captions: what a prompt behind a reference asks for, and the picture that is then right."""

import numpy as np

from shards.prompts.prompt_edits import Edit
from shards.scenes.captions import canonical, partial, scene_named
from shards.scenes.scene import ATTRIBUTES, edit

# Shares of docs/steering.md: with prompts that only repeat the reference, a projector learns to override the prompt.
CONSISTENT = 0.25  # of the edits change nothing: the prompt names what the reference shows
WHOLE = 0.1  # of the prompts name every attribute


def draw_scene_edit(caption: str, generator: np.random.Generator) -> Edit | None:
    """Draw an edit of the scene that a caption names.

    Args:
        caption: of the reference.
        generator: the same state gives the same edit.

    Returns:
        the edit; None where the caption names no whole scene, or no scene of the training split has the change drawn.
    """
    scene = scene_named(caption)
    if scene is None:
        return None
    names = list(ATTRIBUTES)
    if generator.random() >= WHOLE:
        names = list(generator.permutation(names)[: int(generator.integers(1, len(names)))])
    if generator.random() < CONSISTENT:
        return Edit(partial(scene, names, generator), caption)
    try:
        edited = edit(scene, names, generator, split="train")
    except ValueError:
        return None
    return Edit(partial(edited, names, generator), canonical(edited))
