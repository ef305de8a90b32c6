"""Intervals hold what they promise, and nothing is called better by luck."""

import numpy as np
import pytest

from projector.evaluation.intervals import (
    LEAST_GROUPS,
    REPLICATES,
    GroupSums,
    against_best,
    level_of_all,
    percentiles,
    resampled,
    t_quantile,
)

WORLDS = 1000
# What SciPy 1.17 says. Installed, it would be imported by diffusers and transformers in every process of every job.
FREEDOM = (1, 2, 3, 7, 10, 11, 30, 199, 200, 500)
STUDENTS = {
    0.9: (6.313752, 2.919986, 2.353363, 1.894579, 1.812461, 1.795885, 1.697261, 1.652547, 1.652508, 1.647907),
    0.95: (12.7062, 4.302653, 3.182446, 2.364624, 2.228139, 2.200985, 2.042272, 1.971957, 1.971896, 1.96472),
    0.996875: (
        *(203.7167, 17.84659, 8.767633, 4.408365, 3.866882),
        *(3.765443, 3.213845, 2.991712, 2.991527, 2.969613),
    ),
}
LOW_PERCENTILE = 1.8753900  # 100 * norm.cdf(t.ppf(0.025, 29) * sqrt(30 / 29))
BCA = (0.7350519, 1.1209633)  # bootstrap((values,), mean, n_resamples=2000).confidence_interval


def grouped(random, pairs):
    """Pictures with one to nine captions, whose errors have most of their spread in common."""
    groups = pairs // 3
    captions = random.integers(1, 10, groups)
    shared = random.gamma(2.0, 1.0, groups)
    sums = np.array([random.gamma(2.0, mean / 2, n).sum() for mean, n in zip(shared, captions, strict=True)])
    return GroupSums(sums, captions.astype(float))


def alone(draw):
    return lambda random, pairs: GroupSums(draw(random, pairs), np.ones(pairs))


CASES = {
    "gamma": (alone(lambda random, n: random.gamma(2.0, 1.0, n)), 2.0),
    "skewed gamma": (alone(lambda random, n: random.gamma(0.5, 1.0, n)), 0.5),
    "lognormal": (alone(lambda random, n: random.lognormal(0.0, 1.0, n)), np.exp(0.5)),
    "grouped": (grouped, 2.0),
}


@pytest.mark.parametrize("pairs", [30, 100])
@pytest.mark.parametrize("case", CASES)
def test_intervals_hold_the_truth_as_often_as_they_say(case, pairs):
    draw, truth = CASES[case]
    random = np.random.default_rng(pairs)
    found = resampled({str(world): draw(random, pairs) for world in range(WORLDS)})
    held = [low <= truth <= high for low, high in (each.interval() for each in found.values())]
    assert len(held) == WORLDS
    assert np.mean(held) >= 0.90


def test_rows_of_a_group_are_not_drawn_one_by_one():
    """The same values without their groups promise far too much."""
    random = np.random.default_rng(0)
    means = np.repeat(random.gamma(2.0, 1.0, (200, 20)), 5, axis=1)
    by_group = resampled(
        {str(i): GroupSums(row.reshape(20, 5).sum(1), np.full(20, 5.0)) for i, row in enumerate(means)}
    )
    by_row = resampled({str(i): GroupSums(row, np.ones(100)) for i, row in enumerate(means)})
    covered = [
        np.mean([low <= 2.0 <= high for low, high in (each.interval() for each in found.values())])
        for found in (by_group, by_row)
    ]
    assert covered[0] >= 0.90
    assert covered[1] < 0.70


def test_an_interval_is_that_of_a_plain_studentised_bootstrap():
    sums = grouped(np.random.default_rng(3), 60)
    found = resampled({"one": sums})["one"]

    def ratio_and_error(over, under):
        ratio = over.sum() / under.sum()
        apart = over - ratio * under
        return ratio, np.sqrt(len(over) * apart.var(ddof=1)) / under.sum()

    drawn = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), REPLICATES)
    value, error = ratio_and_error(sums.over, sums.under)
    away = []
    for counts in drawn:
        replicate, its_error = ratio_and_error(np.repeat(sums.over, counts), np.repeat(sums.under, counts))
        away.append((replicate - value) / its_error)
    high, low = np.quantile(away, (0.025, 0.975))
    np.testing.assert_allclose(found.interval(), [value - low * error, value - high * error], rtol=1e-6)
    # SciPy has no studentised one; its best is near where values are mild.
    values = np.random.default_rng(4).normal(1.0, 1.0, 100)
    ends = resampled({"one": GroupSums(values, np.ones(100))})["one"].interval()
    np.testing.assert_allclose(ends, BCA, atol=0.03)


def test_blocks_of_draws_are_one_draw(monkeypatch):
    sums = {"one": grouped(np.random.default_rng(3), 60)}
    whole = resampled(sums)["one"]
    monkeypatch.setattr("projector.evaluation.intervals.WEIGHTS_AT_A_TIME", 700)
    np.testing.assert_allclose(resampled(sums)["one"].studentised, whole.studentised)


def test_too_few_groups_have_no_interval():
    sums = GroupSums(np.arange(LEAST_GROUPS - 1.0), np.ones(LEAST_GROUPS - 1))
    assert resampled({"one": sums}) == {}
    found = against_best({"ours": sums, "ridge": GroupSums(sums.over + 1, sums.under)}, ["ours"])["ours"]
    assert found == {"baseline": "ridge", "difference": pytest.approx(-1.0), "better": False}


def errors_of(random, **means):
    """Errors of methods that find the same pairs hard."""
    hard = random.gamma(2.0, 1.0, 60)
    return {
        name: GroupSums(mean * hard + 0.2 * random.normal(size=60), np.ones(60))
        for name, mean in means.items()
    }


def test_what_is_better_is_called_so_against_the_best_baseline():
    errors = errors_of(np.random.default_rng(0), ours=0.8, poor=1.3, identity=5.0, ridge=1.0)
    found = against_best(errors, ["ours", "poor"])
    assert found.keys() == {"ours", "poor", "identity"}
    assert {entry["baseline"] for entry in found.values()} == {"ridge"}
    assert found["ours"]["better"]
    assert found["ours"]["p"] == pytest.approx(2 / 1001)
    assert found["ours"]["interval"][0] < found["ours"]["difference"] < found["ours"]["interval"][1] < 0
    assert not found["poor"]["better"]
    expected = (errors["ours"].over - errors["ridge"].over).mean()
    assert found["ours"]["difference"] == pytest.approx(expected)
    # Errors alone, which overlap, would not tell.
    ours, ridge = (resampled({"one": errors[name]})["one"].interval() for name in ("ours", "ridge"))
    assert ours[1] > ridge[0]


def test_a_baseline_is_never_called_better():
    errors = errors_of(np.random.default_rng(1), ours=2.0, ridge=1.0, identity=3.0)
    assert not any(entry["better"] for entry in against_best(errors, ["ours"]).values())
    assert against_best({"ours": errors["ours"]}, ["ours"]) == {}


def test_several_methods_make_each_interval_wider():
    errors = errors_of(np.random.default_rng(2), ours=0.9, ridge=1.0, **{f"m{i}": 1.0 for i in range(4)})
    one = against_best({name: errors[name] for name in ("ours", "ridge")}, ["ours"])["ours"]["interval"]
    five = against_best(errors, [name for name in errors if name != "ridge"])["ours"]["interval"]
    assert five[0] < one[0]
    assert one[1] < five[1]


def test_of_five_methods_like_the_baseline_none_is_called_better():
    named = 0
    for world in range(100):
        errors = errors_of(np.random.default_rng(world), ridge=1.0, **{f"m{i}": 1.0 for i in range(5)})
        found = against_best(errors, [f"m{i}" for i in range(5)])
        named += any(entry["better"] for entry in found.values())
    assert named <= 5


def test_rounding_is_no_difference():
    errors = errors_of(np.random.default_rng(3), ridge=1.0)
    errors["ours"] = GroupSums(errors["ridge"].over - 1e-6, errors["ridge"].under)
    found = against_best(errors, ["ours"])["ours"]
    assert not found["better"]
    assert found["interval"][1] < 0


def test_percentiles_and_quantiles_are_those_of_scipy():
    assert list(STUDENTS) == pytest.approx([0.9, 0.95, level_of_all(16)])
    for level, wanted in STUDENTS.items():
        assert [t_quantile(freedom, level) for freedom in FREEDOM] == pytest.approx(wanted, rel=1e-4)
    low, high = percentiles(30)
    assert low == pytest.approx(LOW_PERCENTILE, rel=1e-3)
    assert low + high == pytest.approx(100)
