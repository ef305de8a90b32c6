"""The grid score: high on grids of 16 pixels wherever they begin, about 1 on everything else."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from projector.comparison.blockiness import blockiness

ROWS, COLUMNS = np.mgrid[:256, :256]
NOISE = np.random.default_rng(5).integers(0, 256, (256, 256))
CLOUDS = np.asarray(Image.fromarray(NOISE.astype(np.uint8)).filter(ImageFilter.GaussianBlur(4)), np.float64)
CLOUDS = 127 + 6 * (CLOUDS - CLOUDS.mean())
NATURAL = {
    "one colour": np.full((256, 256), 90),
    "noise": NOISE,
    "clouds": CLOUDS,
    "ramp": COLUMNS,
    "slow ramp": COLUMNS / 16 + ROWS / 16,  # whose rounding makes steps of one level every 16 pixels
    "waves": 127 + 60 * np.sin(COLUMNS / 31) + 40 * np.cos(ROWS / 17),
}


def picture(grey):
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")


def tiles(step, period=16, phase=0):
    """Squares of alternating brightness."""
    rows, columns = ((axis + phase) // period % 2 for axis in (ROWS, COLUMNS))
    return step * (rows ^ columns)


@pytest.mark.parametrize("name", NATURAL)
def test_pictures_without_a_grid_score_about_1_and_with_one_far_more(name):
    assert 0.6 < blockiness(picture(NATURAL[name])) < 1.6
    if name != "noise":  # steps of 20 levels drown in noise of 74
        assert blockiness(picture(NATURAL[name] + tiles(20))) > 15


def test_noise_of_many_seeds_stays_about_1():
    random = np.random.default_rng(0)
    scores = [blockiness(picture(random.integers(0, 256, (128, 192)))) for _ in range(40)]
    assert min(scores) > 0.4
    assert max(scores) < 2.2
    assert 0.85 < np.mean(scores) < 1.3


@pytest.mark.parametrize("phase", [1, 5, 8, 15])
def test_where_the_grid_begins_does_not_matter(phase):
    # The crop to whole periods loses a line of 16 at most, and with it its share of the amplitude.
    score = blockiness(picture(90 + tiles(20, phase=phase)))
    assert score == pytest.approx(blockiness(picture(90 + tiles(20))), rel=0.15)


def test_it_grows_with_the_grid_and_sees_one_direction_alone():
    scores = [blockiness(picture(CLOUDS + tiles(step))) for step in (0, 5, 10, 20)]
    assert scores == sorted(scores)
    assert scores[1] > 2 * scores[0]
    for lines in ((slice(None), slice(None, None, 16)), (slice(None, None, 16), slice(None))):
        lined = CLOUDS.copy()
        lined[lines] += 15
        assert blockiness(picture(lined)) > 8


@pytest.mark.parametrize("period", [8, 12, 15, 17, 20, 24])
def test_other_periods_are_not_the_grid(period):
    assert blockiness(picture(CLOUDS + tiles(20, period))) < 1.6


def test_a_resized_grid_is_not_the_grid():
    whole = picture(CLOUDS + tiles(20))
    for size in (192, 200, 320):
        assert blockiness(whole.resize((size, size), Image.Resampling.BICUBIC)) < 1.6


def test_steps_that_nobody_sees_hardly_count():
    assert blockiness(picture(90 + tiles(1))) < 1.5
    assert blockiness(picture(90 + tiles(2))) == pytest.approx(2)


def test_too_small_a_picture_is_refused():
    with pytest.raises(ValueError, match="64 x 48 pixels; at least 64"):
        blockiness(Image.new("RGB", (64, 48)))
    assert blockiness(Image.new("RGB", (64, 64))) == pytest.approx(1)
