"""Drawings of scenes, and scenes read back from drawings, blurred ones and others."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.scenes.draw import BACKGROUNDS, COLOURS, SIDE, draw_scene, ink_of
from shards.scenes.read_back import read_scene, score
from shards.scenes.scene import ATTRIBUTES, SPLITS, Scene, Thing, edit, sample_scene

seeds = st.integers(0, 2**32 - 1)
counts = st.sampled_from([1, 2])


def scenes(objects: int, count: int) -> list[Scene]:
    generator = np.random.default_rng(11)
    return [sample_scene(generator, objects, SPLITS[number % len(SPLITS)]) for number in range(count)]


def blurred(
    pixels: np.ndarray, generator: np.random.Generator, sigma: float = 1, tint: float = 0
) -> np.ndarray:
    """Blur a picture, and give it some noise and a tint (standard deviation, of 255)."""
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / (2 * sigma**2))
    picture = np.pad(pixels.astype(float), ((4, 4), (4, 4), (0, 0)), mode="edge")
    for axis in (0, 1):
        picture = np.apply_along_axis(np.convolve, axis, picture, kernel / kernel.sum(), "valid")
    picture += tint * generator.normal(size=3) + 4 * generator.normal(size=picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def mean_score(pairs) -> float:
    return float(np.mean([list(score(pixels, scene).values()) for pixels, scene in pairs]))


def test_a_drawing_is_rgb_bytes_of_the_side_that_is_asked_for():
    for side in (64, 96, 128):
        pixels = draw_scene(scenes(2, 1)[0], side)
        assert pixels.shape == (side, side, 3)
        assert pixels.dtype == np.uint8


def test_the_same_scene_is_always_the_same_picture():
    scene = scenes(1, 1)[0]
    first = draw_scene(scene)
    first[:] = 0  # a caller may paint over it
    assert draw_scene(scene).any()
    np.testing.assert_array_equal(draw_scene(scene), draw_scene(scene))


def test_colours_are_where_they_should_be():
    pixels = draw_scene(Scene("white", (Thing("square", "red", "large", "solid", "centre"),)))
    assert tuple(pixels[SIDE // 2, SIDE // 2]) == COLOURS["red"]
    assert tuple(pixels[0, 0]) == BACKGROUNDS["white"][0]
    edge = pixels[SIDE // 2, :, 2].astype(int)  # blue: high on white, low on red
    assert ((edge > 60) & (edge < 230)).any(), "an edge between pixels is smooth"


def test_colours_of_the_world_are_far_apart():
    """A picture that is a little off must not become another value: 60 of 255 for colours, 40 for backgrounds."""
    colours = [np.array(colour) for colour in COLOURS.values()]
    grounds = [np.array([tones[0], tones[-1]]) for tones in BACKGROUNDS.values()]
    for number, one in enumerate(colours):
        assert all(np.linalg.norm(one - other) > 60 for other in colours[number + 1 :])
        assert all(np.linalg.norm(tone - one) > 60 for ground in grounds for tone in ground)
    for number, one in enumerate(grounds):
        assert all(np.linalg.norm(one - other, axis=1).max() > 40 for other in grounds[number + 1 :])
    for name in COLOURS:
        assert np.linalg.norm(ink_of(name) - COLOURS[name]) > 120


@settings(max_examples=40, deadline=None)
@given(seeds, counts, st.sampled_from(list(ATTRIBUTES)))
def test_every_attribute_shows(seed, objects, name):
    generator = np.random.default_rng(seed)
    scene = sample_scene(generator, objects)
    other = edit(scene, [name], generator)
    difference = abs(draw_scene(scene).astype(int) - draw_scene(other)).max(-1)
    assert (difference > 30).sum() > 20, "at least twenty pixels are plainly different"


@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
@pytest.mark.parametrize("size", ATTRIBUTES["size"])
def test_patterns_are_plainly_different_on_every_thing(shape, size):
    drawings = [
        draw_scene(Scene("white", (Thing(shape, "yellow", size, pattern, "centre"),))).astype(int)
        for pattern in ATTRIBUTES["pattern"]
    ]
    for one, other in combinations(drawings, 2):
        assert (abs(one - other).max(-1) > 60).sum() > 40


@settings(max_examples=60, deadline=None)
@given(seeds, counts, st.sampled_from(SPLITS))
def test_a_drawing_is_read_back(seed, objects, split):
    scene = sample_scene(np.random.default_rng(seed), objects, split)
    assert read_scene(draw_scene(scene), objects) == scene


@pytest.mark.parametrize(
    ("objects", "sigma", "tint", "least"),
    [(1, 1, 0, 0.98), (2, 1, 5, 0.97), (1, 1.5, 14, 0.98), (2, 1.5, 0, 0.97)],
)
def test_blurred_drawings_are_read_back(objects, sigma, tint, least):
    generator = np.random.default_rng(2)
    pairs = [(blurred(draw_scene(scene), generator, sigma, tint), scene) for scene in scenes(objects, 60)]
    assert mean_score(pairs) >= least


def test_a_thing_that_is_a_little_off_its_place_is_read_back():
    pairs = [(np.roll(draw_scene(scene), (4, -4), (0, 1)), scene) for scene in scenes(1, 40)]
    assert mean_score(pairs) >= 0.99


def test_larger_pictures_are_read_back():
    assert mean_score((draw_scene(scene, 128), scene) for scene in scenes(1, 20)) >= 0.99


@pytest.mark.parametrize(("objects", "chance"), [(1, 0.206), (2, 0.27)])
def test_pictures_of_other_scenes_score_by_chance(objects, chance):
    drawn = scenes(objects, 241)
    pairs = [(draw_scene(one), other) for one, other in pairwise(drawn)]
    assert abs(mean_score(pairs) - chance) < 0.04


@pytest.mark.parametrize("objects", [1, 2])
def test_a_score_says_which_attribute_is_wrong(objects):
    generator = np.random.default_rng(4)
    for scene in scenes(objects, 10):
        for name in ("background", "shape", "colour", "size", "pattern"):
            shares = score(draw_scene(edit(scene, [name], generator)), scene)
            assert shares[name] < 1
            assert all(share == 1 for other, share in shares.items() if other != name) or objects == 2


def test_things_that_have_changed_places_lose_their_place_only():
    star, ring = ("star", "red", "small", "dots"), ("ring", "blue", "large", "solid")
    scene = Scene("white", (Thing(*star, "left"), Thing(*ring, "right")))
    other = Scene("white", (Thing(*star, "right"), Thing(*ring, "left")))
    shares = score(draw_scene(other), scene)
    assert shares == {"background": 1, "shape": 1, "colour": 1, "size": 1, "pattern": 1, "place": 0}


@pytest.mark.parametrize("objects", [1, 2])
@pytest.mark.parametrize("kind", ["black", "white", "noise"])
def test_any_picture_gives_a_scene(objects, kind):
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    pixels = {"black": noise * 0, "white": noise * 0 + 255, "noise": noise}[kind]
    assert len(read_scene(pixels, objects).things) == objects


def test_floats_are_read_as_bytes_are():
    scene = scenes(1, 1)[0]
    assert read_scene(draw_scene(scene).astype(np.float64)) == scene


def test_what_is_no_picture_is_an_error():
    with pytest.raises(ValueError, match=r"pixels: shape \(64, 64\); expected \(height, width, 3\)"):
        read_scene(np.zeros((64, 64)))
    with pytest.raises(ValueError, match="objects = 3; expected 1 or 2"):
        read_scene(np.zeros((64, 64, 3), np.uint8), 3)
