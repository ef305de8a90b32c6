"""Damage of whole files at rest is found and named: flipped bits, cut, missing, swapped and foreign files."""

import json
import tarfile
from dataclasses import replace

import pytest

from damage_support import problems, rewrite, root
from shards.dataset.read import read_samples
from shards.errors import CorruptShardError
from shards.tools.verify import verify
from tests_support import a_plan


def test_a_sound_dataset_has_no_problems(dataset):
    findings = verify(dataset.storage.root)
    assert (findings.problems, findings.samples, findings.complete) == ([], 20, True)


def test_workers_find_the_same(dataset):
    (root(dataset) / "train" / "pairs-000001.tar").unlink()
    assert verify(dataset.storage.root, workers=2).problems == verify(dataset.storage.root).problems


def test_a_partial_dataset_is_not_called_whole(dataset):
    dataset.storage.delete("_commit/val-000000.json")
    findings = verify(dataset.storage.root)
    assert not findings.complete
    assert findings.accounted < findings.planned == 20


def test_a_flipped_bit(dataset):
    tar = root(dataset) / "train" / "pairs-000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    assert any("train-000001" in problem and "SHA-256" in problem for problem in problems(dataset))


def test_a_truncated_tar_even_at_a_member_boundary(dataset):
    tar = root(dataset) / "train" / "pairs-000001.tar"
    with tarfile.open(tar) as archive:
        boundary = archive.getmembers()[8].offset
    tar.write_bytes(tar.read_bytes()[:boundary] + bytes(1024))
    found = problems(dataset)
    assert any("bytes, its commit says" in problem for problem in found)
    assert any("2 whole samples, its commit says 4" in problem for problem in found)


def test_a_tar_cut_inside_a_member(dataset):
    tar = root(dataset) / "train" / "pairs-000001.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    assert any(
        "the tar is broken" in problem or "does not decode" in problem for problem in problems(dataset)
    )


def test_a_missing_tar_parquet_and_failure_file(dataset, tmp_path):
    for suffix in ("tar", "parquet"):
        (root(dataset) / "train" / f"pairs-000001.{suffix}").unlink()
    assert problems(dataset) == [
        "train-000001: train/pairs-000001.tar is missing",
    ]


def test_a_missing_parquet(dataset):
    (root(dataset) / "train" / "pairs-000001.parquet").unlink()
    assert problems(dataset) == ["train-000001: train/pairs-000001.parquet is missing"]


def test_swapped_tars(dataset):
    first, second = (root(dataset) / "train" / f"pairs-00000{i}.tar" for i in (0, 1))
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    found = problems(dataset)
    assert any("train-000000" in problem and "does not belong here" in problem for problem in found)
    assert any("train-000001" in problem and "SHA-256" in problem for problem in found)


def test_a_shard_with_fewer_samples_than_its_commit_says(dataset):
    rewrite(dataset, lambda members: members[:-4])
    with pytest.raises(CorruptShardError, match="3 samples, its commit says 4"):
        list(read_samples(dataset))


def test_a_sample_in_two_shards_and_in_both_splits(make_dataset, tmp_path):

    plan = a_plan()
    twin = plan.shards[0].samples[0]
    val = next(shard for shard in plan.shards if shard.split == "val")
    copy = replace(val.samples[0], id=twin.id, caption=twin.caption)
    leaking = replace(val, samples=(copy, *val.samples[1:]))
    dataset, _ = make_dataset(shards=[plan.shards[0], leaking])
    found = problems(dataset)
    assert any(f"id {twin.id} stands in {twin.key} too" in problem for problem in found)
    assert any("its caption stands in two splits" in problem for problem in found)


@pytest.mark.parametrize(
    "name", ["train/pairs-000000.tar.bak", "virus.exe", "train/notes.txt", "_manifest.json"]
)
def test_a_foreign_file(dataset, name):
    (root(dataset) / name).write_bytes(b"x")
    assert problems(dataset) == [f"{name}: a foreign file; nothing of this dataset names it"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"name": "train-000002"}'])
def test_a_commit_that_cannot_be_believed(dataset, content):
    (root(dataset) / "_commit" / "train-000001.json").write_text(content)
    assert any("train-000001: its commit is corrupt" in problem for problem in problems(dataset))


def test_a_commit_of_another_dataset(dataset):
    path = root(dataset) / "_commit" / "train-000001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "0" * 64}))
    assert any("another dataset's fingerprint" in problem for problem in problems(dataset))
