"""The report of a run whose files are broken, odd, few or foreign: each is named and the rest is shown."""

import json
import re
from pathlib import Path

import pytest

from ray_jobs.__main__ import main
from ray_jobs.report import page as report_module
from ray_jobs.report import pictures as gallery
from ray_jobs.report import sections
from ray_jobs.report.run_files import find_run
from report_example import (
    OLD,
    drawn_and_read,
    evaluation,
    picture,
    write_comparison,
    write_training,
)
from shards.stores.local import open_storage


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


def test_a_page_elsewhere(small, tmp_path):
    elsewhere = tmp_path / "pages" / "index.html"
    assert main(["report", "--report.run", str(small), "--report.output", str(elsewhere)]) == 0
    assert "mlp has standardised MSE 0.25 on 3 held-out pairs" in elsewhere.read_text()


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
