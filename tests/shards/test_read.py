"""Reading back, by the project and by stock readers, and refusing what is broken."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import webdataset

from shards.dataset import read
from shards.dataset.dataset import Dataset
from shards.dataset.read import check_intact, decode_safetensors, read_samples
from shards.errors import CorruptShardError
from shards.stores.local import open_storage
from shards.tools.verify import verify
from tests_support import a_sample


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(read, "_intact", set())


def urls(dataset):
    return [dataset.storage.url(commit.tar) for commit in dataset.commits()]


def test_every_sample_comes_back_whole(make_dataset):
    dataset, plan = make_dataset()
    found = {sample.key: sample for sample in read_samples(dataset)}
    assert set(found) == {sample.key for sample in plan.samples}
    for planned in plan.samples:
        expected, sample = a_sample(planned), found[planned.key]
        assert (sample.caption, sample.image, sample.metadata) == (
            planned.caption,
            expected.image,
            expected.metadata,
        )
        for name, tensor in expected.tensors.items():
            np.testing.assert_array_equal(sample.tensors[name], tensor)


def test_split_image_and_tensors_are_read_on_demand(make_dataset):
    dataset, plan = make_dataset()
    samples = list(read_samples(dataset, split="val", image=False, tensors=["text"]))
    assert [sample.key for sample in samples] == [s.key for s in plan.samples if s.split == "val"]
    assert {(sample.image, tuple(sample.tensors)) for sample in samples} == {(b"", ("text",))}
    assert next(iter(read_samples(dataset, tensors=()))).tensors == {}


def test_a_dataset_in_the_hubs_cache_is_read(make_dataset, tmp_path):
    """There, every file is a link to one in the repository's `blobs`."""
    dataset, plan = make_dataset(root=str(tmp_path / "datasets--org--name" / "snapshots" / "abc"))
    blobs = tmp_path / "datasets--org--name" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(Path(dataset.storage.root).rglob("*.*"))):
        (blobs / str(number)).write_bytes(path.read_bytes())
        path.unlink()
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    found = Dataset.open(open_storage(dataset.storage.root))
    assert len(list(read_samples(found))) == len(list(plan.samples))
    assert verify(found.storage.root).problems == []


def damage(dataset, kind):
    tar = Path(urls(dataset)[0])
    if kind == "missing":
        tar.unlink()
    elif kind == "cut":
        tar.write_bytes(tar.read_bytes()[:-512])
    else:
        data = bytearray(tar.read_bytes())
        data[len(data) // 2] ^= 4
        tar.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("missing", "is missing"), ("cut", "bytes, its commit says"), ("flipped", "has SHA-256")],
)
def test_a_broken_shard_is_refused_and_named(make_dataset, kind, message):
    dataset, _ = make_dataset()
    damage(dataset, kind)
    with pytest.raises(CorruptShardError, match=f"test-000000: .*{message}"):
        list(read_samples(dataset))


def test_a_shard_is_hashed_once_and_again_when_it_changes(make_dataset, monkeypatch):
    dataset, _ = make_dataset()
    commit = dataset.commits()[0]
    check_intact(dataset.storage, commit)
    with monkeypatch.context() as patch:
        patch.setattr(read.hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
        check_intact(dataset.storage, commit)
    damage(dataset, "flipped")
    with pytest.raises(CorruptShardError):
        check_intact(dataset.storage, commit)


def test_a_shard_without_commit_is_not_there(make_dataset):
    dataset, plan = make_dataset()
    dataset.storage.delete(f"_commit/{plan.shards[0].name}.json")
    keys = {sample.key for sample in read_samples(dataset)}
    assert keys == {sample.key for shard in plan.shards[1:] for sample in shard.samples}


# webdataset leaves closing its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_and_the_shipped_decoder_decodes(make_dataset):
    dataset, plan = make_dataset()
    raw = list(webdataset.WebDataset(urls(dataset), shardshuffle=False))
    assert sorted(sample["__key__"] for sample in raw) == sorted(sample.key for sample in plan.samples)
    for sample in raw:
        assert {"txt", "json", "png", "safetensors"} <= set(sample)
    decoded, *_ = webdataset.WebDataset(urls(dataset), shardshuffle=False).decode(decode_safetensors)
    assert decoded["safetensors"]["text"].shape == (5, 8)
    assert isinstance(decoded["png"], bytes)


def test_plain_tarfile_safetensors_and_json_read_every_member(make_dataset):
    dataset, plan = make_dataset()
    seen = set()
    for url in urls(dataset):
        with tarfile.open(url) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                data = tar.extractfile(member).read()
                if suffix == "safetensors":
                    tensors = safetensors.torch.load(data)
                    for mode in ("caption", "none"):
                        tokens = len(tensors[f"vl.{mode}.kind"])
                        assert tensors[f"vl.{mode}.-8"].shape == tensors[f"vl.{mode}.-6"].shape == (tokens, 8)
                    assert len(tensors["text"]) == len(tensors["text.kind"])
                elif suffix == "json":
                    assert json.loads(data)["id"]
                seen.add((key, suffix))
    assert seen == {(s.key, suffix) for s in plan.samples for suffix in ("txt", "json", "png", "safetensors")}


def test_pandas_and_pyarrow_read_the_side_files(make_dataset):
    dataset, plan = make_dataset()
    tables = [pd.read_parquet(url.replace(".tar", ".parquet")) for url in urls(dataset)]
    assert sorted(pd.concat(tables)["caption"]) == sorted(sample.caption for sample in plan.samples)
    assert pq.read_table(io.BytesIO(dataset.storage.get_bytes("train/pairs-000000.parquet"))).num_rows == 4


def test_hugging_face_datasets_reads_the_tars(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    dataset, plan = make_dataset()
    read_back = datasets.load_dataset(
        "webdataset", data_files=urls(dataset), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert sorted(read_back["__key__"]) == sorted(sample.key for sample in plan.samples)
