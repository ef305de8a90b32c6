"""Who makes which shard next: pure, and simulated."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.planning.shard_schedule import choose, simulate
from shards.format.plan import shard_sizes

FULL = 64


def speeds(gpus, slowest=1.0, seed=0):
    """Seconds per sample: a spread of 10% to both sides, and one straggler."""
    drawn = random.Random(seed)
    seconds = [1 / drawn.uniform(0.9, 1.1) for _ in range(gpus)]
    return [seconds[0] / slowest, *seconds[1:]]


@pytest.mark.parametrize("gpus", [1, 2, 3, 8, 32, 100, 256, 1024])
@pytest.mark.parametrize(("slowest", "most"), [(1.0, 0.03), (0.5, 0.03), (0.25, 0.065)])
def test_with_eight_shards_a_gpu_few_are_idle(gpus, slowest, most):
    """A straggler ends with a small shard: 8 samples at quarter speed in a run of 512 are 6.25%."""
    sizes = shard_sizes(gpus * 8 * FULL, FULL)
    for seed in range(max(1, 20 // gpus)):
        assert simulate(sizes, speeds(gpus, slowest, seed)).idle < most


def test_in_shards_of_one_size_it_would_be_more():
    assert simulate([FULL] * 64 * 8, speeds(64)).idle > 0.05


def test_one_builder_is_never_idle():
    forecast = simulate([4, 4, 1], [2.0])
    assert (forecast.seconds, forecast.idle) == (18.0, 0.0)


@given(
    sizes=st.lists(st.integers(1, 64), min_size=1, max_size=40),
    seconds=st.lists(st.floats(0.1, 10), min_size=1, max_size=9),
)
def test_a_run_takes_no_less_than_its_work_and_no_more_than_its_slowest_alone(sizes, seconds):
    forecast = simulate(sizes, seconds)
    ideal = sum(sizes) / sum(1 / each for each in seconds)
    assert ideal * (1 - 1e-9) <= forecast.seconds <= sum(sizes) * max(seconds) * (1 + 1e-9)
    assert -1e-9 <= forecast.idle < 1


def test_the_largest_shard_that_ends_in_time():
    assert choose([8, 16, 64], None, 0.0) == 64
    assert choose([8, 16, 64], 1.0, 100.0) == 64
    assert choose([8, 16, 64], 1.0, 20.0) == 16
    assert choose([8, 16, 64], 3.0, 20.0) == 8
