"""The page of a run: found wherever its files lie, hostile text shown as text."""

import json
from pathlib import Path

import pytest

from ray_jobs.__main__ import main
from ray_jobs.report import find_run
from shards.errors import UsageError
from shards.storage import open_storage

METHODS = {
    name: {"mse_standardized": error, "per_dim_correlation": 0.5, "mse": 1.0}
    for name, error in (("identity", 7.0), ("projector", 0.25), ("ridge", 0.3))
}
RESULT = {"pairs": 3, "tokens": 9, "layer": -8, "text_mode": "none", "methods": METHODS}


@pytest.fixture
def run(make_dataset, tmp_path):
    """A run folder with a dataset whose captions hold markup, one training and its evaluation."""
    make_dataset(root=str(tmp_path / "run" / "data"))
    folder = tmp_path / "run" / "linear<b>"
    folder.mkdir()
    lines = [{"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 2 / epoch} for epoch in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({"arch": "<script>alert(1)</script>"}))
    (folder / "eval.json").write_text(json.dumps(RESULT))
    return tmp_path / "run"


def test_the_page_tells_what_the_run_holds(run, tmp_path, capsys):
    assert main(["report", "--report.run", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    assert "beats every baseline" in page
    assert "20" in page
    assert "<script>alert(1)" not in page
    assert "linear<b>" not in page
    elsewhere = tmp_path / "pages" / "index.html"
    assert main(["report", "--report.run", str(run), "--report.output", str(elsewhere)]) == 0
    assert elsewhere.stat().st_size == (run / "report.html").stat().st_size


def test_what_is_found(run):
    found = find_run(open_storage(str(run)))
    assert [Path(dataset.storage.root).name for dataset in found.datasets] == ["data"]
    assert list(found.trainings) == list(found.evaluations) == ["linear<b>"]
    alone = find_run(open_storage(str(run / "linear<b>")))
    assert (list(alone.trainings), alone.datasets) == (["linear<b>"], ())


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(UsageError, match=r"no dataset\.json, metrics\.jsonl or eval\.json there"):
        find_run(open_storage(str(tmp_path)))
