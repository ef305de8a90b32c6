import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import Synthetic

from projector.data.align import Alignment
from projector.data.pairs import in_memory
from projector.evaluation.baselines import TrainStatistics, overall_std, ridge_baseline
from projector.evaluation.contest import Contest
from projector.evaluation.evaluator import evaluate
from projector.evaluation.intervals import GroupSums
from projector.evaluation.metrics import Standard
from projector.network.projector import Projector
from projector.options import EvaluateOptions, TrainOptions
from projector.training.loop import train
from shards.errors import UsageError

WORLD = Synthetic(width=32, image_tokens=12, text_tokens=(3, 9), latent=4)
TRAIN, VAL = WORLD.source(60), WORLD.source(25, first=1000)
METRICS = {
    "mse",
    "mse_standardized",
    "cosine_similarity",
    "per_dim_correlation",
    "r2",
    "std_ratio_range",
    "outlier_dims",
    "collapsed_dims",
    "recall_at_1",
    "recall_at_5",
    "rms_r2",
    "rms_cosine",
    "sliced_wasserstein",
    "by_kind",
    "intervals",
    "correlation_quantiles",
    "dimensions",
    "worst_dimensions",
}
UNTRAINED = {
    "no_input", "identity", "global_scale", "per_dim_norm", "per_dim_clip", "mask_zero", "mask_clamp", "mask_scale",
}  # fmt: skip


def trained(tmp_path, epochs=15, **chosen):
    options = TrainOptions(
        output=str(tmp_path),
        objective="embedding",
        length=6,
        epochs=epochs,
        batch_size=8,
        align="pool",
        **chosen,
    )
    train(options, TRAIN, VAL)
    return Projector.from_pretrained(str(tmp_path))


def run(projectors, train_pairs=TRAIN, pairs=VAL, kind="pool"):
    return evaluate(projectors, train_pairs, VAL, pairs, EvaluateOptions(), alignment=Alignment(kind, 6))


@functools.cache
def of_baselines(kind):
    """What is measured of the baselines alone; of each kind of alignment it is measured once."""
    return run({}, kind=kind)


@pytest.mark.parametrize("arch", ["linear", "mlp", "attention"])
def test_a_trained_projector_beats_what_needs_no_training(tmp_path, arch):
    result = run({"projector": trained(tmp_path, arch=arch)})
    methods = result["methods"]
    assert set(methods) == UNTRAINED | {"ridge", "projector"}
    assert result["winner"] == result["ranking"][0] in ("ridge", "projector")
    errors = [methods[name]["mse_standardized"] for name in result["ranking"]]
    assert errors == sorted(errors)
    assert set(result["profile"]["methods"]) == {"identity", "ridge", "projector"}
    assert len(result["profile"]["methods"]["projector"]["std_ratio"]) == 32
    assert all(set(method) - {"against"} == METRICS for method in methods.values())
    assert {name for name, method in methods.items() if "against" not in method} == {"ridge"}
    for name, method in methods.items():
        if name not in ("ridge", "projector"):
            assert methods["projector"]["mse_standardized"] < method["mse_standardized"]
            assert methods["projector"]["per_dim_correlation"] > method["per_dim_correlation"] + 0.2
            assert methods["projector"]["recall_at_5"] > method["recall_at_5"]
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("kind", ["pool", "mean", "per_token"])
def test_baselines_equal_a_plain_computation(kind):
    result = of_baselines(kind)
    text = np.concatenate([pair.text.float().numpy() for pair in TRAIN]).astype(np.float64)
    image = np.concatenate([pair.vl.float().numpy() for pair in TRAIN]).astype(np.float64)
    units = lambda x: (x - image.mean(0)) / image.std(0)  # noqa: E731
    wild = image.std(0) > 2 * text.std(0)
    reach = text.mean(0) - 3 * text.std(0), text.mean(0) + 3 * text.std(0)
    assert wild.any()
    assert not wild.all()
    predict = {
        "per_dim_clip": lambda x: np.clip(units(x), -3, 3) * text.std(0) + text.mean(0),
        "mask_zero": lambda x: np.where(wild, 0, x),
        "mask_clamp": lambda x: np.where(wild, np.clip(x, *reach), x),
        "mask_scale": lambda x: np.where(wild, x * 2 * text.std(0) / image.std(0), x),
        "no_input": lambda x: np.tile(text.mean(0), (len(x), 1)),
        "identity": lambda x: x,
        "global_scale": lambda x: x * text.std() / image.std(),
        "per_dim_norm": lambda x: (x - image.mean(0)) / image.std(0) * text.std(0) + text.mean(0),
    }

    def aligned(rows, length):
        if kind == "per_token":
            return rows[:length]
        return np.repeat(rows, length, axis=0).reshape(length, len(rows), -1).mean(1)

    tokens = 0
    for name, method in predict.items():
        errors = []
        for pair in VAL:
            vl, target = (side.float().numpy().astype(np.float64) for side in (pair.vl, pair.text))
            length = {"pool": min(6, len(target)), "mean": 1, "per_token": min(len(vl), len(target))}[kind]
            errors.append(aligned(method(vl), length) - aligned(target, length))
        errors = np.concatenate(errors)
        tokens = len(errors)
        assert result["methods"][name]["mse"] == pytest.approx((errors**2).mean(), rel=1e-5)
        expected = ((errors / text.std(0)) ** 2).mean()
        assert result["methods"][name]["mse_standardized"] == pytest.approx(expected, rel=1e-5)
    assert (result["pairs"], result["tokens"]) == (25, tokens)
    assert (result["layer"], result["text_mode"], result["align"]) == (-8, "none", kind)


def test_doing_nothing_scores_as_doing_nothing():
    methods = of_baselines("pool")["methods"]
    assert methods["no_input"]["mse_standardized"] == pytest.approx(1, abs=0.15)
    assert methods["no_input"]["recall_at_1"] <= 0.05
    assert methods["no_input"]["collapsed_dims"] == 32
    assert methods["per_dim_norm"]["outlier_dims"] == 0


def test_means_are_compared_for_content_and_tokens_for_distribution():
    mean, pool = of_baselines("mean")["methods"], of_baselines("pool")["methods"]
    assert mean["per_dim_norm"]["std_ratio_range"][0] > 0.7
    assert pool["per_dim_norm"]["std_ratio_range"][0] < mean["per_dim_norm"]["std_ratio_range"][0]


def test_kinds_are_measured_apart(tmp_path):
    both = WORLD.source(60, text_mode="caption", tokens="all")
    held_out = WORLD.source(25, first=1000, text_mode="caption", tokens="all")
    result = run({}, both, held_out, kind="per_token")
    kinds = result["methods"]["per_dim_norm"]["by_kind"]
    assert set(kinds) == {"image", "text"}
    assert kinds["text"]["per_dim_correlation"] > 0.9, (
        "the caption's copy in the VL input is nearly the target"
    )
    assert abs(kinds["image"]["per_dim_correlation"]) < 0.3
    alone = run(
        {}, both, in_memory([pair.only("text") for pair in held_out], tokens="text"), kind="per_token"
    )
    assert alone["methods"]["identity"]["mse"] == pytest.approx(
        result["methods"]["identity"]["by_kind"]["text"]["mse"]
    )


@pytest.mark.parametrize("kind", ["pool", "mean", "soft"])
def test_ridge_stands_among_the_baselines(kind):
    methods = of_baselines(kind)["methods"]
    assert methods["ridge"]["mse_standardized"] < methods["no_input"]["mse_standardized"]
    assert methods["ridge"]["per_dim_correlation"] > 0.3


@pytest.mark.parametrize("align", ["soft", "pool"])
def test_the_ridge_of_an_evaluation_is_the_ridge_of_a_training(tmp_path, align):
    """One ridge: fitted on train, its penalty chosen on val, reported on pairs that chose nothing."""
    train(TrainOptions(output=str(tmp_path), arch="ridge", align=align, length=6), TRAIN, VAL)
    test = WORLD.source(25, first=2000)
    result = run({"projector": Projector.from_pretrained(str(tmp_path))}, pairs=test, kind=align)
    ours, baseline = (result["methods"][name] for name in ("projector", "ridge"))
    assert result["split"] == "test"
    assert (result["pairs"], result["train_pairs"], result["val_pairs"]) == (25, 60, 25)
    for figure in ("mse_standardized", "per_dim_correlation", "r2"):
        assert baseline[figure] == pytest.approx(ours[figure], rel=1e-5)
    against = ours["against"]["mse_standardized"]
    assert (against["baseline"], against["better"]) == ("ridge", False)
    assert max(map(abs, against["interval"])) < 1e-6 * ours["mse_standardized"]


@pytest.mark.long
def test_ridge_is_never_better_than_itself():
    """Forty times the same ridge twice, the second on the same pairs in another order: 0 are called better."""
    named = 0
    for seed in range(40):
        world = Synthetic(width=8, seed=seed, image_tokens=4, text_tokens=(2, 4), latent=2)
        fitted, chosen, test = (
            list(world.source(30)),
            world.source(10, first=100),
            world.source(12, first=200),
        )
        alignment = Alignment("mean", 4)
        methods = {
            "ridge": ridge_baseline(in_memory(fitted), chosen, alignment),
            "projector": ridge_baseline(in_memory(fitted[::-1]), chosen, alignment),
        }
        reference = TrainStatistics.of(in_memory(fitted))
        standard = Standard(reference.targets.mean, reference.target_std, np.eye(8))
        contest = Contest(methods, standard, alignment, ("image",), ("projector",))
        ours = contest.measure(test, range(12)).result()["methods"]["projector"]["against"][
            "mse_standardized"
        ]
        assert len(ours["interval"]) == 2
        named += ours["better"]
    assert named == 0


def test_captions_of_a_picture_count_together():
    """Five captions of each picture: intervals and differences are over pictures, whatever the workers."""
    pairs = [
        replace(pair, group=f"picture {place // 5}")
        for place, pair in enumerate(WORLD.source(60, first=3000))
    ]
    contest = Contest.between({}, TRAIN, VAL, EvaluateOptions(), alignment=Alignment("mean", 6))
    contest = replace(contest, methods={name: contest.methods[name] for name in ("ridge", "no_input")})
    measured = contest.measure(in_memory(pairs), range(33))
    measured.merge(contest.measure(in_memory(pairs), range(33, 60)))
    methods = measured.result()["methods"]
    std = TrainStatistics.of(TRAIN).target_std
    errors = {}
    for name in ("ridge", "no_input"):
        apart = [
            contest.methods[name].apply(p.vl.float()).double().mean(0) - p.text.double().mean(0)
            for p in pairs
        ]
        by_pair = ((torch.stack(apart).numpy() / std) ** 2).mean(1)
        errors[name] = GroupSums(by_pair.reshape(12, 5).sum(1), np.full(12, 5.0))
        found = measured.whole[name].errors()
        np.testing.assert_allclose(sorted(found.over), sorted(errors[name].over), rtol=1e-5)
        np.testing.assert_array_equal(found.under, errors[name].under)
    told = methods["no_input"]["against"]["mse_standardized"]
    assert told["baseline"] == "ridge"
    assert told["difference"] == pytest.approx(errors["no_input"].value - errors["ridge"].value, rel=1e-5)
    assert "against" not in methods["ridge"]


def test_workers_that_share_the_pairs_find_what_one_finds():
    contest = Contest.between({}, TRAIN, VAL, EvaluateOptions(), alignment=Alignment("soft", 6))
    whole = contest.measure(VAL, range(25)).result()
    shared = contest.measure(VAL, range(10))
    shared.merge(contest.measure(VAL, range(10, 25)))
    found = shared.result()
    assert found["ranking"] == whole["ranking"]
    for name, expected in whole["methods"].items():
        for figure in ("mse", "r2", "recall_at_1", "sliced_wasserstein", "rms_cosine"):
            assert found["methods"][name][figure] == pytest.approx(expected[figure], rel=1e-9)
        assert found["methods"][name]["intervals"]["mse"] == pytest.approx(expected["intervals"]["mse"])


def test_a_method_of_the_samples_key_stands_among_the_others():
    contest = Contest.between({}, TRAIN, VAL, EvaluateOptions(), alignment=Alignment("soft", 6))
    texts = {pair.key: pair.text for pair in VAL}
    result = contest.measure(VAL, range(25), by_key={"told": lambda key: texts[key]}).result()
    assert result["winner"] == "told"
    assert result["methods"]["told"]["mse"] == pytest.approx(0, abs=1e-9)
    assert result["methods"]["told"]["recall_at_1"] == 1


def test_the_graft_is_measured_on_what_it_read_of_the_same_pictures():
    right = in_memory(
        [replace(pair, vl=pair.text, vl_kind=pair.vl_kind[:1].expand(len(pair.text))) for pair in VAL]
    )
    options, alignment = EvaluateOptions(), Alignment("pool", 6)
    result = evaluate({}, TRAIN, VAL, VAL, options, alignment=alignment, grafted=right)
    assert result["winner"] == "graft"
    assert result["methods"]["graft"]["mse_standardized"] < 1e-12
    shuffled = in_memory([*list(right)[1:], next(iter(right))])
    with pytest.raises(ValueError, match="are not in one order"):
        evaluate({}, TRAIN, VAL, VAL, options, alignment=alignment, grafted=shuffled)


def test_a_projector_with_the_name_of_a_baseline(tmp_path):
    with pytest.raises(UsageError, match="called 'ridge', which is a baseline's name"):
        run({"ridge": trained(tmp_path, epochs=1)})


def test_another_width(tmp_path):
    projector = trained(tmp_path, epochs=1)
    other = Synthetic(width=16, image_tokens=12).source(3)
    with pytest.raises(UsageError, match="has width 32, the pairs have 16"):
        evaluate(
            {"projector": projector}, other, other, other, EvaluateOptions(), alignment=Alignment("pool", 6)
        )


def test_overall_std_is_that_of_all_numbers():
    reference = TrainStatistics.of(TRAIN)
    text = torch.cat([pair.text.double() for pair in TRAIN]).numpy()
    assert overall_std(reference.targets) == pytest.approx(text.std(), rel=1e-6)
