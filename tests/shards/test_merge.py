"""Parts of one plan, made apart, become one dataset; anything else is refused and nothing broken is taken over."""

from pathlib import Path

import pytest

from shards.__main__ import main
from shards.dataset.dataset import Dataset
from shards.dataset.failed_samples import plan_retries
from shards.errors import CorruptShardError, DatasetMismatchError, UsageError
from shards.stores.local import open_storage
from shards.stores.spool import Spool
from shards.tools.info import info
from shards.tools.merge import merge
from shards.tools.verify import verify
from tests_support import SETTINGS, a_plan, commit_shard


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "merging")


@pytest.fixture
def part(make_dataset, tmp_path):
    """Datasets of one plan that hold only some of its shards: `part("a", slice(0, 2))`."""
    return lambda name, some=slice(None), **changes: make_dataset(
        root=str(tmp_path / name), shards=a_plan().shards[some], **changes
    )[0]


def contents(storage):
    return {entry.key: storage.get_bytes(entry.key) for entry in storage.list() if "/pairs-" in entry.key}


def test_two_halves_are_the_whole(part, spool):
    first, second, whole = part("first", slice(0, 3)), part("second", slice(2, None)), part("whole")
    merged = merge(first.storage, second, spool)
    assert merged.taken == tuple(sorted(shard.name for shard in a_plan().shards[3:]))
    assert merged.there == 1
    assert contents(first.storage) == contents(whole.storage)
    findings = verify(first.storage.root)
    assert (findings.problems, findings.samples, findings.complete) == ([], 20, True)
    assert info(first)["device_seconds"] == info(whole)["device_seconds"]
    assert {commit.attempt for commit in first.commits()} == {"test"}
    assert list(spool.folder.iterdir()) == []
    again = merge(first.storage, second, spool)
    assert (again.taken, again.there) == ((), 3)


def test_into_an_empty_root_of_any_store(part, spool, store):
    source = part("source")
    merge(store, source, spool)
    assert contents(store) == contents(source.storage)
    assert Dataset.open(store).commits() == [
        commit for commit in Dataset.open(store).commits() if commit.fingerprint == source.fingerprint
    ]


@pytest.fixture
def failing(part, tmp_path):
    """A part in which a sample of the first shard failed and is to be tried again."""
    source = part("failing", slice(1, None))
    commit_shard(source, a_plan().shards[0], tmp_path / "spool", failing=(1,))
    plan_retries(source, 3)
    return source


def build_on(dataset, folder):
    for shard in dataset.missing(a_plan(segments=dataset.segments())):
        commit_shard(dataset, shard, folder)
    findings = verify(dataset.storage.root)
    assert (findings.problems, findings.samples, findings.complete) == ([], 20, True)


def test_failures_and_growth_come_along(part, failing, spool, tmp_path):
    target = part("target", slice(1, None))
    merge(target.storage, failing, spool)
    assert target.segments() == failing.segments()
    assert len(target.segments()) == 2
    build_on(target, tmp_path / "spool")


def test_what_is_made_is_not_tried_again(part, failing, spool, tmp_path):
    """The failed sample was made here: its retry would make it a second time."""
    made = part("made", slice(0, 1))
    with pytest.raises(
        UsageError, match=r"train-000000-0001 \(1 samples\) failed there .* merge the other way round"
    ):
        merge(made.storage, failing, spool)
    assert made.segments() == (20,)
    merge(failing.storage, made, spool)
    build_on(failing, tmp_path / "spool")


def test_other_settings_are_refused(part, make_dataset, spool, tmp_path):
    target = part("target")
    other, _ = make_dataset(root=str(tmp_path / "other"), settings={**SETTINGS, "width": 64}, shards=())
    with pytest.raises(DatasetMismatchError, match="width is 32 there and 64 here"):
        merge(target.storage, other, spool)


def test_other_growth_is_refused(part, make_dataset, spool, tmp_path):
    target = part("target", slice(0, 1))
    other, _ = make_dataset(root=str(tmp_path / "other"), plan=a_plan(12), shards=())
    with pytest.raises(
        UsageError, match=r"planned as 12 samples, .* as 20 samples; their shards hold different"
    ):
        merge(target.storage, other, spool)


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_broken_shard_is_not_taken_over(part, spool, suffix):
    target, source = part("target", slice(0, 0)), part("source")
    path = Path(source.storage.root) / "train" / f"pairs-000001.{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(CorruptShardError, match=r"source .*: train-000001"):
        merge(target.storage, source, spool)
    assert set(target.committed()) == {"test-000000", "train-000000"}  # those before it, by name
    assert verify(target.storage.root).problems == []


def test_as_a_tool(part, tmp_path, capsys):
    first, second = part("first", slice(0, 2)), part("second", slice(2, None))
    root = str(tmp_path / "new")
    assert main(["merge", root, first.storage.root, second.storage.root]) == 0
    assert "2 shards taken over, 0 already existed" in capsys.readouterr().out
    assert verify(root).complete
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    assert main(["merge", str(tmp_path / "thesis"), root]) == 2
    assert "holds something that is no dataset" in capsys.readouterr().err
    assert main(["merge", root, str(tmp_path / "nowhere")]) == 2
    assert main(["merge", root, open_storage(root).root]) == 0
