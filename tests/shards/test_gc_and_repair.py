"""Repair takes out the broken shard only; garbage is what no commit names and nobody writes."""

import fcntl
import os
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from damage_support import problems, replaced, rewrite, root
from shards.__main__ import main
from shards.dataset.run_records import RunRecord, put_run
from shards.errors import UsageError
from shards.tools.gc_and_repair import collect_garbage, repair
from tests_support import a_plan, commit_shard


def test_repair_takes_out_the_broken_shard_only_and_a_build_makes_it_again(dataset, tmp_path):
    plan = a_plan()
    sound = {entry.key: entry.tag for entry in dataset.storage.list("train/") if "000001" not in entry.key}
    before = dataset.storage.get_bytes("train/pairs-000001.tar")
    rewrite(dataset, replaced("png", b"no picture"), rehash=False)
    assert repair(dataset.storage.root) == ["train-000001"]
    assert [shard.name for shard in dataset.missing(plan)] == ["train-000001"]
    commit_shard(dataset, plan.shard("train-000001"), tmp_path / "spool")
    assert dataset.storage.get_bytes("train/pairs-000001.tar") == before
    assert problems(dataset) == []
    assert {
        entry.key: entry.tag for entry in dataset.storage.list("train/") if "000001" not in entry.key
    } == sound


def test_repair_of_a_sound_dataset_does_nothing(dataset):
    assert repair(dataset.storage.root) == []


def test_garbage_is_what_no_commit_names(dataset):
    dataset.storage.delete("_commit/train-000001.json")
    left = ["train/pairs-000001.parquet", "train/pairs-000001.tar"]
    assert problems(dataset) == []  # a leftover of a crash is no damage
    assert collect_garbage(dataset, dry_run=True, spared=0) == left
    assert dataset.storage.stat(left[0]) is not None
    assert collect_garbage(dataset, dry_run=False, spared=0) == left
    assert collect_garbage(dataset, dry_run=False) == []
    assert len(dataset.commits()) == len(a_plan().shards) - 1


def aged(dataset, hours, *keys):
    for key in keys:
        os.utime(root(dataset) / key, (time.time() - 3600 * hours,) * 2)


def test_garbage_spares_what_is_young(dataset, capsys):
    """A shard whose commit is on its way, of a builder that left no record, say a merge."""
    dataset.storage.delete("_commit/train-000001.json")
    assert main(["gc", dataset.storage.root]) == 0
    assert "2 files no older than 1 h are kept" in capsys.readouterr().out
    aged(dataset, 2, "train/pairs-000001.parquet", "train/pairs-000001.tar")
    assert main(["gc", dataset.storage.root]) == 0
    assert "2 files removed" in capsys.readouterr().out


def test_garbage_is_not_collected_while_a_run_is_at_work(dataset, capsys):
    dataset.storage.delete("_commit/train-000001.json")
    aged(dataset, 2, "train/pairs-000001.parquet", "train/pairs-000001.tar")
    now = utc(0)
    run = RunRecord("a" * 32, "build", "01000000", now, now, "", 1, 0.0, {}, 0.0, {})
    put_run(dataset.storage, run)
    assert main(["gc", dataset.storage.root]) == 2
    said = capsys.readouterr().err
    assert "the build aaaaaaaa is at work" in said
    assert "5 minutes after it was killed" in said
    assert main(["gc", dataset.storage.root, "--dry-run"]) == 0
    put_run(dataset.storage, replace(run, seen=utc(301)))  # killed
    assert main(["gc", dataset.storage.root]) == 0
    assert "2 files removed" in capsys.readouterr().out


def utc(ago):
    return datetime.fromtimestamp(time.time() - ago, UTC).isoformat(timespec="seconds")


def test_hidden_files_of_killed_writers_are_shown_and_removed(dataset, capsys):
    left = root(dataset) / "train" / ".tmp-0123"
    left.write_bytes(b"x" * 2_500_000)
    aged(dataset, 2, "train/.tmp-0123")
    assert main(["info", dataset.storage.root]) == 0
    assert "2.5 MB in 1 files of killed writers" in capsys.readouterr().out
    with left.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as a writer does
        assert collect_garbage(dataset, dry_run=False) == []
    assert collect_garbage(dataset, dry_run=False) == ["train/.tmp-0123"]
    assert not left.exists()


def test_garbage_is_not_collected_where_nothing_is_committed(dataset):
    """Rather a folder of commits that went astray than a dataset of leftovers alone."""
    shutil.move(Path(dataset.storage.root) / "_commit", Path(dataset.storage.root) / "elsewhere")
    left = collect_garbage(dataset, dry_run=True, spared=0)
    assert left
    with pytest.raises(UsageError, match="and no commit; gc would remove them all"):
        collect_garbage(dataset, dry_run=False)
    assert collect_garbage(dataset, dry_run=True, spared=0) == left
