import json

import numpy as np
import pytest
import torch

from projector.align import Alignment
from projector.data import in_memory
from projector.evaluation import Reference, evaluate, overall_std
from projector.options import EvaluateOptions, TrainOptions
from projector.projector import Projector
from projector.synthetic import Synthetic
from projector.training import train
from shards.errors import UsageError

WORLD = Synthetic(width=32, image_tokens=12, text_tokens=(3, 9), latent=4)
TRAIN, VAL = WORLD.source(60), WORLD.source(25, first=1000)
METRICS = {
    "mse", "mse_standardized", "cosine_similarity", "per_dim_correlation", "r2", "std_ratio_range",
    "outlier_dims", "collapsed_dims", "recall_at_1", "recall_at_5", "rms_r2", "rms_cosine",
    "sliced_wasserstein", "by_kind",
}  # fmt: skip


def trained(tmp_path, **chosen):
    options = TrainOptions(output=str(tmp_path), length=6, epochs=15, batch_size=8, align="pool", **chosen)
    train(options, TRAIN, VAL)
    return Projector.from_pretrained(str(tmp_path))


def run(projectors, train_pairs=TRAIN, val_pairs=VAL, kind="pool"):
    return evaluate(projectors, train_pairs, val_pairs, EvaluateOptions(), alignment=Alignment(kind, 6))


@pytest.mark.parametrize("arch", ["linear", "mlp", "attention"])
def test_a_trained_projector_beats_what_needs_no_training(tmp_path, arch):
    result = run({"projector": trained(tmp_path, arch=arch)})
    methods = result["methods"]
    assert set(methods) == {"no_input", "identity", "global_scale", "per_dim_norm", "ridge", "projector"}
    assert all(set(method) == METRICS for method in methods.values())
    for name, method in methods.items():
        if name not in ("ridge", "projector"):
            assert methods["projector"]["mse_standardized"] < method["mse_standardized"]
            assert methods["projector"]["per_dim_correlation"] > method["per_dim_correlation"] + 0.2
            assert methods["projector"]["recall_at_5"] > method["recall_at_5"]
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("kind", ["pool", "mean", "per_token"])
def test_baselines_equal_a_plain_computation(kind):
    result = run({}, kind=kind)
    text = np.concatenate([pair.text.float().numpy() for pair in TRAIN]).astype(np.float64)
    image = np.concatenate([pair.vl.float().numpy() for pair in TRAIN]).astype(np.float64)
    predict = {
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
    methods = run({})["methods"]
    assert methods["no_input"]["mse_standardized"] == pytest.approx(1, abs=0.15)
    assert methods["no_input"]["recall_at_1"] <= 0.05
    assert methods["no_input"]["collapsed_dims"] == 32
    assert methods["per_dim_norm"]["outlier_dims"] == 0


def test_means_are_compared_for_content_and_tokens_for_distribution():
    mean, pool = run({}, kind="mean")["methods"], run({}, kind="pool")["methods"]
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
    methods = run({}, kind=kind)["methods"]
    assert methods["ridge"]["mse_standardized"] < methods["no_input"]["mse_standardized"]
    assert methods["ridge"]["per_dim_correlation"] > 0.3


def test_another_width(tmp_path):
    projector = trained(tmp_path)
    other = Synthetic(width=16, image_tokens=12).source(3)
    with pytest.raises(UsageError, match="has width 32, the pairs have 16"):
        evaluate({"projector": projector}, other, other, EvaluateOptions(), alignment=Alignment("pool", 6))


def test_overall_std_is_that_of_all_numbers():
    reference = Reference.of(TRAIN)
    text = torch.cat([pair.text.double() for pair in TRAIN]).numpy()
    assert overall_std(reference.targets) == pytest.approx(text.std(), rel=1e-6)
