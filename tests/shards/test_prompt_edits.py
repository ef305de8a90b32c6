"""Edits of built-in prompts."""

import numpy as np
import pytest

from shards.prompts.builtin import builtin_prompts
from shards.prompts.prompt_edits import draw_prompt_edit


@pytest.mark.parametrize(("language", "share"), [("en", 0.9), ("zh", 0.3)])
def test_most_prompts_can_be_edited_and_the_caption_says_what_the_prompt_says(language, share):
    prompts = builtin_prompts(language).prompts
    edited = 0
    for number in range(0, 4000, 10):
        caption = prompts[number].caption
        edit = draw_prompt_edit(caption, np.random.default_rng(number), language, consistent=0.0)
        if edit is None:
            continue
        edited += 1
        assert edit.caption != caption
        assert all(said in edit.caption for said in edit.prompt.split(", ")), (edit, caption)
        kept = [part for part in caption.rstrip(".").split(", ")[1:] if part not in edit.caption]
        assert len(kept) <= 3
    assert edited >= share * 400


def test_a_consistent_edit_repeats_the_caption():
    caption = builtin_prompts("en").prompts[0].caption
    edit = draw_prompt_edit(caption, np.random.default_rng(0), consistent=1.0)
    assert edit.caption == caption
    assert all(said in caption for said in edit.prompt.split(", "))


@pytest.mark.parametrize("caption", ["", "a fox", "<b>Photograph</b>", "x" * 5000])
def test_other_captions_have_no_edit(caption):
    assert draw_prompt_edit(caption, np.random.default_rng(0)) is None
