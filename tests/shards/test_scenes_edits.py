"""Edits of scenes: the prompt names what changes, and the edited caption keeps the rest."""

import numpy as np
import pytest

from shards.scenes.captions import attributes_named, scene_named, varied
from shards.scenes.scene import attributes, sample_scene
from shards.scenes.scene_edits import draw_scene_edit


def scenes(count, objects):
    generator = np.random.default_rng(3)
    return [sample_scene(generator, objects) for _ in range(count)]


def test_a_scene_is_read_from_any_wording_of_it():
    generator = np.random.default_rng(4)
    for scene in scenes(200, 1):
        assert scene_named(varied(scene, generator)) == scene


@pytest.mark.parametrize("objects", [1, 2])
def test_the_caption_has_the_prompts_attributes_and_the_references_others(objects):
    generator = np.random.default_rng(5)
    changed = without = 0
    for number, scene in enumerate(scenes(200, objects)):
        before = attributes(scene)
        edit = draw_scene_edit(varied(scene, generator), np.random.default_rng([1, number]))
        if edit is None:
            without += 1
            continue
        after, named = attributes(scene_named(edit.caption)), attributes_named(edit.prompt)
        if objects == 1:
            assert after == {**before, **named}
        moved = {name for name in before if before[name] != after[name]}
        assert {name.split(" ")[0] for name in moved} <= {name.split(" ")[0] for name in named}
        changed += bool(moved)
    assert changed > 100
    assert without < 20  # no scene of the training split has the change, or two things become alike


def test_some_prompts_only_repeat_the_reference_and_keep_its_caption():
    captions = [varied(scene, np.random.default_rng(6)) for scene in scenes(200, 1)]
    edits = [draw_scene_edit(caption, np.random.default_rng([2, n])) for n, caption in enumerate(captions)]
    same = sum(
        edit is not None and edit.caption == caption for edit, caption in zip(edits, captions, strict=True)
    )
    assert 30 <= same <= 70


def test_the_same_state_gives_the_same_edit_and_other_captions_none():
    caption = varied(scenes(1, 1)[0], np.random.default_rng(7))
    assert draw_scene_edit(caption, np.random.default_rng(8)) == draw_scene_edit(
        caption, np.random.default_rng(8)
    )
    for other in ("", "a fox in the snow", "a red circle", "a small red star on the left"):
        assert draw_scene_edit(other, np.random.default_rng(8)) is None
