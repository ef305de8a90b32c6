"""Every figure against a plain numpy computation that shares no code with the streaming one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from projector.metrics import Metrics, Moments, random_directions, retrieval, rms_norm, sliced_wasserstein

WIDTH = 5


def plain(predictions, targets, mean, std, directions):
    """The figures from whole arrays, as anyone would write them."""
    x, y = np.concatenate(predictions), np.concatenate(targets)
    r2 = 1 - ((x - y) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    rms = [rows / np.sqrt((rows**2).mean(1, keepdims=True) + 1e-6) for rows in (x, y)]
    rms_r2 = 1 - ((rms[0] - rms[1]) ** 2).sum(0) / ((rms[1] - rms[1].mean(0)) ** 2).sum(0)
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    ratio = x.std(0) / y.std(0)
    query = np.array([(rows.mean(0) - mean) / std for rows in predictions])
    gallery = np.array([(rows.mean(0) - mean) / std for rows in targets])
    similarity = np.array([[q @ g / np.linalg.norm(q) / np.linalg.norm(g) for g in gallery] for q in query])
    rank = [1 + sum(row[j] > row[i] for j in range(len(row)) if j != i) for i, row in enumerate(similarity)]
    along_x, along_y = ((rows - mean) / std @ directions for rows in (x, y))
    gaps = (np.sort(along_x, axis=0) - np.sort(along_y, axis=0)) ** 2
    return {
        "mse": ((x - y) ** 2).mean(),
        "mse_standardized": (((x - y) / std) ** 2).mean(),
        "cosine_similarity": cosine.mean(),
        "per_dim_correlation": np.median([np.corrcoef(x[:, d], y[:, d])[0, 1] for d in range(WIDTH)]),
        "r2": np.median(r2),
        "std_ratio_range": [ratio.min(), ratio.max()],
        "outlier_dims": (ratio > 2).sum(),
        "collapsed_dims": (ratio < 0.5).sum(),
        "recall_at_1": np.mean([r <= 1 for r in rank]),
        "recall_at_5": np.mean([r <= 5 for r in rank]),
        "rms_r2": np.median(rms_r2),
        "rms_cosine": cosine.mean(),
        "sliced_wasserstein": np.sqrt(gaps.mean()),
    }


def made(seed, pairs, offset=300.0):
    random = np.random.default_rng(seed)
    scale = np.exp(random.normal(size=WIDTH))
    targets = [offset + scale * random.normal(size=(random.integers(2, 9), WIDTH)) for _ in range(pairs)]
    stretch = np.array([0.1, 0.7, 1.0, 1.5, 3.0])
    predictions = [
        offset + stretch * (rows - offset) + 0.3 * random.normal(size=rows.shape) + random.normal(size=WIDTH)
        for rows in targets
    ]
    everything = np.concatenate(targets)
    return predictions, targets, everything.mean(0) + 0.1, everything.std(0)


def measured(predictions, targets, mean, std, directions):
    metrics = Metrics(mean, std, directions)
    for x, y in zip(predictions, targets, strict=True):
        metrics.update(*(torch.from_numpy(rows) for rows in (x, y, x, y)))
    return metrics


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_streaming_equals_plain_numpy(seed, pairs):
    data = made(seed, pairs)
    directions = random_directions(WIDTH, 7, seed=0)
    expected = plain(*data, directions)
    result = measured(*data, directions).result()
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = 2e-6 if name == "sliced_wasserstein" else 1e-6  # slices are kept in float32
        np.testing.assert_allclose(result[name], value, rtol=tolerance, atol=1e-9, err_msg=name)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_workers_merged_equal_one_alone(seed, cut):
    predictions, targets, mean, std = made(seed, 6)
    directions = random_directions(WIDTH, 7, seed=0)
    merged = measured(predictions[:cut], targets[:cut], mean, std, directions)
    merged.merge(measured(predictions[cut:], targets[cut:], mean, std, directions))
    whole = measured(predictions, targets, mean, std, directions)
    for name, value in whole.result().items():
        np.testing.assert_allclose(merged.result()[name], value, rtol=1e-9, err_msg=name)


@given(hnp.arrays(np.float64, (6, 2), elements=st.floats(-1e3, 1e3)))
def test_moments_do_not_depend_on_the_cut(rows):
    x, y = rows[:, :1] + 1e6, rows[:, 1:]
    whole, parts = Moments(1), Moments(1)
    whole.update(x, y)
    for row in range(6):
        parts.update(x[row : row + 1], y[row : row + 1])
    for name in ("mean_x", "m2_x", "m2_y", "m_xy", "squared_error"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-7, atol=1e-3)


def test_a_dimension_that_never_moves_neither_correlates_nor_explains():
    moments = Moments(2)
    moments.update(np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([[5.0, 1.0], [5.0, 2.0]]))
    assert moments.correlation.tolist() == [0.0, 1.0]
    assert np.isnan(moments.r2[0])
    assert moments.r2[1] == 1.0


def test_retrieval_counts_ties_as_half():
    gallery = np.eye(8)
    assert retrieval(gallery, gallery).tolist() == [[1.0] * 8, [1.0] * 8]
    constant = np.ones((8, 8))
    assert retrieval(constant, gallery).tolist() == [[0.0] * 8, [1.0] * 8]  # rank 4.5 of 8
    assert retrieval(np.zeros((100, 8)), np.random.default_rng(0).normal(size=(100, 8))).sum() == 0
    twins = np.repeat(np.eye(8), 2, axis=0)
    assert retrieval(twins, twins)[0].sum() == 0  # rank 1.5


def test_a_naive_comparison_would_be_caught():
    """A constant predictor's similarities are all equal: nothing is greater than the own one."""
    random = np.random.default_rng(0)
    assert retrieval(np.zeros((50, 4)), random.normal(size=(50, 4)))[0].mean() == 0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 7), (50, 50), (64, 9)])
def test_wasserstein_of_clouds_of_any_size(n, m):
    random = np.random.default_rng(n * 100 + m)
    x, y = random.normal(size=(n, 3)), random.normal(size=(m, 3)) * 2 + 1
    fine = np.sort(np.repeat(x, m, axis=0), axis=0) - np.sort(np.repeat(y, n, axis=0), axis=0)
    assert sliced_wasserstein(x, y) == pytest.approx(np.sqrt((fine**2).mean()))
    assert sliced_wasserstein(x, np.repeat(x, 4, axis=0)) == pytest.approx(0, abs=1e-9)


def test_wasserstein_of_shifted_clouds_is_the_shift():
    x = np.random.default_rng(0).normal(size=(40, 3))
    assert sliced_wasserstein(x, x + 2.5) == pytest.approx(2.5)


def test_rms_norm():
    rows = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(rms_norm(rows), rows / np.sqrt(12.5))


def test_directions_are_unit_and_repeatable():
    directions = random_directions(6, 3, seed=4)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1)
    np.testing.assert_array_equal(directions, random_directions(6, 3, seed=4))
