"""The learning curve: a known law is found again, with intervals that hold what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projector.evaluation.learning_curve import fit_curve

PAIRS = (1000, 2000, 5000, 10_000, 20_000)


def losses(floor, scale, exponent, noise=0.0, seeds=3, seed=0):
    random = np.random.default_rng(seed)
    return {n: [floor + scale * n**-exponent + noise * random.normal() for _ in range(seeds)] for n in PAIRS}


@settings(deadline=None, max_examples=30)
@given(floor=st.floats(0.0, 0.5), exponent=st.floats(0.2, 1.2), above=st.floats(0.1, 0.5))
def test_a_curve_without_noise_is_found_again(floor, exponent, above):
    """`above` is what the fewest pairs leave over the floor."""
    scale = above * PAIRS[0] ** exponent
    found = fit_curve(losses(floor, scale, exponent))
    assert found.exponent.value == pytest.approx(exponent, rel=0.02)
    assert found.floor.value == pytest.approx(floor, abs=0.02 * above)
    for n in (500, *PAIRS, 40_000):
        assert found.at(n) == pytest.approx(floor + scale * n**-exponent, abs=0.02 * above)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    floor, scale, exponent = 0.2, 3.0, 0.4
    truth = scale * (PAIRS[-1] ** -exponent - (2 * PAIRS[-1]) ** -exponent)
    inside = {"exponent": 0, "gain": 0}
    for seed in range(60):
        found = fit_curve(losses(floor, scale, exponent, noise=0.002, seed=seed), seed=seed)
        inside["exponent"] += found.exponent.low <= exponent <= found.exponent.high
        inside["gain"] += found.gain_of_doubling.low <= truth <= found.gain_of_doubling.high
    assert all(count >= 51 for count in inside.values()), inside  # 95% of 60 is 57, two standard errors below


def test_more_noise_says_less():
    clear, dim = (fit_curve(losses(0.2, 3.0, 0.4, noise=noise)).gain_of_doubling for noise in (0.001, 0.02))
    assert dim.high - dim.low > 3 * (clear.high - clear.low)


def test_a_flat_curve_gains_nothing():
    found = fit_curve(losses(0.3, 0.0, 0.5, noise=0.001))
    assert found.gain_of_doubling.value < 0.002
    assert found.at(40_000) == pytest.approx(0.3, abs=0.005)


def test_neither_floor_nor_scale_is_negative():
    found = fit_curve({1000: [0.1], 2000: [0.2], 4000: [0.3]})
    assert found.scale.value == 0
    steep = fit_curve({1000: [1.0], 2000: [0.1], 4000: [0.01]})
    assert steep.floor.value >= 0


@pytest.mark.parametrize("given", [{}, {1000: [1.0], 2000: [0.5]}, {0: [1.0], 1: [0.5], 2: [0.4]}])
def test_too_few_points(given):
    with pytest.raises(ValueError, match="at least three numbers of pairs"):
        fit_curve(given)


def test_a_loss_that_is_no_number():
    with pytest.raises(ValueError, match="not finite"):
        fit_curve({1: [1.0], 2: [float("nan")], 3: [0.5]})
