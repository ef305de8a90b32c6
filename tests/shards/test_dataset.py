"""Creation, growth, commit and adoption."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shards.__main__ import main
from shards.dataset import publish as publishing
from shards.dataset.dataset import Dataset, fingerprint_of
from shards.dataset.failed_samples import failures
from shards.dataset.publish import Circumstances, adopt, publish
from shards.dataset.read import read_samples
from shards.errors import CorruptShardError, DatasetMismatchError, OptionError, StorageError, UsageError
from shards.format.commit import Commit
from shards.stores.local import open_storage
from shards.tools.gc_and_repair import collect_garbage
from shards.tools.verify import verify
from tests_support import SETTINGS, a_plan, commit_shard, write_shard

ROOT = Path(__file__).parent.parent.parent


def test_the_fingerprint_sees_values_and_not_their_order():
    assert fingerprint_of({"a": 1, "b": [1, 2]}) == fingerprint_of({"b": [1, 2], "a": 1})
    assert fingerprint_of({"a": 1, "b": [1, 2]}) != fingerprint_of({"a": 1, "b": [2, 1]})


def test_a_dataset_opens_again_with_tuples_for_lists(make_dataset):
    dataset, _ = make_dataset()
    again = Dataset.create_or_open(dataset.storage, {**SETTINGS, "layers": (-8, -6)}, {})
    assert again.fingerprint == dataset.fingerprint
    assert again.packages == {"numpy": "2"}


def test_other_settings_are_named_with_both_values(make_dataset):
    dataset, _ = make_dataset()
    other = {**SETTINGS, "width": 64, "models": {"image": {"id": "other"}}, "steps": 9}
    with pytest.raises(DatasetMismatchError) as caught:
        Dataset.create_or_open(dataset.storage, other, {})
    for part in (
        "width is 32 there and 64 here",
        "models.image.id is 'none' there and 'other' here",
        "steps is '(absent)' there and 9 here",
    ):
        assert part in str(caught.value)


def test_a_root_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"holds something that is no dataset \(holiday.jpg"):
        Dataset.create_or_open(open_storage(str(tmp_path)), SETTINGS, {})


def test_nothing_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no dataset there"):
        Dataset.open(open_storage(str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format_version": 3}, UsageError, "format version 3, this program reads 1 and 2"),
        ({"settings": {}}, CorruptShardError, "the fingerprint is not that of its settings"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(make_dataset, change, error, message):
    dataset, _ = make_dataset(shards=())
    path = Path(dataset.storage.root) / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error, match=message):
        Dataset.open(dataset.storage)


def test_nothing_is_put_where_a_dataset_was_removed_meanwhile(make_dataset, tmp_path):
    """Shards alone would make a root of which no build can make anything."""
    plan = a_plan()
    dataset, _ = make_dataset(shards=plan.shards[:1])
    built = write_shard(dataset, plan.shards[1], tmp_path / "late")
    shutil.rmtree(dataset.storage.root)
    for late in (
        lambda: publish(dataset, built, Circumstances("late")),
        dataset.write_manifest,
    ):
        with pytest.raises(StorageError, match=r"dataset.json is gone: .*run it again to begin anew"):
            late()
    assert not Path(dataset.storage.root).exists()
    again, _ = make_dataset()
    assert verify(again.storage.root).complete


def test_what_a_removed_dataset_may_leave_beside_it_is_in_nobodys_way(tmp_path):
    for name in ("_lease.json", "_probe/x", "_run/0123.json"):
        open_storage(str(tmp_path)).put_bytes(name, b"{}")
    Dataset.create_or_open(open_storage(str(tmp_path)), SETTINGS, {})


def as_version_1(dataset):
    """Make a dataset look as if an earlier version had written it."""
    path = Path(dataset.storage.root) / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 1}))
    return Dataset.open(dataset.storage)


def test_a_dataset_of_version_1_is_read_and_never_written(make_dataset, tmp_path, capsys):
    dataset, plan = make_dataset()
    old = as_version_1(dataset)
    before = {entry.key: entry.tag for entry in old.storage.list()}
    assert len(list(read_samples(old))) == len(plan)
    assert main(["info", old.storage.root]) == main(["verify", old.storage.root]) == 0
    capsys.readouterr()
    said = "format version 1 is only read, this program writes 2; build or import into a new root"
    with pytest.raises(UsageError, match=said):
        Dataset.create_or_open(old.storage, SETTINGS, {})
    for words in (
        ["gc", old.storage.root],
        ["repair", old.storage.root],
        ["card", old.storage.root],
        ["merge", old.storage.root, old.storage.root],
        ["merge", str(tmp_path / "new"), old.storage.root],
    ):
        assert main(words) == 2
        assert capsys.readouterr().err == f"error: {old.storage.root}: {said}\n"
    assert {entry.key: entry.tag for entry in old.storage.list()} == before
    assert not (tmp_path / "new" / "dataset.json").exists()


def test_a_dataset_only_grows_and_only_when_told(make_dataset):
    dataset, _ = make_dataset(plan=a_plan(10), shards=())
    assert dataset.grow(10, append=False) == (10,)
    with pytest.raises(OptionError, match=r"^samples = 15: .* planned for 10; pass --append true"):
        dataset.grow(15, append=False)
    assert dataset.grow(15, append=True) == (10, 15)
    assert dataset.grow(15, append=True) == (10, 15)
    with pytest.raises(UsageError, match="a dataset only grows, use 15 or more"):
        dataset.grow(10, append=True)
    assert dataset.segments() == (10, 15)


def test_growth_leaves_the_first_shards_byte_for_byte(make_dataset, tmp_path):
    dataset, plan = make_dataset(plan=a_plan(200, per_shard=16))
    before = {
        entry.key: (entry.tag, dataset.storage.get_bytes(entry.key))
        for entry in dataset.storage.list("train/")
    }
    segments = dataset.grow(300, append=True)
    grown = a_plan(300, per_shard=16, segments=segments)
    assert set(plan.samples) < set(grown.samples)
    todo = dataset.missing(grown)
    assert {shard.name for shard in todo} == {s.name for s in grown.shards} - {s.name for s in plan.shards}
    for shard in todo:
        commit_shard(dataset, shard, tmp_path / "spool")
    after = {
        entry.key: (entry.tag, dataset.storage.get_bytes(entry.key))
        for entry in dataset.storage.list("train/")
    }
    assert before.items() <= after.items()
    assert sum(commit.samples for commit in dataset.commits()) == 300


def test_commits_are_read_from_the_manifest_only_while_it_is_true(make_dataset):
    dataset, plan = make_dataset()
    path = Path(dataset.storage.root) / "manifest.json"
    content = json.loads(path.read_text())
    content["shards"][0]["samples"] = 77  # the tag still fits: the cache is believed
    path.write_text(json.dumps(content))
    assert dataset.commits()[0].samples == 77
    content["shards"][0]["commit_tag"] = "stale"
    path.write_text(json.dumps(content))
    assert dataset.commits()[0].samples == len(plan.shards[0].samples)
    path.write_text("{broken")
    assert len(dataset.commits()) == len(plan.shards)


def test_statistics_of_a_split_are_those_of_its_shards(make_dataset):
    dataset, plan = make_dataset()
    merged = dataset.statistics("train")
    samples = sum(len(shard.samples) for shard in plan.shards if shard.split == "train")
    assert merged["text/caption"].count == 3 * samples
    assert merged["vl.none.-8/image"].count == 4 * samples


def test_a_tar_that_did_not_arrive_whole_is_not_committed(make_dataset, tmp_path, monkeypatch):
    dataset, plan = make_dataset(shards=())
    built = write_shard(dataset, plan.shards[0], tmp_path / "spool")
    put = dataset.storage.put_file

    def cut_short(key, path, **options):
        put(key, path, **options)
        if key.endswith(".tar"):
            os.truncate(dataset.storage.url(key), 100)

    monkeypatch.setattr(dataset.storage, "put_file", cut_short)
    with pytest.raises(
        StorageError, match=r"\.tar has 100 bytes after .* bytes were put .* nothing was committed"
    ):
        publish(dataset, built, Circumstances("test"))
    assert dataset.committed() == {}


def test_a_second_commit_of_the_same_content_is_the_first_one(make_dataset, tmp_path):
    dataset, plan = make_dataset()
    again = write_shard(dataset, plan.shards[0], tmp_path / "again")
    commit = publish(dataset, again, Circumstances("second"))
    assert commit.attempt == "test"


def files_of(dataset):
    return {entry.key: dataset.storage.get_bytes(entry.key) for entry in dataset.storage.list("")}


def test_a_second_commit_of_the_same_samples_in_other_bytes_is_the_first_one(make_dataset, tmp_path):
    """As another kind of device makes them, whose builder was held for dead and was not."""
    dataset, plan = make_dataset()
    before = files_of(dataset)
    again = write_shard(dataset, plan.shards[0], tmp_path / "again", failing=(0,))
    assert publish(dataset, again, Circumstances("second")).attempt == "test"
    assert files_of(dataset) == before


def test_a_second_commit_of_other_samples_is_an_error_and_changes_nothing(make_dataset, tmp_path):
    dataset, plan = make_dataset()
    before = files_of(dataset)
    other = replace(plan.shards[0], samples=plan.shards[1].samples)
    built = write_shard(dataset, other, tmp_path / "again")
    with pytest.raises(CorruptShardError, match="attempt test committed other content"):
        publish(dataset, built, Circumstances("second"))
    assert files_of(dataset) == before


@pytest.mark.parametrize("failing", [(), (0,)])
def test_two_builders_of_one_shard_do_not_mix_their_files(make_dataset, tmp_path, monkeypatch, failing):
    """Both found no tar; the second, on another device, is done while the first one's tar is on its way."""
    dataset, plan = make_dataset(shards=())
    shard = plan.shards[0]
    first = write_shard(dataset, shard, tmp_path / "first", failing=(1,))
    second = write_shard(dataset, shard, tmp_path / "second", failing=failing)
    commits, waiting = [], [second]

    def interleaved(storage, built):
        if waiting:  # the first builder's tar is on its way
            commits.append(publish(dataset, waiting.pop(), Circumstances("second")))
        else:
            put_tar(storage, first)  # it arrives between the second one's side files and tar
        put_tar(storage, built)

    put_tar = publishing._put_tar
    monkeypatch.setattr(publishing, "_put_tar", interleaved)
    commits.append(publish(dataset, first, Circumstances("first")))
    assert [(commit.sha256, commit.failed) for commit in commits] == [(first.record["sha256"], 1)] * 2
    assert [commit.attempt for commit in commits] == ["second"] * 2, "it adopted what was there first"
    assert verify(dataset.storage.root).problems == []


def test_the_second_builder_of_a_shard_may_win(make_dataset, tmp_path, monkeypatch):
    dataset, plan = make_dataset(shards=())
    shard = plan.shards[0]
    first = write_shard(dataset, shard, tmp_path / "first", failing=(1,))
    second = write_shard(dataset, shard, tmp_path / "second", failing=(0,))

    def overtaken(storage, built):
        monkeypatch.undo()
        publish(dataset, second, Circumstances("second"))
        put_tar(storage, built)

    put_tar = publishing._put_tar
    monkeypatch.setattr(publishing, "_put_tar", overtaken)
    assert publish(dataset, first, Circumstances("first")).attempt == "second"
    (commit,) = dataset.commits()
    assert (commit.attempt, commit.sha256) == ("second", second.record["sha256"])
    assert verify(dataset.storage.root).problems == []
    assert [row["key"] for row in failures(dataset)] == [shard.samples[0].key]
    left = ["failed/train-000000.parquet", "train/pairs-000000.parquet"]
    assert collect_garbage(dataset, dry_run=False, spared=0) == left
    assert verify(dataset.storage.root).problems == []
    dataset.storage.delete(f"_commit/{shard.name}.json")
    adopted = adopt(dataset, shard.name, shard.slice_hash, Circumstances("later"))
    assert adopted is not None
    assert adopted.side_files == commit.side_files


def test_a_commit_that_names_the_files_of_another_shard(make_dataset):
    dataset, _ = make_dataset()
    data = dataset.commit_file("train-000000")
    data["side_files"] = {"train/pairs-000001.parquet": "0" * 64}
    with pytest.raises(ValueError, match="not its own"):
        Commit.from_json(data)


@pytest.mark.parametrize("failing", [(), (1,)])
def test_a_whole_shard_without_commit_is_adopted(make_dataset, tmp_path, failing):
    dataset, plan = make_dataset(shards=())
    shard = plan.shards[0]
    made = commit_shard(dataset, shard, tmp_path / "spool", failing=failing)
    dataset.storage.delete(f"_commit/{shard.name}.json")
    adopted = adopt(dataset, shard.name, shard.slice_hash, Circumstances("later"))
    assert adopted is not None
    assert adopted.adopted
    assert (adopted.sha256, adopted.samples, adopted.failed) == (made.sha256, made.samples, made.failed)
    assert dataset.statistics(shard.split)["text/caption"].count == 3 * made.samples


@pytest.mark.parametrize(
    "damage", ["no tar", "no parquet", "cut tar", "flipped bit", "cut parquet", "other plan"]
)
def test_anything_less_is_not(make_dataset, tmp_path, damage):
    dataset, plan = make_dataset(shards=())
    shard = plan.shards[0]
    commit = commit_shard(dataset, shard, tmp_path / "spool")
    dataset.storage.delete(f"_commit/{shard.name}.json")
    tar, parquet = (Path(dataset.storage.url(key)) for key in (commit.tar, commit.parquet))
    if damage == "no tar":
        tar.unlink()
    elif damage == "no parquet":
        parquet.unlink()
    elif damage == "cut tar":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif damage == "flipped bit":
        data = bytearray(tar.read_bytes())
        data[1000] ^= 1
        tar.write_bytes(data)
    elif damage == "cut parquet":
        parquet.write_bytes(parquet.read_bytes()[:-9])
    else:
        shard = replace(shard, samples=shard.samples[:-1])
    assert adopt(dataset, shard.name, shard.slice_hash, Circumstances("later")) is None
    assert dataset.committed() == {}


@pytest.mark.parametrize(
    "point", ["before-parquet", "after-parquet", "before-tar", "after-tar", "before-commit", "after-commit"]
)
def test_killed_at_any_step_the_shard_is_there_whole_or_not_at_all(tmp_path, point):
    root = tmp_path / "data"
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path\n"
        "from tests_support import *\n"
        "from shards.stores.local import open_storage\n"
        f"d = Dataset.create_or_open(open_storage({str(root)!r}), SETTINGS, {{}})\n"
        f"commit_shard(d, a_plan().shards[0], Path({str(tmp_path / 'spool')!r}))\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "SHARDS_CRASH_AT": point}
    )
    assert killed.returncode == -9
    dataset = Dataset.open(open_storage(str(root)))
    shard = a_plan().shards[0]
    assert (shard.name in dataset.committed()) == (point == "after-commit")
    whole_before_commit = point in ("after-tar", "before-commit")
    if point != "after-commit":
        assert (
            adopt(dataset, shard.name, shard.slice_hash, Circumstances("next")) is not None
        ) == whole_before_commit
        commit_shard(dataset, shard, tmp_path / "spool")
    undisturbed = write_shard(dataset, shard, tmp_path / "undisturbed")
    assert dataset.storage.get_bytes("train/pairs-000000.tar") == undisturbed.tar.read_bytes()
    assert [commit.samples for commit in dataset.commits()] == [4]


def test_the_crash_hook_is_silent_by_default(monkeypatch):
    from shards.dataset.crash_points import crash_point

    monkeypatch.delenv("SHARDS_CRASH_AT", raising=False)
    crash_point("after-tar")
    monkeypatch.setenv("SHARDS_CRASH_AT", "before-tar")
    crash_point("after-tar")
