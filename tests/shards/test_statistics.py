"""Running statistics against numpy in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.format.statistics import RunningStatistics


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, 13_504.0, -4_544.0, 1e6]),
    scale=st.sampled_from([1e-3, 1.0, 87.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_in_any_cut_give_what_numpy_gives_at_once(sizes, offset, scale, seed):
    random = np.random.default_rng(seed)
    blocks = [(offset + scale * random.normal(size=(size, 3))).astype(np.float32) for size in sizes]
    rows = np.concatenate(blocks).astype(np.float64)
    straight, merged = RunningStatistics(3), RunningStatistics(3)
    for block in blocks:
        straight.update(block)
        part = RunningStatistics(3)
        part.update(block)
        merged.merge(part)
    for statistics in (straight, merged):
        assert statistics.count == len(rows)
        if len(rows):
            np.testing.assert_allclose(statistics.mean, rows.mean(axis=0), rtol=1e-12, atol=1e-12)
            tolerance = 1e-9 * max(1.0, float(rows.var(axis=0).max()))
            np.testing.assert_allclose(statistics.variance(), rows.var(axis=0), rtol=1e-9, atol=tolerance)


def test_json_is_exact():
    statistics = RunningStatistics(5)
    statistics.update(np.random.default_rng(0).normal(size=(7, 5)))
    again = RunningStatistics.from_json(statistics.to_json())
    assert again.count == 7
    np.testing.assert_array_equal(again.mean, statistics.mean)
    np.testing.assert_array_equal(again.m2, statistics.m2)
    np.testing.assert_array_equal(again.std(), np.sqrt(statistics.m2 / 7))


def test_nothing_seen_has_no_spread():
    assert RunningStatistics(2).variance().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("damage", [{"count": -1}, {"count": 1.5}, {"mean": "AAAA"}, {"m2": "not base64!"}])
def test_broken_json_is_refused(damage):
    statistics = RunningStatistics(2)
    statistics.update(np.ones((2, 2)))
    with pytest.raises(ValueError):
        RunningStatistics.from_json({**statistics.to_json(), **damage})
