"""A shard's bytes: what they are, and that nothing but the samples decides them."""

import json
import re
import resource
import tarfile
from contextlib import contextmanager

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.errors import StorageError
from shards.format.sample import Failure
from shards.format.shard_writer import ShardWriter, encode_members, sha256_of
from shards.format.side_files import COMMIT_KEY
from shards.format.statistics import RunningStatistics
from tests_support import EXPECTED, a_plan, a_sample, write_shard

PLAN = a_plan()
SHARD = PLAN.shards[0]


@pytest.fixture
def dataset(make_dataset):
    return make_dataset(shards=())[0]


def test_the_same_samples_give_the_same_bytes(dataset, tmp_path):
    first, second = (write_shard(dataset, SHARD, tmp_path / name) for name in ("a", "b"))
    assert first.tar.read_bytes() == second.tar.read_bytes()
    assert first.parquet.read_bytes() == second.parquet.read_bytes()
    assert first.record == second.record


def test_members_are_sorted_plain_and_without_a_clock(dataset, tmp_path):
    built = write_shard(dataset, SHARD, tmp_path)
    with tarfile.open(built.tar) as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names)
    assert names == [
        f"{sample.key}.{suffix}"
        for sample in SHARD.samples
        for suffix in ("json", "png", "safetensors", "txt")
    ]
    for member in members:
        facts = (member.mtime, member.uid, member.gid, member.mode, member.uname, member.gname)
        assert (member.isreg(), *facts) == (True, 0, 0, 0, 0o644, "", "")


def test_the_record_is_true(dataset, tmp_path):
    built = write_shard(dataset, SHARD, tmp_path, failing=(1,))
    record = built.record
    assert (record["samples"], record["failed"]) == (3, 1)
    assert record["sha256"] == sha256_of(built.tar)
    assert record["bytes"] == built.tar.stat().st_size
    assert record["slice_hash"] == SHARD.slice_hash
    assert json.loads(pq.read_schema(built.parquet).metadata[COMMIT_KEY]) == record


def test_the_parquet_leads_to_each_member(dataset, tmp_path):
    built = write_shard(dataset, SHARD, tmp_path)
    data = built.tar.read_bytes()
    for row, planned in zip(pq.read_table(built.parquet).to_pylist(), SHARD.samples, strict=True):
        members = encode_members(a_sample(planned))
        for suffix, column in (
            ("json", "json"),
            ("png", "image"),
            ("safetensors", "safetensors"),
            ("txt", "txt"),
        ):
            start, size = row[f"{column}_offset"], row[f"{column}_size"]
            assert data[start : start + size] == members[suffix]
        assert (row["key"], row["caption"], row["content"]) == (planned.key, planned.caption, planned.content)
        assert row["tokens_text"] == 5


def test_statistics_are_those_of_the_tensors(dataset, tmp_path):
    built = write_shard(dataset, SHARD, tmp_path, failing=(0,))
    samples = [a_sample(planned) for planned in SHARD.samples[1:]]
    for label, name, kind in (("text/caption", "text", 2), ("vl.none.-6/image", "vl.none.-6", 1)):
        kinds = "text.kind" if name == "text" else "vl.none.kind"
        rows = np.concatenate([s.tensors[name][s.tensors[kinds] == kind].astype(np.float64) for s in samples])
        found = RunningStatistics.from_json(built.record["statistics"][label])
        assert found.count == len(rows)
        np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.variance(), rows.var(axis=0), rtol=1e-9)


def test_failures_are_written_down(dataset, tmp_path):
    built = write_shard(dataset, SHARD, tmp_path, failing=(1, 3))
    rows = pq.read_table(built.failed).to_pylist()
    assert [row["key"] for row in rows] == [SHARD.samples[1].key, SHARD.samples[3].key]
    assert {(row["stage"], row["error_class"], row["message"]) for row in rows} == {
        ("image", "RuntimeError", "no picture")
    }


def test_a_shard_of_failures_only_is_a_shard(dataset, tmp_path):
    built = write_shard(dataset, SHARD, tmp_path, failing=(0, 1, 2, 3))
    assert (built.record["samples"], built.record["failed"]) == (0, 4)
    with tarfile.open(built.tar) as tar:
        assert tar.getmembers() == []
    assert pq.read_table(built.parquet).num_rows == 0


def test_an_unsound_sample_leaves_no_trace(dataset, tmp_path):
    with ShardWriter(SHARD, tmp_path, dataset.fingerprint, EXPECTED) as writer:
        bad = a_sample(SHARD.samples[0], text=np.full((5, 8), np.nan, np.float32))
        with pytest.raises(ValueError, match="float32"):
            writer.add(bad)
        writer.fail(Failure.from_exception("check", ValueError("x")))
        for planned in SHARD.samples[1:]:
            writer.add(a_sample(planned))
        built = writer.close()
    with tarfile.open(built.tar) as tar:
        names = {name.partition(".")[0] for name in tar.getnames()}
    assert names == {planned.key for planned in SHARD.samples[1:]}


def test_hostile_captions_stay_what_they_are(dataset, tmp_path):
    for shard in PLAN.shards[:2]:
        with tarfile.open(write_shard(dataset, shard, tmp_path / shard.name).tar) as tar:
            for planned in shard.samples:
                member = tar.extractfile(f"{planned.key}.txt")
                assert member.read().decode() == planned.caption


def test_the_writer_wants_every_sample(dataset, tmp_path):
    with ShardWriter(SHARD, tmp_path, dataset.fingerprint, EXPECTED) as writer:
        writer.add(a_sample(SHARD.samples[0]))
        with pytest.raises(AssertionError, match="neither been added nor failed"):
            writer.close()


@contextmanager
def largest_file(size):
    """No file of this process may grow beyond; stands for a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("short_by", [1, 10_000, 1_000_000])
def test_a_tar_that_cannot_be_written_is_named(dataset, tmp_path, short_by):
    size = write_shard(dataset, SHARD, tmp_path / "whole").tar.stat().st_size
    tar = tmp_path / "cut" / f"{SHARD.name}.tar"
    with (
        largest_file(max(0, size - short_by)),
        pytest.raises(StorageError, match=f"cannot write {re.escape(str(tar))}: File too large"),
    ):
        write_shard(dataset, SHARD, tar.parent)


@pytest.mark.parametrize("suffix", ["tar", "parquet", "failed.parquet"])
def test_a_file_that_cannot_be_made_is_named(dataset, tmp_path, suffix):
    path = tmp_path / f"{SHARD.name}.{suffix}"
    path.mkdir()
    with pytest.raises(StorageError, match=f"cannot write {re.escape(str(path))}: "):
        write_shard(dataset, SHARD, tmp_path, failing=(1,))
