"""Whether a step was worth it, and whether more pairs are."""

import pytest

from projector.evaluation.learning_curve import fit_curve
from ray_jobs.jobs.ladder_gates import judge, ladder_verdict

IDENTITY = {"mse_standardized": 1.0, "outlier_dims": 30}


def judged(arch="mlp", loss=0.20, ridge=0.22, objective="embedding", **figures):
    summary = {"best_val_loss": loss, "ridge_val_loss": ridge, "train_pairs": 950, "objective": objective}
    ours = {"mse_standardized": 0.2, "outlier_dims": 2} | figures
    return judge(arch, summary, {"methods": {"projector": ours, "identity": IDENTITY}})


@pytest.mark.parametrize(
    ("arch", "changes", "passed", "said"),
    [
        (
            "mlp",
            {},
            True,
            "passed: validation loss 0.2, 9.1% better than ridge; 2 dimensions too wide, 30 before",
        ),
        ("linear", {"loss": 0.22}, True, "0.0% better than ridge"),
        ("linear", {"loss": 0.23}, False, "4.5% worse than ridge, where it began"),
        (
            "attention",
            {"loss": 0.2199},
            False,
            "no gain over ridge (validation loss 0.2199, ridge 0.22); use ridge",
        ),
        (
            "mlp",
            {"loss": 0.22},
            True,
            "no gain over ridge (validation loss 0.22, ridge 0.22); attention may still gain: it tells positions apart",
        ),
        (
            "mlp",
            {"objective": "response", "loss": 0.22},
            True,
            "under ridge by 0.22; attention may still gain",
        ),
        (
            "mlp",
            {"outlier_dims": 16},
            False,
            "16 dimensions are more than twice as wide as the target's, 30 before",
        ),
        ("mlp", {"mse_standardized": 1.0}, False, "no better than doing nothing"),
        (
            "linear",
            {"objective": "response", "mse_standardized": 9.0, "outlier_dims": 99},
            True,
            "velocities are off by 0.2, under ridge by 0.22",
        ),
        (
            "attention",
            {"objective": "response", "loss": 0.22},
            False,
            "no gain over ridge: the image model's",
        ),
    ],
)
def test_a_step_passes_or_says_what_to_change(arch, changes, passed, said):
    gate = judged(arch, **changes)
    assert gate.passed == passed
    assert said in gate.sentence


def test_a_step_says_what_its_pictures_show_where_that_is_known():
    summary = {"best_val_loss": 0.2, "ridge_val_loss": 0.22, "objective": "response", "train_pairs": 900}
    figures = {"mse_standardized": 0.5, "outlier_dims": 0, "fidelity": 0.853}
    methods = {
        "projector": figures | {"intervals": {"fidelity": [0.8, 0.9]}},
        "identity": figures | {"fidelity": 0.31},
    }
    said = judge("linear", summary, {"methods": methods}).sentence
    assert said.endswith("pictures show 0.85 of their references (0.80 to 0.90), 0.31 without a projector")
    del methods["projector"]["intervals"]
    said = judge("linear", summary, {"methods": methods}).sentence
    assert said.endswith("pictures show 0.85 of their references, 0.31 without a projector")


def curve(exponent=0.4, scale=3.0, noise=(0.0, 0.0, 0.0)):
    losses = {n: [0.2 + scale * n**-exponent + e for e in noise] for n in (125, 250, 500, 1000)}
    return [{"pairs": n} for n in losses], fit_curve(losses)


@pytest.mark.parametrize(
    ("made", "answer"),
    [
        (curve(), "more data pays"),
        (curve(scale=0.0), "more data does not pay"),
        (
            curve(scale=0.1, noise=(-0.05, 0.0, 0.05)),
            "whether more data pays cannot be told from these points",
        ),
    ],
)
def test_is_more_data_worth_it(made, answer):
    said = ladder_verdict(*made, seconds_per_sample=3.6, steps=[], planned=[1000])
    assert said.startswith("From 1,000 to 2,000 pairs the validation loss is expected to fall by ")
    assert said.endswith(f"for 1.00 device-hours: {answer}.")


def test_a_climb_that_ended_early_says_so_first():
    step = {"arch": "mlp", **judged(mse_standardized=1.0).as_json()}
    said = ladder_verdict(*curve(), seconds_per_sample=1, steps=[step], planned=[1000, 5000])
    assert said.startswith("The climb ended at mlp with 950 pairs: no better than doing nothing")
    assert "climb ended" not in ladder_verdict(*curve(), seconds_per_sample=1, steps=[step], planned=[1000])


def test_without_a_curve_nothing_is_promised():
    three = fit_curve({n: [3.0 * n**-0.4, 3.1 * n**-0.4] for n in (250, 500, 1000)})
    said = ladder_verdict([], three, seconds_per_sample=1, steps=[], planned=[10])
    assert said.startswith("Whether more data pays is not known: ")
