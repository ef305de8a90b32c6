"""Captions of scenes: what is said can be read again, in each wording."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.format.splits import normalise_caption
from shards.scenes.captions import UNDERSTOOD, WORDS, attributes_named, canonical, parse, partial, varied
from shards.scenes.prompts import scene_prompts
from shards.scenes.scene import ATTRIBUTES, SPLITS, Scene, Thing, attributes, sample_scene, split_of

seeds = st.integers(0, 2**32 - 1)
counts = st.sampled_from([1, 2])
splits = st.sampled_from(SPLITS)
SCENE = Scene("grey", (Thing("ring", "orange", "large", "stripes", "top left"),))


def test_the_canonical_wording():
    assert canonical(SCENE) == "a large orange striped ring at the top left, grey background"
    two = Scene(
        "sky",
        (Thing("star", "red", "small", "dots", "right"), Thing("cross", "pink", "small", "checks", "left")),
    )
    assert canonical(two) == (
        "a small pink checked cross on the left and a small red dotted star on the right, sky background"
    )


@given(seeds, counts, splits)
def test_a_canonical_caption_gives_its_scene_back(seed, objects, split):
    scene = sample_scene(np.random.default_rng(seed), objects, split)
    assert parse(canonical(scene)) == scene
    assert attributes_named(canonical(scene)) == attributes(scene)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a ring",
        "a huge orange striped ring at the top left, grey background",
        "a large orange striped ring at the top left, grey background and a star",
        "a large orange striped ring on the left and a large orange striped ring on the right, grey background",
    ],
)
def test_what_is_not_canonical_is_no_scene(text):
    assert parse(text) is None


@given(seeds, counts)
def test_a_varied_caption_names_every_attribute(seed, objects):
    generator = np.random.default_rng(seed)
    scene = sample_scene(generator, objects)
    assert attributes_named(varied(scene, generator)) == attributes(scene)


@given(seeds, counts, st.sets(st.sampled_from(list(ATTRIBUTES))))
def test_a_partial_caption_names_what_it_should_and_nothing_else(seed, objects, names):
    generator = np.random.default_rng(seed)
    scene = sample_scene(generator, objects)
    caption = partial(scene, names, generator)
    expected = {name: value for name, value in attributes(scene).items() if name.removesuffix(" 2") in names}
    assert attributes_named(caption) == expected
    assert (caption == "") == (not names)


@given(seeds, st.sets(st.sampled_from(list(ATTRIBUTES)), min_size=1))
def test_captions_are_whole(seed, names):
    """No gap, no doubled stop, no stray comma is left where an attribute is not named; articles fit their words."""
    generator = np.random.default_rng(seed)
    caption = partial(sample_scene(generator, 2), names, generator)
    assert caption == " ".join(caption.split())
    assert not any(
        flaw in f"{caption} " for flaw in (" ,", ",,", "..", " .", ", ,", ",;", " and  ", "and , ")
    )
    words = caption.lower().replace(",", "").replace(".", "").split()
    for article, word in pairwise(words):
        if article in ("a", "an"):
            assert (article == "an") == (word[0] in "aeiou"), caption


def test_wordings_are_many_and_a_seed_gives_the_same_again():
    captions = [varied(SCENE, np.random.default_rng(seed)) for seed in range(300)]
    assert captions == [varied(SCENE, np.random.default_rng(seed)) for seed in range(300)]
    assert len(set(captions)) > 280
    lengths = [len(caption.split()) for caption in captions]
    assert min(lengths) <= 8
    assert max(lengths) >= 22


def test_no_word_means_two_things():
    words = [
        word
        for table in (WORDS, UNDERSTOOD)
        for values in table.values()
        for said in values.values()
        for word in said
    ]
    assert len(words) == len(set(words))
    assert {name: set(values) for name, values in WORDS.items()} == {
        name: set(values) for name, values in ATTRIBUTES.items()
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A RED star", {"colour": "red", "shape": "star"}),
        ("a starry night across the ringing box-office", {}),
        (
            "something with blue dots in the upper-right",
            {"colour": "blue", "pattern": "dots", "place": "top right"},
        ),
        ("a ring and a star", {"shape": "ring", "shape 2": "star"}),
        (
            "a red ring on the right, a star on the left",
            {"shape": "star", "place": "left", "shape 2": "ring", "place 2": "right", "colour 2": "red"},
        ),
    ],
)
def test_attributes_are_read_out_of_other_wordings(text, expected):
    assert attributes_named(text) == expected


def test_a_name_that_is_no_attribute_is_an_error():
    with pytest.raises(ValueError, match=r"names = \['weight'\]; expected some of background"):
        partial(SCENE, ["weight", "size"], np.random.default_rng(0))


@pytest.mark.parametrize("objects", [1, 2])
def test_prompts_are_different_captions_of_scenes_of_the_split(objects):
    prompts = scene_prompts(300, seed=3, objects=objects, split="val")
    assert len({normalise_caption(prompt.caption) for prompt in prompts}) == 300
    for prompt in prompts:
        assert split_of(prompt.scene) == "val"
        assert attributes_named(prompt.caption) == attributes_named(prompt.canonical) == prompt.categories


def test_prompts_follow_from_the_seed_and_grow_at_the_end():
    assert scene_prompts(20, seed=1)[:10] == scene_prompts(10, seed=1)
    assert scene_prompts(10, seed=1) != scene_prompts(10, seed=2)


def test_more_prompts_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr("shards.scenes.prompts.varied", lambda scene, generator: f"a {scene.things[0].shape}")
    with pytest.raises(ValueError, match="split train gave 8 different captions, ask for fewer"):
        scene_prompts(9, seed=0)
