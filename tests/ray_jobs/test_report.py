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
from ray_jobs.report import sections
from ray_jobs.report.bars import difference_bar
from ray_jobs.report.better import better_table
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
from ray_jobs.report.tables import COLUMNS, trainings_table
from ray_jobs.report.verdict import standings, verdict
from report_example import (
    HOSTILE,
    evaluation,
    picture,
    write_comparison,
    write_dataset,
    write_run,
    write_training,
)
from s3_support import use
from shards.errors import UsageError
from shards.stores.local import LocalStorage, open_storage

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
        "No projector is shown to be better than the best baseline, ridge. The best one, mlp, has standardised MSE "
        "0.26, \u221216% (95% \u221239% to +6.5%), on 200 held-out pairs.",
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
        "mlp has 16% less validation loss than ridge",
        "Caption swap of mlp",
        "In pictures (compare): concat: adherence 0.63, fidelity 0.63; above identity, the best of the others: by "
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
    asked = re.findall(r'<h2 id="(\w+)">([^<]*)</h2>', page)
    assert asked == [(anchor, words) for anchor, _, words in report_module.QUESTIONS]
    assert re.findall(r'<a href="#(\w+)">', page) == [anchor for anchor, _ in asked]


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
        frontier_chart(
            {(label, label): [(0.1, 0.2)] for label in labels},
            strong="",
            x_label="x",
            y_label="y",
            title=HOSTILE,
        ),
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
    assert "mlp has standardised MSE 0.25 on 3 held-out pairs" in elsewhere.read_text()


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
    there = storage.get_bytes("report.html").decode().replace(root, str(whole))
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
    rows = re.findall(
        r'<td data-order="([^"]*)">(?:projector|ridge|identity|no_input)', page.split("Methods of mlp")[-1]
    )
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
    # Seven in the table, less the one that cannot be read, and the reference; four of them at first glance, too.
    assert page.count("data:image/webp") == 6 + 3


def test_few_cases_are_enough(small, capsys, monkeypatch):
    monkeypatch.setattr(gallery, "CASES", 1)
    monkeypatch.setattr(sections, "CASES", 1)
    write_comparison(small, cases=2)
    page = page_of(small, capsys)
    assert page.count('class="slider"') == 1
    assert "1 of 2 cases are shown" in page
    assert "Not everything in this run could be shown" not in page


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


def drawn_and_read(fidelity, low, high):
    """An evaluation whose pictures were read: ridge is behind in embeddings and velocities, and 0.4 in fidelity."""
    content = evaluation(0.28, doubt=0.01) | {"judged": {"velocity_error": 64, "fidelity": 32}}
    for name, value in (("projector", fidelity), ("ridge", 0.4), ("identity", 0.3)):
        content["methods"][name] |= {"fidelity": value, "velocity_error": 1 - value}
    content["methods"]["projector"]["against"]["fidelity"] = {
        "baseline": "ridge", "difference": fidelity - 0.4, "interval": [low, high], "p": 0.002, "better": low > 0,
    }  # fmt: skip
    return content


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


def test_a_page_without_pictures_tells_what_was_read_from_them(tmp_path):
    def page_of(content):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "eval.json").write_text(json.dumps(content))
        return report_module.render(find_run(open_storage(str(folder))))

    steers = page_of(drawn_and_read(0.8, 0.3, 0.5))
    assert "show 0.8 of what their references show, on 32 of 200 held-out pairs" in steers
    assert "right of the mark is better" in steers
    plain = page_of(evaluation(0.28))
    assert "Not known: this run has no pictures." in plain
    assert "left of the mark is better" in plain


def test_a_projector_that_reads_the_graft_is_named_so():
    training = Training((), Summary(), {"reader": "graft"})
    table = better_table({"g": Evaluation.model_validate(evaluation(0.1))}, {"g": training})
    assert table.rows[0][0].detail == "projector of the graft, better"


def test_bars_end_at_the_edge_and_take_no_text():
    drawn = [
        difference_bar(value, value - 0.1, value + 0.1, 0.5, good=value < 0) for value in (-0.3, 0.0, 9.0)
    ]
    assert [float(re.search(r'cx="([\d.]+)"', bar)[1]) for bar in drawn] == [27.0, 60.0, 115.0]
    assert ['class="bar good"' in bar for bar in drawn] == [True, False, False]


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
