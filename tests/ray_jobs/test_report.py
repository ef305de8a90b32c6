"""The page of a run: it tells what the run holds, wherever its files are."""

import re
from pathlib import Path

import pytest

from ray_jobs.__main__ import main
from ray_jobs.report import page as report_module
from ray_jobs.report.run_files import find_run
from report_example import (
    write_dataset,
    write_run,
)
from s3_support import use
from shards.errors import UsageError
from shards.stores.local import LocalStorage, open_storage


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with everything in it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    write_dataset(run / "data", run.parent / "spool")
    write_run(run)
    return run


@pytest.fixture(scope="module")
def page(whole):
    """The whole run's page."""
    assert main(["report", "--report.run", str(whole)]) == 0
    return (whole / "report.html").read_text()


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


def test_names_that_steer_a_terminal_or_turn_the_text_round_are_shown(tmp_path, capsys):
    run = tmp_path / "run\x1b[2J\u202e"
    write_run(run)
    assert main(["report", "--report.run", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Projector run: run\\u001b[2J\\u202e" in page
    for text in (page, capsys.readouterr().out):
        assert "\x1b" not in text
        assert "\u202e" not in text
