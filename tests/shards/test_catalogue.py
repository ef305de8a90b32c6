"""The catalogue of an import: made once, believed only while it and its source are what they were."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from import_support import coco_content, laion_samples, tar_of, write_coco, write_laion
from shards.dataset.dataset import Dataset
from shards.errors import CorruptShardError, DatasetMismatchError, UsageError
from shards.format.plan import make_plan
from shards.format.sample import Sample
from shards.format.shard_writer import ShardWriter
from shards.sources import catalogue as catalogue_module
from shards.sources.catalogue import Catalogue, catalogued, told_left_out
from shards.sources.filters import Rules
from shards.sources.source import SourceSpec
from shards.stores.local import open_storage
from shards.tools.gc_and_repair import collect_garbage
from shards.tools.verify import expected_of, verify
from tests_support import SETTINGS, Circumstances, a_sample, publish

RULES = Rules(val_fraction=0.3)


@pytest.fixture
def laion(tmp_path):
    return write_laion(tmp_path / "laion")


@pytest.fixture
def root(tmp_path):
    return open_storage(str(tmp_path / "data"))


@pytest.fixture
def catalogue_of(tmp_path, root):
    """The catalogue of a folder of tars, for a dataset: `catalogue_of(folder, rules)`."""
    count = 0

    def make(folder, rules=RULES):
        nonlocal count
        count += 1
        workspace = tmp_path / f"workspace-{count}"
        workspace.mkdir()
        return catalogued(root, SourceSpec("webdataset", str(folder)), rules, workspace)

    return make


def test_it_is_made_put_and_used_again(catalogue_of, laion, root, monkeypatch):
    monkeypatch.setattr(catalogue_module, "PIECE", 3)
    made = catalogue_of(laion)
    made.put(root)
    assert (
        made.keys()
        == {
            "source/catalogue.json",
            *(f"source/catalogue-00000{number}.parquet" for number in range(3)),
        }
        == {entry.key for entry in root.list()}
    )
    found = pickle.loads(pickle.dumps(Catalogue.open(root)))
    assert len(found) == 8
    assert found.items(8) == tuple(found.item(index) for index in range(8))
    assert found.items(4) == found.items(8)[:4]
    assert [found.item(index).caption for index in (7, 0, 3)] == ["picture 7", "picture 0", "picture 3"]
    monkeypatch.setattr(catalogue_module, "taken", lambda *_: pytest.fail("read the source again"))
    assert catalogue_of(laion).storage.root == root.root


def test_the_same_source_gives_the_same_bytes_wherever_it_lies(catalogue_of, laion, tmp_path):
    first = catalogue_of(laion)
    elsewhere = write_laion(tmp_path / "elsewhere")
    second = catalogue_of(elsewhere)
    assert replace(first.record, tag="") == replace(second.record, tag="")
    assert first.record.tag != second.record.tag


def test_a_copy_of_the_source_goes_on(catalogue_of, laion, root):
    catalogue_of(laion).put(root)
    for path in laion.iterdir():
        os.utime(path, (1, 1))
    assert catalogue_of(laion).storage.root == root.root


@pytest.mark.parametrize("change", ["caption", "fewer", "more"])
def test_a_source_that_changed_is_refused(catalogue_of, laion, root, change):
    catalogue_of(laion).put(root)
    tar = laion / "00001.tar"
    if change == "caption":
        tar.write_bytes(tar.read_bytes().replace(b"picture 5", b"picture 9"))
    elif change == "fewer":
        tar.unlink()
    else:
        (laion / "00002.tar").write_bytes(tar_of(laion_samples([20])))
    with pytest.raises(
        UsageError, match=r"source: has changed since .* held 8 items .* as it was, or another"
    ):
        catalogue_of(laion)


def test_a_picture_that_was_replaced_in_its_folder_is_a_change(tmp_path, root):
    content, files = coco_content()
    options = write_coco(tmp_path / "set", content, files)
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        if number:
            Path(options["images"], "000000000003.jpg").write_bytes(b"another")
            with pytest.raises(UsageError, match="has changed"):
                catalogued(root, SourceSpec("coco", **options), RULES, tmp_path / name)
        else:
            catalogued(root, SourceSpec("coco", **options), RULES, tmp_path / name).put(root)


def test_other_rules_are_named(catalogue_of, laion, root):
    catalogue_of(laion).put(root)
    with pytest.raises(DatasetMismatchError, match=r"min_side is None there and 40 here"):
        catalogue_of(laion, replace(RULES, min_side=40))


def test_nothing_to_take(catalogue_of, laion):
    with pytest.raises(UsageError, match="nothing to take; left out: 8 similarity"):
        catalogue_of(laion, replace(RULES, min_similarity=0.9))


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("source/catalogue.json", b"{"),
        ("source/catalogue.json", b"{}"),
        ("source/catalogue.json", b'{"pieces": 5}'),
        ("source/catalogue-000000.parquet", b"PAR1"),
        ("source/catalogue-000000.parquet", None),
    ],
)
def test_a_broken_one_is_named_and_how_to_mend_it(catalogue_of, laion, root, key, content):
    catalogue_of(laion).put(root)
    path = Path(root.root, key)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorruptShardError, match=rf"{key} is corrupt: .*; remove source/ there and run"):
        first_item(root)


def first_item(root):
    return Catalogue.open(root).item(0)


def test_a_record_that_claims_more_than_its_pieces(catalogue_of, laion, root):
    catalogue_of(laion).put(root)
    path = Path(root.root, "source/catalogue.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"items": 10**12}))
    with pytest.raises(CorruptShardError, match="is corrupt"):
        Catalogue.open(root)


def dataset_of(catalogue, root, folder, *, imported=True, name=lambda item: item.picture):
    """A dataset of a catalogue's items with random embeddings, each sample with the name of its picture."""
    settings = {key: value for key, value in SETTINGS.items() if key not in ("width", "height")}
    settings |= {"import": {"kind": "webdataset"}} if imported else {}
    dataset = Dataset.create_or_open(root, settings, {})
    catalogue.put(root)
    dataset.grow(8, append=False)
    plan = make_plan(catalogue.items(8), seed=0, val_fraction=0.3, samples_per_shard=8, segments=(8,))
    for planned in plan.shards:
        (folder / planned.name).mkdir()
        with ShardWriter(planned, folder / planned.name, dataset.fingerprint, expected_of(dataset)) as writer:
            for each in planned.samples:
                made = a_sample(each)
                source = {"picture": name(catalogue.item(each.index))}
                writer.add(Sample(**{**vars(made), "metadata": {**made.metadata, "source": source}}))
            built = writer.close()
        publish(dataset, built, Circumstances("test", 1.0, 0.5, "CPU"))
    return dataset


@pytest.fixture
def imported(catalogue_of, laion, root, tmp_path):
    return dataset_of(catalogue_of(laion), root, tmp_path)


def problems(dataset):
    return [str(problem) for problem in verify(dataset.storage.root).problems]


def test_tools_take_a_catalogue_for_their_own(imported):
    assert problems(imported) == []
    assert collect_garbage(imported, dry_run=True) == []
    root = Path(imported.storage.root)
    (root / "source" / "catalogue-000001.parquet").write_bytes(b"x")
    assert problems(imported) == [
        "source/catalogue-000001.parquet: a foreign file; nothing of this dataset names it"
    ]
    (root / "source" / "catalogue-000001.parquet").unlink()
    (root / "source" / "catalogue-000000.parquet").write_bytes(b"x")
    assert [problem.split(":")[0] for problem in problems(imported)] == ["source/catalogue-000000.parquet"]
    (root / "source" / "catalogue.json").write_text("{")
    assert [problem.split(":")[0] for problem in problems(imported)] == ["source/catalogue.json"]


def test_an_id_is_that_of_picture_and_caption(catalogue_of, laion, root, tmp_path):
    dataset = dataset_of(catalogue_of(laion), root, tmp_path, name=lambda item: f"{item.picture}x")
    found = [problem for problem in problems(dataset) if "is not that of its picture and caption" in problem]
    assert len(found) == 8


def test_in_a_generated_set_no_sample_can_claim_to_be_imported(catalogue_of, laion, root, tmp_path):
    dataset = dataset_of(catalogue_of(laion), root, tmp_path, imported=False)
    found = [problem for problem in problems(dataset) if "is not that of its caption" in problem]
    assert len(found) == 8


def test_what_is_left_out_is_named_once_and_the_commonest_first(tmp_path):
    content, files = coco_content(count=5, captions=2)
    content["images"][0]["file_name"] = "../up.jpg"
    content["annotations"] = [each for each in content["annotations"] if each["id"] != 401]
    content["annotations"][4]["caption"] = 7
    spec = SourceSpec("coco", **write_coco(tmp_path / "set", content, files))
    (tmp_path / "work").mkdir()
    rules = Rules(captions="all", val_fraction=0.0)
    record = catalogued(open_storage(str(tmp_path / "data")), spec, rules, tmp_path / "work").record
    assert told_left_out(record.left_out, record.examples) == (
        "2 a name that leads out of the source or is no path (../up.jpg), "
        "1 caption that is a number, not text (000000000004.jpg)"
    )
    many = told_left_out({"caption missing": 4}, {"caption missing": ["a", "b", "c"]})
    assert many == "4 caption missing (a, b, c, …)"
