"""The page of a run: found wherever its files lie, hostile text shown as text, broken files named."""

import json
import re
from pathlib import Path

import pytest

from projector.network.model_card import FIGURES
from ray_jobs.__main__ import main
from ray_jobs.report import coverage as coverage_module
from ray_jobs.report import page as report_module
from ray_jobs.report import pictures as gallery
from ray_jobs.report.charts import (
    frontier_chart,
    heat_map,
    histogram,
    interval_chart,
    line_chart,
    ratio_chart,
)
from ray_jobs.report.coverage import OTHERS, coverage
from ray_jobs.report.run_files import Run, Training, find_run
from ray_jobs.report.run_schema import Comparison, Evaluation, Summary
from ray_jobs.report.tables import COLUMNS
from ray_jobs.report.verdict import best_first, standings, verdict
from report_example import (
    HOSTILE,
    evaluation,
    picture,
    write_comparison,
    write_dataset,
    write_run,
    write_training,
)
from s3_support import moto, use
from shards.errors import UsageError
from shards.stores.local import LocalStorage, open_storage

__all__ = ["moto"]

OLD_METHODS = {
    name: {"mse_standardized": error, "per_dim_correlation": 0.5, "mse": 1.0}
    for name, error in (("identity", 7.0), ("projector", 0.25), ("ridge", 0.3))
}
OLD = {"pairs": 3, "tokens": 9, "layer": -8, "text_mode": "none", "methods": OLD_METHODS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with everything in it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    write_dataset(run / "data", run.parent / "spool")
    write_run(run)
    return run


@pytest.fixture
def small(tmp_path):
    """A run of one training whose evaluation is of an older version."""
    run = tmp_path / "run"
    write_training(run / "mlp", epochs=3)
    (run / "mlp" / "eval.json").write_text(json.dumps(OLD))
    return run


def page_of(run, capsys):
    """The page that the command writes."""
    assert main(["report", "--report.run", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {Path(run) / 'report.html'}\n"
    return (Path(run) / "report.html").read_text()


@pytest.fixture(scope="module")
def page(whole):
    """The whole run's page."""
    assert main(["report", "--report.run", str(whole)]) == 0
    return (whole / "report.html").read_text()


def verdict_of(*contents):
    """The page's first lines for evaluations with these contents."""
    evaluations = {f"run-{i}": Evaluation.model_validate(content) for i, content in enumerate(contents)}
    return verdict(Run("run", open_storage("."), (), {}, evaluations, {}, {}, ()))


def test_the_page_tells_what_the_run_holds(whole, page):
    for told in (
        "mlp has the least error, but is not shown to be better than ridge (paired difference of the errors -0.05,",
        "More data pays: double it.",
        "<b>9</b>pairs",
        "<b>1</b>failed",
        "cells of content, style and subject have samples",
        "0 of 9 captions are nearly the same as another",
        "Failures by class",
        "RuntimeError",
        "dimension 396 from 43 to ",
        "Histogram of the dimensions",
        "Error against spread",
        "mlp beats ridge on validation",
        "Caption swap of mlp",
        "In pictures (compare): concat: adherence 0.63, fidelity 0.63; above identity, the best of the others, by "
        "fidelity 0.25 (95% 0.12 to 0.38).",
        "2 references, blended by interpolate, scored by attributes read from pixels",
        "Projector above the best of the others in compare: paired differences",
        "Adherence and fidelity in compare: text 0.63 / 0.63; identity, concat 0.63 / 0.63; identity, guidance 0.4 / "
        "0.4, 0.53 / 0.53;",
        "Validation loss by number of training pairs: 0.41 with 1,000 pairs",
        find_run(open_storage(str(whole))).datasets[0].fingerprint,
        "numpy 2",
    ):
        assert told in page, told
    assert "could not be read" not in page
    assert page.count('<img alt="Picture made from: ') == 9
    assert page.count('class="slider"') == 2
    order = [
        "verdict",
        "What was built",
        "Pictures",
        "Training",
        "Evaluation: mlp",
        "Without and with",
        "Learning",
    ]
    places = [page.index(f">{name}") if name != "verdict" else page.index('class="verdict') for name in order]
    assert places == sorted(places)


def test_markup_from_outside_is_text(page):
    assert page.count("<script") == page.count("</script") == 1
    assert page.count("<style") - page.count("<style type") == 1
    assert "linear<b>" not in page
    assert "&lt;script&gt;alert(" in page
    assert "safe }" not in Path(report_module.__file__).with_name("report.html").read_text()


def test_ids_are_used_once(page):
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) > 10
    assert len(ids) == len(set(ids))


def test_no_column_repeats_the_cosine_under_another_name():
    """RMSNorm without weights scales rows, so the cosine after it is the cosine."""
    assert [name for name in (*FIGURES, *COLUMNS) if "cosine" in name] == ["cosine_similarity"] * 2


def test_the_ticks_of_a_narrow_range_are_all_different():
    svg = str(line_chart({"a": [(1, 0.2023), (9, 0.2131)]}, x_label="x", y_label="y", title="t"))
    ticks = [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg) if text.startswith("0.2")]
    assert len(ticks) > 3
    assert len(set(ticks)) == len(ticks)
    assert not re.search(r"<[^>]*\d\.\d{3}[^>]*>", svg)  # what only places things stays short


def test_charts_draw_hostile_labels_as_they_stand():
    labels = [HOSTILE, "_hidden", "$\\frac{$", "\ud800\x1b[2J", "🦊 עברית", "x" * 100]
    drawings = [
        line_chart(
            {label: [(1, 2), (2, 0)] for label in labels}, x_label="x", y_label="y", title=t, log_y=True
        )
        for t in (HOSTILE, '" onload="alert(1)')
    ]
    counts = {(labels[0], labels[1]): 2}
    drawings += [
        heat_map(counts, rows=labels, columns=labels, top=2, title=HOSTILE),
        ratio_chart([None, 1.0, -1.0, 0.0], [None] * 4, named=(1, 396), title=HOSTILE),
        histogram([None], [], x_label="x", title=HOSTILE),
        interval_chart([(1, 2, 2, 2)], x_label="x", y_label="y", title=HOSTILE),
        frontier_chart({label: [(0.1, 0.2)] for label in labels}, x_label="x", y_label="y", title=HOSTILE),
    ]
    for svg in drawings:
        assert svg.startswith('<svg role="img" aria-label="')
        assert "<script" not in svg
        assert 'onload="' not in svg
    assert "$\\frac{$" in drawings[0]
    assert "_hidden" in drawings[0]
    assert "\x1b" not in drawings[0]


def test_a_page_elsewhere(small, tmp_path):
    elsewhere = tmp_path / "pages" / "index.html"
    assert main(["report", "--report.run", str(small), "--report.output", str(elsewhere)]) == 0
    assert "beats every baseline" in elsewhere.read_text()


@pytest.mark.server
def test_a_run_in_a_bucket(whole, page, moto, monkeypatch, capsys):
    use(monkeypatch, moto.env)
    root = f"s3://{moto.new_bucket()}/some/run"
    storage = open_storage(root)
    for file in whole.rglob("*"):
        if file.is_file() and file.name != "report.html":
            storage.put_file(str(file.relative_to(whole)), file)
    assert main(["report", "--report.run", root]) == 0
    assert capsys.readouterr().out == f"report: {root}/report.html\n"
    written = re.compile(r"Written [^<]*|Dataset <code>[^<]*|&#34;root&#34;: [^\n]*")
    there = storage.get_bytes("report.html").decode()
    assert written.sub("", there) == written.sub("", page)


def test_what_is_found(whole):
    found = find_run(open_storage(str(whole)))
    assert [Path(dataset.storage.root).name for dataset in found.datasets] == ["data"]
    assert set(found.trainings) == set(found.evaluations) == {"linear<b>", "mlp"}
    assert (list(found.comparisons), list(found.ladders)) == (["compare"], ["run"])
    alone = find_run(open_storage(str(whole / "mlp")))
    assert (list(alone.trainings), alone.datasets) == (["mlp"], ())


def test_a_dataset_is_not_listed(whole, monkeypatch):
    looked = []
    look = LocalStorage.look
    monkeypatch.setattr(
        LocalStorage, "look", lambda self, folder="": looked.append(folder) or look(self, folder)
    )
    listed = []
    listing = LocalStorage.list
    monkeypatch.setattr(
        LocalStorage, "list", lambda self, prefix="": listed.append(prefix) or listing(self, prefix)
    )
    find_run(open_storage(str(whole)))
    assert {"", "mlp", "data", "compare/pictures"} <= set(looked)
    assert not {"data/train", "data/val", "data/_commit", "compare/pictures/r0"} & set(looked)
    assert set(listed) == {"_commit/"}


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(UsageError, match=r"no dataset\.json, metrics\.jsonl or eval\.json there"):
        find_run(open_storage(str(tmp_path)))


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("mlp/metrics.jsonl", "{", "mlp/metrics.jsonl could not be read"),
        ("mlp/metrics.jsonl", '{"epoch": "soon"}', "epoch: Input should be a valid integer"),
        ("mlp/metrics.jsonl", f'{{"epoch": 1{"0" * 400}}}', "epoch: Input should be less than"),
        ("mlp/metrics.jsonl", b"\xff\xfe", "mlp/metrics.jsonl could not be read"),
        ("mlp/config.json", "[]", "holds no JSON object"),
        ("mlp/summary.json", '{"restoration": 3}', "restoration: Input should be a valid tuple"),
        ("mlp/eval.json", "nonsense", "is not JSON"),
        ("mlp/eval.json", "[" * 100_000, "is not JSON"),
        ("mlp/eval.json", "{}", "methods: Field required"),
        ("mlp/eval.json", '{"methods": {"a": 1}}', "methods.a: Input should be"),
        ("compare.json", '{"cases": [{"pictures": [{}]}]}', "cases.0.pictures.0.method"),
        ("ladder.json", '{"curve": [{"pairs": "many"}]}', "curve.0.pairs"),
        ("data/dataset.json", "{}", "format version None"),
    ],
)
def test_a_broken_file_is_named_and_the_rest_is_shown(small, capsys, file, content, told):
    (small / file).parent.mkdir(exist_ok=True)
    (small / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    page = page_of(small, capsys)
    assert told in page
    assert page.index("could not be read") < page.index("<h2")
    assert "Traceback" not in page


def test_nothing_readable_is_an_error_of_one_line(tmp_path, capsys):
    (tmp_path / "eval.json").write_text("nonsense")
    assert main(["report", "--report.run", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: report.run = ")
    assert error.count("\n") == 1
    assert "eval.json could not be read" in error


def test_odd_numbers_are_shown_as_absent(small, capsys):
    content = json.loads(json.dumps(OLD))
    content["methods"]["no_input"] = {
        "mse_standardized": float("nan"),
        "r2": 1e308,
        "intervals": {"r2": [[1], 2, 3]},
    }
    content["profile"] = {"methods": {"identity": {"std_ratio": [float("inf"), None]}, "projector": {}}}
    (small / "mlp" / "eval.json").write_text(json.dumps(content))
    page = page_of(small, capsys)
    assert "could not be read" not in page
    assert "e+308" not in page
    rows = re.findall(r'<td data-order="([^"]*)">(?:projector|ridge|identity|no_input)', page)
    assert rows == ["projector", "ridge", "identity", "no_input"]


@pytest.mark.parametrize("root", ["gone", "x" * 5000, "nul\0", "ftp://elsewhere"])
def test_a_dataset_that_cannot_be_read_is_named(small, capsys, root):
    (small / "mlp" / "config.json").write_text(json.dumps({"options": {"data": root}}))
    assert f"dataset {root} could not be read: ".replace("\0", r"\u0000") in page_of(small, capsys)


@pytest.mark.parametrize("file", ["../secret.png", "/etc/passwd", "absent.png", "link.png", "text.png"])
def test_pictures_come_from_the_run_alone(small, capsys, file):
    write_comparison(small / "mlp", cases=1)
    for place in (small, small.parent):
        (place / "secret.png").write_bytes(picture(1))
    (small / "mlp" / "link.png").symlink_to(small.parent / "secret.png")  # links inside the run are followed
    (small / "mlp" / "text.png").write_text("no picture")
    content = json.loads((small / "mlp" / "compare.json").read_text())
    content["cases"][0]["pictures"][0]["file"] = file
    (small / "mlp" / "compare.json").write_text(json.dumps(content))
    page = page_of(small, capsys)
    assert f"{file}&#39; could not be read" in page
    assert page.count("data:image/webp") == 7


def test_few_cases_are_enough(small, capsys, monkeypatch):
    monkeypatch.setattr(gallery, "CASES", 1)
    write_comparison(small, cases=2)
    page = page_of(small, capsys)
    assert page.count('class="slider"') == 1
    assert "1 of 2 cases are shown" in page


def test_a_projector_that_copies_is_called_so_first(small, capsys):
    (small / "mlp" / "eval.json").write_text(json.dumps(evaluation(copies=True)))
    page = page_of(small, capsys)
    copies = "<strong>mlp only copies its prompt. Projector copies the caption.</strong>"
    assert copies in page
    assert page.index(copies) < page.index("<h2")


def test_what_is_not_shown_to_be_better_is_not_called_better():
    close = evaluation(0.28)
    (line, *_) = verdict_of(close)
    assert line.warns
    assert "beats" not in line.text
    assert line.text.startswith(
        "run-0 has the least error, but is not shown to be better than ridge (paired difference of the errors -0.03, "
        "95% -0.1 to 0.04). It has standardised MSE 0.28,"
    )
    # Better on nearly every pair, though the intervals of both overlap.
    close["methods"]["projector"]["differences"]["ridge"]["interval"] = [-0.05, -0.01]
    assert "beats every baseline" in verdict_of(close)[0].text
    del close["methods"]["projector"]["differences"]  # written before there were any
    assert "not shown to be better than ridge (their 95% intervals overlap)" in verdict_of(close)[0].text


def compared(low, references=5, value="0.3"):
    """A comparison whose projector leads by 0.2 in the mode guidance."""
    score = {"mean": 0.5}
    lead = {"baseline": "text", "fidelity": {"mean": 0.2, "low": low, "high": 0.4}}
    content = {
        "references": references,
        "methods": {"projector": {"guidance": {value: {"fidelity": score}}}},
        "differences": {"guidance": {value: lead}, "gone": {"1": lead}},
    }
    return Comparison.model_validate(content)


@pytest.mark.parametrize(
    ("comparison", "warns"), [(compared(0.1), False), (compared(-0.1), True), (compared(0.1, 1), True)]
)
def test_pictures_have_their_word_in_the_verdict(comparison, warns):
    line = verdict(Run("run", open_storage("."), (), {}, {}, {"": comparison}, {}, ()))[-1]
    assert line.warns == warns
    assert line.text.startswith(
        "In pictures (run): guidance 0.3: fidelity 0.5; above text, the best of the others, by "
    )


def test_a_value_that_is_none_is_shown_as_it_stands():
    assert standings(compared(0.1, value=HOSTILE))[0].startswith(f"guidance {HOSTILE}: ")


def test_an_exported_copy_is_no_projector_of_its_own(tmp_path):
    for name, content in (("mlp", evaluation(0.1)), ("export", evaluation(0.1)), ("other", evaluation(0.2))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval.json").write_text(json.dumps(content))
    for name in ("export", "other"):
        (tmp_path / name / "README.md").write_text("# A card")
    assert sorted(find_run(open_storage(str(tmp_path))).evaluations) == ["mlp", "other"]


@pytest.mark.parametrize(
    ("models", "random"),
    [
        ({"vl": {"id": "tiny/vl"}}, True),
        ({"text": {"id": "tiny/image"}, "vl": {"id": "Qwen/Qwen3-VL-4B-Instruct"}}, True),
        ({"image": {"id": "Tongyi-MAI/Z-Image-Turbo"}, "vl": "Qwen/Qwen3-VL-4B-Instruct"}, False),
        (None, False),
    ],
)
def test_random_models_are_said_first(models, random):
    training = Training((), Summary(), {"base_models": models})
    evaluations = {"mlp": Evaluation.model_validate(evaluation(0.1))}
    lines = verdict(Run("run", open_storage("."), (), {"mlp": training}, evaluations, {}, {}, ()))
    assert (lines[0].warns and "random test models" in lines[0].text) == random


def test_the_verdict_names_the_winner():
    lines = verdict_of(evaluation(0.1), evaluation(0.2))
    assert lines[0].text.startswith(
        "run-0 is the best projector and beats every baseline: standardised MSE 0.1, "
    )
    assert lines[1].text == "Projector looks at the picture."
    assert not any(line.warns for line in lines)
    beaten = verdict_of(evaluation(0.5))[0]
    assert beaten.warns
    assert beaten.text.startswith(
        "No projector beats the baseline ridge (standardised MSE 0.31). The best one, run-0"
    )
    assert verdict_of()[0].text == "No projector was evaluated in this run."
    alone = {"pairs": 3, "methods": {"projector": OLD_METHODS["projector"]}}
    assert "without baselines" in verdict_of(alone)[0].text


def test_better_evaluations_come_first():
    found = {name: Evaluation.model_validate(evaluation(error)) for name, error in (("a", 0.5), ("b", 0.2))}
    found = {"none": Evaluation(methods={}), **found}
    assert best_first(found) == ["b", "a", "none"]


def test_many_categories_are_drawn_as_others(monkeypatch):
    monkeypatch.setattr(coverage_module, "MAPS", 2)
    monkeypatch.setattr(coverage_module, "LINES", 3)
    maps, told = coverage({(f"content {i}", f"style {i}", f"subject {i}"): i + 1 for i in range(50)})
    assert [name for name, _ in maps] == ["content 49", OTHERS]
    assert told == "3 of 18 cells of content, style and subject have samples."
    assert "content 49: 50 samples by subject and style, 8 of 9 cells empty, at most 50 in one" in maps[0][1]
    assert coverage({("", "", ""): 3}) == ([], "")


def test_names_that_steer_a_terminal_or_turn_the_text_round_are_shown(tmp_path, capsys):
    run = tmp_path / "run\x1b[2J\u202e"
    write_run(run)
    assert main(["report", "--report.run", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Projector run: run\\u001b[2J\\u202e" in page
    for text in (page, capsys.readouterr().out):
        assert "\x1b" not in text
        assert "\u202e" not in text
