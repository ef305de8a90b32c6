"""Looking at a dataset again and again: what each look asks the store for, and what is shown."""

import io
import re
from dataclasses import asdict, replace
from datetime import UTC, datetime

import pytest

from shards.__main__ import main
from shards.dataset.dataset import Dataset
from shards.dataset.run_records import RunRecord, put_run, read_run, run_entries, runs_on_record
from shards.errors import CorruptShardError
from shards.stores.local import open_storage
from shards.stores.store import json_object
from shards.tools import watch as module
from shards.tools.verify import verify
from shards.tools.watch import Observer, watch
from tests_support import SETTINGS, a_plan, commit_shard

PLAN = a_plan()
RUN = "0" * 31 + "a"


def a_run(**changes):
    now = datetime.now(UTC).isoformat(timespec="seconds")
    run = RunRecord(RUN, "build", "01000000", now, now, "", 3, 1.0, {"died": 2.5}, 0.0, {"torch": "2"})
    return replace(run, **changes)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def sleeps(monkeypatch):
    """What happens while the watcher sleeps, one call each; after the last one, Ctrl-C."""
    waiting = []

    def sleep(seconds):
        if not waiting:
            raise KeyboardInterrupt
        waiting.pop(0)()

    monkeypatch.setattr(module.time, "sleep", sleep)
    return waiting


@pytest.mark.server
def test_a_look_costs_three_listings_and_what_is_new(moto, s3, fault_proxy, tmp_path):
    proxy = fault_proxy(moto)
    storage = s3(moto, proxy=proxy)
    dataset = Dataset.create_or_open(storage, SETTINGS, {"numpy": "2"})
    dataset.grow(len(PLAN), append=True)
    for planned in PLAN.shards[:3]:
        commit_shard(dataset, planned, tmp_path / "spool")
    put_run(storage, a_run())
    observer = Observer(dataset)

    def asked():
        """Requests of a look, by method and what they are after."""
        before = len(proxy.requests)
        observer.look(0.0)
        lines = proxy.requests[before:]
        lists = [line for line in lines if "list-type=2" in line]
        return len(lists), sorted(
            re.findall(r"GET \S*/((?:_commit|_plan|_run|manifest)\S*)", "\n".join(lines))
        )

    first = asked()
    assert first[1].count("_plan/000000.json") == 1
    assert len([key for key in first[1] if key.startswith("_commit/")]) == 3
    assert asked() == (3, [])
    commit_shard(dataset, PLAN.shards[3], tmp_path / "spool")
    put_run(storage, a_run(builders=5))
    assert asked() == (3, [f"_commit/{PLAN.shards[3].name}.json", f"_run/{RUN}.json"])
    assert observer.look(0.0).made == sum(len(shard.samples) for shard in PLAN.shards[:4])
    storage.delete(f"_commit/{PLAN.shards[0].name}.json")
    assert asked() == (3, [])
    assert observer.look(0.0).shards == 3


def test_growth_is_seen(make_dataset):
    dataset, plan = make_dataset()
    observer = Observer(dataset)
    assert observer.look(0.0).complete
    dataset.grow(len(plan) + 5, append=True)
    found = observer.look(0.0)
    assert (found.planned, found.left, found.complete) == (len(plan) + 5, 5, False)


def test_lines_until_it_is_complete(make_dataset, tmp_path, sleeps):
    dataset, plan = make_dataset(shards=PLAN.shards[:-1])
    put_run(dataset.storage, a_run())
    sleeps += [lambda: None, lambda: commit_shard(dataset, plan.shards[-1], tmp_path / "spool")]
    stream = io.StringIO()
    assert watch(dataset, 5, 2.0, stream) == 0
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert re.match(
        r"\d\d:\d\d:\d\d \d+/20 pairs \(\d+%\), .*3 builders at work, last commit \d+ s ago", lines[0]
    )
    assert "20/20 pairs (100%)" in lines[2]
    assert "cost 0.00" in lines[2]
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_is_redrawn_and_ctrl_c_ends_it(make_dataset, sleeps):
    dataset, _ = make_dataset(shards=PLAN.shards[:-1])
    sleeps += [lambda: None]
    stream = Terminal()
    assert watch(dataset, 5, None, stream) == 130
    drawings = re.split(r"\x1b\[\d+F\x1b\[J", stream.getvalue())
    assert len(drawings) == 2
    ups = re.findall(r"\x1b\[(\d+)F", stream.getvalue())
    assert ups == [str(len(drawings[0].splitlines()))]
    assert drawings[0].splitlines()[0] == dataset.storage.root


def test_the_command(make_dataset, capsys):
    dataset, _ = make_dataset()
    assert main(["info", dataset.storage.root, "--watch", "5"]) == 0
    assert "20/20 pairs (100%)" in capsys.readouterr().out


def test_info_tells_speed_and_cost(make_dataset, capsys):
    dataset, _ = make_dataset()
    put_run(dataset.storage, a_run(ended="complete", lost={"died": 3600.0}))
    assert main(["info", dataset.storage.root, "--price-gpu-hour", "2.5"]) == 0
    said = capsys.readouterr().out
    assert "3,600 device seconds lost, 1.00 GPU-hours, cost 2.50 in 1 runs, 0 builders at work now" in said
    assert "pairs an hour while at work" in said


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--watch", "0"], "give 1 to 86400 seconds"),
        (["--watch", "nan"], "give 1 to 86400 seconds"),
        (["--watch", "soon"], "invalid"),
        (["--price-gpu-hour", "-1"], "give a price of 0 or more"),
        (["--price-gpu-hour", "inf"], "give a price of 0 or more"),
    ],
)
def test_bad_words_are_refused(make_dataset, capsys, words, complaint):
    with pytest.raises(SystemExit) as left:
        main(["info", make_dataset()[0].storage.root, *words])
    assert left.value.code == 2
    assert complaint in capsys.readouterr().err


def test_watching_as_json_is_refused(make_dataset, capsys):
    assert main(["info", make_dataset()[0].storage.root, "--json", "--watch"]) == 2
    assert "--watch and --json: give one of them" in capsys.readouterr().err


def test_a_run_is_read_as_it_was_written(tmp_path):
    storage = open_storage(str(tmp_path))
    put_run(storage, a_run())
    assert list(run_entries(storage)) == [RUN]
    assert read_run(storage, RUN) == a_run(
        begun=read_run(storage, RUN).begun, seen=read_run(storage, RUN).seen
    )


@pytest.mark.parametrize(
    "damage",
    [
        {"lost": {"died": -1}},
        {"lost": 3},
        {"gpus": "many"},
        {"seen": "late"},
        {"builders": None},
        {"packages": 1},
    ],
)
def test_a_broken_record_is_named_and_said_to_be_needless(tmp_path, damage):
    storage = open_storage(str(tmp_path))
    storage.put_bytes(f"_run/{RUN}.json", json_object(asdict(a_run()) | damage))
    with pytest.raises(
        CorruptShardError, match=f"_run/{RUN}.json is corrupt: .*remove it, nothing depends on it"
    ):
        read_run(storage, RUN)


def test_nothing_depends_on_a_broken_record(make_dataset):
    dataset, _ = make_dataset()
    put_run(dataset.storage, a_run())
    dataset.storage.put_bytes(f"_run/{'b' * 32}.json", b"{")
    assert [run.run for run in runs_on_record(dataset.storage)] == [RUN]
    assert Observer(dataset).look(0.0).lost == {"died": 2.5}
    assert main(["info", dataset.storage.root]) == 0


def test_records_of_runs_are_no_foreign_files(make_dataset):
    dataset, _ = make_dataset()
    put_run(dataset.storage, a_run())
    assert verify(dataset.storage.root).problems == []
    dataset.storage.put_bytes("_run/notes.json", b"{}")
    assert [problem.shard for problem in verify(dataset.storage.root).problems] == ["_run/notes.json"]
