"""The first lines of the report: what is better than what, and what is not shown to be."""

import json

import pytest

from ray_jobs.report.better import better_table
from ray_jobs.report.run_files import Run, Training, find_run
from ray_jobs.report.run_schema import Comparison, Evaluation, Summary
from ray_jobs.report.tables import trainings_table
from ray_jobs.report.verdict import standings, verdict
from report_example import (
    HOSTILE,
    OLD_METHODS,
    drawn_and_read,
    evaluation,
)
from shards.stores.local import open_storage


def verdict_of(*contents):
    """The page's first lines for evaluations with these contents."""
    evaluations = {f"run-{i}": Evaluation.model_validate(content) for i, content in enumerate(contents)}
    return verdict(Run("run", open_storage("."), (), {}, evaluations, {}, {}, ()))


def test_what_is_not_shown_to_be_better_is_not_called_better():
    close = evaluation(0.28)
    (line, *_) = verdict_of(close)
    assert line.warns
    assert line.text == (
        "No projector is shown to be better than the best baseline, ridge. The best one, run-0, has standardised MSE "
        "0.28, \u22129.7% (95% \u221232% to +13%), on 200 held-out pairs."
    )
    # Better on nearly every pair, though the intervals of both overlap.
    (line, *_) = verdict_of(evaluation(0.28, doubt=0.01))
    assert not line.warns
    assert line.text == (
        "run-0 is better than the best baseline, ridge: standardised MSE 0.28, \u22129.7% (95% \u221213% to "
        "\u22126.5%), on 200 held-out pairs."
    )
    del close["methods"]["projector"]["against"]  # written before there were any
    assert "not compared with a baseline pair by pair" in verdict_of(close)[0].text


def test_all_projectors_of_the_page_are_counted():
    """What one evaluation calls better by a little is not, beside nine other trainings."""
    content = evaluation(0.28, doubt=0.01)
    content["methods"]["projector"]["against"]["mse_standardized"]["p"] = 0.02
    assert "is better than" in verdict_of(content)[0].text
    assert "No projector is shown to be better" in verdict_of(content, *[evaluation(0.4)] * 9)[0].text


def test_what_pictures_follow_decides():
    content = evaluation(0.5)  # worse than ridge in embeddings
    for name, value in (("projector", 0.1), ("ridge", 0.2), ("identity", 0.4)):
        content["methods"][name]["velocity_error"] = value
    content["methods"]["projector"]["against"]["velocity_error"] = {
        "baseline": "ridge", "difference": -0.1, "interval": [-0.12, -0.08], "p": 0.002, "better": True,
    }  # fmt: skip
    assert verdict_of(content)[0].text.startswith(
        "run-0 is better than the best baseline, ridge: velocity error 0.1, \u221250%"
    )
    table = better_table({"mlp": Evaluation.model_validate(content)}, {})
    assert [(row[0].text, row[0].detail) for row in table.rows] == [
        ("mlp", "projector, better"),
        ("ridge", "baseline"),
        ("doing nothing", "baseline"),
        ("no picture", "baseline"),
    ]
    assert [row[1].text for row in table.rows] == ["\u221250%", "the best baseline", "\u2013", "\u2013"]
    assert table.columns[:4] == ["method", "difference to ridge", "velocity error", "standardised MSE"]


def test_pictures_that_were_read_decide():
    steers = drawn_and_read(0.8, 0.3, 0.5)
    assert verdict_of(steers)[0].text == (
        "run-0 is better than the best baseline, ridge: fidelity of the picture 0.8, +100% (95% +75% to +125%), on "
        "32 of 200 held-out pairs."
    )
    table = better_table({"mlp": Evaluation.model_validate(steers)}, {})
    assert [row[0].text for row in table.rows] == ["mlp", "ridge", "doing nothing", "no picture"]
    assert table.columns[2:5] == ["fidelity of the picture", "velocity error", "standardised MSE"]
    # Better in embeddings, and draws what it likes.
    (line, *_) = verdict_of(drawn_and_read(0.3, -0.2, 0.05))
    assert line.warns
    assert line.text.startswith(
        "No projector is shown to be better than the best baseline, ridge. The best one"
    )


def test_better_than_a_baseline_that_shows_nothing():
    steers = drawn_and_read(0.8, 0.3, 0.5)
    steers["methods"]["ridge"]["fidelity"] = 0.0
    (line, *_) = verdict_of(steers)
    assert not line.warns
    assert (
        "is better than the best baseline, ridge: fidelity of the picture 0.8 against 0, on 32 of"
        in line.text
    )


def test_projectors_of_one_page_are_told_apart_by_what_is_known_of_all():
    steers, older = drawn_and_read(0.3, -0.2, 0.05), evaluation(0.1, doubt=0.01)
    older["methods"]["projector"] |= {"velocity_error": 0.1}
    older["methods"]["projector"]["against"]["velocity_error"] = {
        "baseline": "ridge", "difference": -0.1, "interval": [-0.12, -0.08], "p": 0.002, "better": True,
    }  # fmt: skip
    older["methods"]["ridge"]["velocity_error"] = 0.2
    assert verdict_of(steers, older)[0].text.startswith(
        "run-1 is better than the best baseline, ridge: velocity"
    )


def test_a_projector_that_reads_the_graft_is_named_so():
    training = Training((), Summary(), {"reader": "graft"})
    table = better_table({"g": Evaluation.model_validate(evaluation(0.1))}, {"g": training})
    assert table.rows[0][0].detail == "projector of the graft, better"


@pytest.mark.parametrize(
    ("groups", "told"), [(12, "60 test pairs in 12 groups"), (60, "60 test pairs"), (0, "60 test pairs")]
)
def test_groups_are_told_where_they_are_fewer_than_pairs(groups, told):
    content = {"split": "test", "pairs": 60, "groups": groups, "methods": OLD_METHODS}
    assert Evaluation.model_validate(content).counted() == told


def compared(better, adherence=None, value="0.3"):
    """A comparison whose projector leads by 0.2 in fidelity in the mode guidance."""
    lead = {"baseline": "text", "fidelity": {"mean": 0.2, "low": 0.1, "high": 0.4, "better": better}}
    if adherence is not None:
        lead["adherence"] = {"mean": 0.1, "low": -0.1, "high": 0.3, "better": adherence}
    content = {
        "references": 5,
        "methods": {"projector": {"guidance": {value: {"fidelity": {"mean": 0.5}}}}},
        "differences": {"guidance": {value: lead}, "gone": {"1": lead}},
    }
    return Comparison.model_validate(content)


@pytest.mark.parametrize(
    ("comparison", "word", "warns"),
    [
        (compared(better=True), "above", False),
        (compared(better=False), "not shown to be above", True),
        (compared(better=True, adherence=True), "above", False),
        (compared(better=True, adherence=False), "in fidelity above", False),
        (compared(better=False, adherence=True), "in adherence above", True),
    ],
)
def test_pictures_have_their_word_in_the_verdict(comparison, word, warns):
    line = verdict(Run("run", open_storage("."), (), {}, {}, {"": comparison}, {}, ()))[-1]
    assert line.warns == warns
    assert line.text.startswith(f"In pictures (run): guidance 0.3: fidelity 0.5; {word} text, ")


def test_a_value_that_is_none_is_shown_as_it_stands():
    assert standings(compared(better=True, value=HOSTILE))[0].startswith(f"guidance {HOSTILE}: ")


def test_an_exported_copy_is_no_projector_of_its_own(tmp_path):
    again = evaluation(0.1 + 1e-7, doubt=0.01)  # the copy measured again, by another version
    made = {"mlp": evaluation(0.1), "export": evaluation(0.1), "again": again, "other": evaluation(0.2)}
    for name, content in made.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval.json").write_text(json.dumps(content))
    for name in ("export", "again", "other"):
        (tmp_path / name / "README.md").write_text("# A card")
    assert sorted(find_run(open_storage(str(tmp_path))).evaluations) == ["mlp", "other"]


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({"vl": {"id": "tiny/vl"}}, "random test models"),
        ({"text": {"id": "tiny/image"}, "vl": {"id": "Qwen/Qwen3-VL-4B-Instruct"}}, "random test models"),
        ({"image": {"id": "mini/image"}, "vl": {"id": "mini/vl"}}, "miniatures"),
        ({"image": {"id": "Tongyi-MAI/Z-Image-Turbo"}, "vl": "Qwen/Qwen3-VL-4B-Instruct"}, ""),
        (None, ""),
    ],
)
def test_random_and_miniature_models_are_said_first(models, said):
    training = Training((), Summary(), {"base_models": models})
    evaluations = {"mlp": Evaluation.model_validate(evaluation(0.1))}
    lines = verdict(Run("run", open_storage("."), (), {"mlp": training}, evaluations, {}, {}, ()))
    assert lines[0].text.startswith("The models of this run are ") == bool(said)
    assert said in lines[0].text
    assert len(lines) == 1 + bool(said)


def test_the_verdict_names_the_best():
    (line,) = verdict_of(evaluation(0.1), evaluation(0.2))
    assert line.text.startswith("run-0 is better than the best baseline, ridge: standardised MSE 0.1, ")
    assert not line.warns
    beaten = verdict_of(evaluation(0.5))[0]
    assert beaten.warns
    assert beaten.text.startswith(
        "No projector is shown to be better than the best baseline, ridge. The best one, run-0"
    )
    assert verdict_of()[0].text == "No projector was evaluated in this run."
    alone = {"pairs": 3, "methods": {"projector": OLD_METHODS["projector"]}}
    assert "not compared with a baseline" in verdict_of(alone)[0].text


def test_losses_of_different_learning_are_not_ranked_together():
    trainings = {
        name: Training((), Summary(arch="linear", objective=objective, best_val_loss=loss), {})
        for name, objective, loss in (
            ("a", "response", 0.2),
            ("b", "embedding", 0.05),
            ("c", "response", 0.1),
        )
    }
    table = trainings_table(trainings)
    assert [row[0].text for row in table.rows] == ["b", "c", "a"]
    assert table.marked == -1
