"""`evaluate` as users start it: several projectors, the control, workers; what is refused before a model loads."""

import json

import pytest
import ray

from projector.data.dataset_pairs import load_pairs
from projector.options import TrainOptions
from projector.training.loop import train
from ray_jobs.__main__ import main
from ray_support import run_here


@pytest.fixture(scope="module")
def trained(undisturbed, tmp_path_factory):
    """Two projectors of the same pairs, and one that reads other tokens."""
    root = tmp_path_factory.mktemp("trained")
    for name, options in {
        "ridge": {"arch": "ridge"},
        "linear": {"arch": "linear", "epochs": 2, "objective": "embedding"},
        "all": {"arch": "ridge", "tokens": "all"},
    }.items():
        chosen = TrainOptions(data=str(undisturbed), output=str(root / name), **options)
        pairs = (
            load_pairs(str(undisturbed), split, layer=-8, text_mode="caption", tokens=chosen.tokens)
            for split in ("train", "val")
        )
        train(chosen, *pairs)
    return root


@pytest.mark.slow
@pytest.mark.ray
def test_workers_and_the_control(head, trained, tmp_path):
    words = [
        "evaluate", "--evaluate.checkpoint", str(trained / "ridge"),
        "--evaluate.others", json.dumps({"linear": str(trained / "linear")}),
    ]  # fmt: skip
    alone = run_here([*words, "--evaluate.output", str(tmp_path / "alone")], head.environment)
    assert alone.returncode == 0, alone.stderr
    more = [
        "--evaluate.output",
        str(tmp_path / "shared"),
        "--evaluate.workers",
        "2",
        "--evaluate.models",
        "tiny",
    ]
    shared = run_here([*words, *more], head.environment)
    assert shared.returncode == 0, shared.stderr
    one, two = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("alone", "shared"))
    assert one["split"] == two["split"] == "test"
    # The baseline is the ridge of the training: one penalty, chosen on val, one figure, of test.
    figures = (one["methods"][name]["mse_standardized"] for name in ("ridge", "projector"))
    assert next(figures) == pytest.approx(next(figures), rel=1e-5)
    assert set(two["methods"]) == set(one["methods"]) | {"vl_caption"}
    assert set(one["caption_swap"]) == {"projector", "linear"}
    for name, expected in one["methods"].items():
        for figure in ("mse", "r2", "recall_at_1", "sliced_wasserstein"):
            assert two["methods"][name][figure] == pytest.approx(expected[figure], rel=1e-6, abs=1e-9)
    assert "projector is not shown to be better than ridge: mse_standardized" in shared.stdout
    assert shared.stdout.splitlines()[-1] == (
        f"next: python -m ray_jobs compare --compare.checkpoint {trained / 'ridge'} --compare.models tiny"
    )
    assert "evaluate: " in shared.stdout
    table = [line.split()[0] for line in shared.stdout.splitlines() if line[:1] == " "]
    assert [name for name in table if name in two["methods"]] == two["ranking"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "evaluate.checkpoint is needed"),
        (
            ["--evaluate.checkpoint", "x", "--evaluate.models", "large"],
            "must be `tiny`, `mini`, or both `image` and `vl`",
        ),
        (["--evaluate.checkpoint", "x", "--evaluate.models.image", "a"], "evaluate.models.vl is needed"),
        (
            ["--evaluate.checkpoint", "x", "--evaluate.models.image", "nowhere", "--evaluate.models.vl", "b"],
            "evaluate.models.image = 'nowhere': no such folder",
        ),
    ],
)
def test_what_is_refused(capsys, words, message):
    assert main(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err


def test_projectors_that_read_other_tokens_are_not_measured_together(monkeypatch, capsys, trained):
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("started Ray"))
    others = json.dumps({"other": str(trained / "all")})
    words = ["--evaluate.checkpoint", str(trained / "ridge"), "--evaluate.others", others]
    assert main(["evaluate", *words]) == 2
    assert "other has tokens 'all', the checkpoint has 'image'" in capsys.readouterr().err
