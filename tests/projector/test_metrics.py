"""Every figure against a plain numpy computation that shares no code with the streaming one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from projector.evaluation.distances import (
    random_directions,
    retrieval,
    sliced_wasserstein,
    weighted_wasserstein,
)
from projector.evaluation.intervals import percentiles
from projector.evaluation.metrics import Metrics, Standard, rms_norm
from projector.evaluation.moments import PAIRS_AT_A_TIME, Moments, bootstrap_weights, row_sums

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


def measured(predictions, targets, mean, std, directions, first=0, replicates=0):
    standard = Standard(mean, std, directions)
    metrics = Metrics(standard, replicates)
    for index, (x, y) in enumerate(zip(predictions, targets, strict=True), start=first):
        rows = torch.from_numpy(y)
        target = standard.target(f"pair {index}", rows, rows, replicates)
        metrics.update(target, torch.from_numpy(x), torch.from_numpy(x))
    return metrics


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 2 * PAIRS_AT_A_TIME))
def test_streaming_equals_plain_numpy(seed, pairs):
    data = made(seed, pairs)
    directions = random_directions(WIDTH, 7, seed=0)
    expected = plain(*data, directions)
    result = measured(*data, directions).result()
    assert result.keys() == expected.keys() | {"correlation_quantiles", "dimensions", "worst_dimensions"}
    for name, value in expected.items():
        tolerance = 2e-6 if name == "sliced_wasserstein" else 1e-6  # slices are kept in float32
        np.testing.assert_allclose(result[name], value, rtol=tolerance, atol=1e-9, err_msg=name)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_workers_merged_equal_one_alone(seed, cut):
    predictions, targets, mean, std = made(seed, 9)
    directions = random_directions(WIDTH, 7, seed=0)
    merged = measured(predictions[:cut], targets[:cut], mean, std, directions, replicates=5)
    merged.merge(measured(predictions[cut:], targets[cut:], mean, std, directions, first=cut, replicates=5))
    whole = measured(predictions, targets, mean, std, directions, replicates=5).result()
    parts = merged.result()
    intervals = parts.pop("intervals"), whole.pop("intervals")
    for name in ("mse", "r2", "recall_at_1", "sliced_wasserstein"):
        np.testing.assert_allclose(intervals[0][name], intervals[1][name], rtol=1e-7, atol=1e-9, err_msg=name)
    for name in set(whole) - {"correlation_quantiles", "dimensions", "worst_dimensions"}:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-7, atol=1e-9, err_msg=name)


def test_the_sample_for_retrieval_is_bounded_and_the_same_in_any_order(monkeypatch):
    monkeypatch.setattr("projector.evaluation.metrics.KEPT_PAIRS", 10)
    predictions, targets, mean, std = made(0, 40)
    directions = random_directions(WIDTH, 7, seed=0)
    whole = measured(predictions, targets, mean, std, directions)
    late = measured(predictions[25:], targets[25:], mean, std, directions, first=25)
    late.merge(measured(predictions[:25], targets[:25], mean, std, directions))
    assert len(whole._kept) == 10
    assert whole._kept.keys() == late._kept.keys()
    assert late.result()["recall_at_5"] == whole.result()["recall_at_5"]


def test_dimensions_are_told_by_name():
    predictions, targets, mean, std = made(3, 30)
    result = measured(predictions, targets, mean, std, random_directions(WIDTH, 7, seed=0)).result()
    x, y = np.concatenate(predictions), np.concatenate(targets)
    correlations = np.array([np.corrcoef(x[:, d], y[:, d])[0, 1] for d in range(WIDTH)])
    assert list(result["dimensions"]) == ["4"], "396 is not there at this width"
    assert result["dimensions"]["4"]["std_ratio"] == pytest.approx(x[:, 4].std() / y[:, 4].std())
    assert result["dimensions"]["4"]["correlation"] == pytest.approx(correlations[4])
    assert [each["dimension"] for each in result["worst_dimensions"]] == np.argsort(correlations).tolist()
    assert result["correlation_quantiles"]["0.05"] == pytest.approx(np.quantile(correlations, 0.05))


def test_intervals_are_those_of_a_plain_bootstrap_over_samples():
    predictions, targets, mean, std = made(11, 50)
    directions = random_directions(WIDTH, 7, seed=0)
    intervals = measured(predictions, targets, mean, std, directions, replicates=100).result()["intervals"]
    weights = np.array([bootstrap_weights(f"pair {index}", 100) for index in range(50)])[:, 1:]
    seen = []
    for replicate in weights.T.astype(int):
        x, y = (np.concatenate([rows for rows, n in zip(side, replicate, strict=True) for _ in range(n)])
                for side in (predictions, targets))  # fmt: skip
        seen.append([((x - y) ** 2).mean(), np.median(1 - ((x - y) ** 2).mean(0) / y.var(0))])
    low, high = np.percentile(seen, percentiles(50), axis=0)
    assert intervals["mse"] != intervals["mse_standardized"]
    np.testing.assert_allclose(intervals["mse"], [low[0], high[0]], rtol=1e-6)
    np.testing.assert_allclose(intervals["r2"], [low[1], high[1]], rtol=1e-6)


def test_weights_of_a_pair_are_its_own():
    weights = np.array([bootstrap_weights(f"pair {index}", 50) for index in range(400)])
    assert (weights[:, 0] == 1).all()
    assert weights[:, 1:].mean() == pytest.approx(1, abs=0.02)
    assert weights[:, 1:].var() == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(bootstrap_weights("pair 7", 50), weights[7])


def moments_of(x, y, cut):
    sums = sum(row_sums(a, b) for a, b in zip(np.split(x, [cut]), np.split(y, [cut]), strict=True))
    return Moments(len(x), sums)


@given(hnp.arrays(np.float64, (6, 2), elements=st.floats(-1e3, 1e3)), st.integers(0, 6))
def test_moments_do_not_depend_on_the_cut(rows, cut):
    x, y = rows[:, :1] + 1e3, rows[:, 1:]
    parts = moments_of(x, y, cut)
    np.testing.assert_allclose(parts.variance_x, x.var(0), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(parts.variance_y, y.var(0), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(parts.squared_error, ((x - y) ** 2).mean(0), rtol=1e-6, atol=1e-5)


def test_a_dimension_that_never_moves_neither_correlates_nor_explains():
    moments = moments_of(np.array([[0.1, 1.0], [0.1, 2.0]]), np.array([[0.3, 1.0], [0.3, 2.0]]), 1)
    assert moments.correlation == pytest.approx([0.0, 1.0])
    assert np.isnan(moments.r2[0])
    assert moments.r2[1] == 1.0


def test_retrieval_counts_ties_as_half():
    gallery = np.eye(8)
    assert retrieval(gallery, gallery, "abcdefgh").tolist() == [[1.0] * 8, [1.0] * 8]
    constant = np.ones((8, 8))
    assert retrieval(constant, gallery, "abcdefgh").tolist() == [[0.0] * 8, [1.0] * 8]  # rank 4.5 of 8
    names = [str(i) for i in range(100)]
    assert retrieval(np.zeros((100, 8)), np.random.default_rng(0).normal(size=(100, 8)), names).sum() == 0
    twins = np.repeat(np.eye(8), 2, axis=0)
    assert retrieval(twins, twins, names[:16])[0].sum() == 0  # rank 1.5
    assert retrieval(twins, twins, "aabbccddeeffgghh")[0].sum() == 16  # captions of one picture


def test_captions_of_the_same_picture_are_no_wrong_answers():
    random = np.random.default_rng(0)
    queries, gallery = random.normal(size=(2, 30, 3))
    groups = [str(place) for place in random.integers(0, 8, 30)]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, gallery)]
    similarity = unit[0] @ unit[1].T
    ranks = [
        1 + sum(row[j] > row[i] for j in range(30) if groups[j] != groups[i])
        for i, row in enumerate(similarity)
    ]
    expected = [[float(rank <= k) for rank in ranks] for k in (1, 5)]
    assert retrieval(queries, gallery, groups).tolist() == expected
    assert retrieval(queries, gallery, [str(i) for i in range(30)]).tolist() != expected


def test_a_naive_comparison_would_be_caught():
    """A constant predictor's similarities are all equal: nothing is greater than the own one."""
    random = np.random.default_rng(0)
    names = [str(i) for i in range(50)]
    assert retrieval(np.zeros((50, 4)), random.normal(size=(50, 4)), names)[0].mean() == 0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 7), (50, 50), (64, 9)])
def test_wasserstein_of_clouds_of_any_size(n, m):
    random = np.random.default_rng(n * 100 + m)
    x, y = random.normal(size=(n, 3)), random.normal(size=(m, 3)) * 2 + 1
    fine = np.sort(np.repeat(x, m, axis=0), axis=0) - np.sort(np.repeat(y, n, axis=0), axis=0)
    assert sliced_wasserstein(x, y) == pytest.approx(np.sqrt((fine**2).mean()))
    assert sliced_wasserstein(x, np.repeat(x, 4, axis=0)) == pytest.approx(0, abs=1e-9)


def test_weighting_a_point_is_repeating_it():
    random = np.random.default_rng(5)
    x, y = random.normal(size=(30, 3)), random.normal(size=(40, 3)) + 1
    times = random.poisson(1.0, (2, 30)) + 1.0, random.poisson(1.0, (2, 40)) + 1.0
    found = weighted_wasserstein(x, times[0], y, times[1])
    for row in range(2):
        repeated = (
            np.repeat(points, count[row].astype(int), axis=0)
            for points, count in zip((x, y), times, strict=True)
        )
        assert found[row] == pytest.approx(sliced_wasserstein(*repeated), rel=0.02)


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
