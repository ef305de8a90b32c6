"""Imported samples: their tensors are those of the two encoders called by hand, and no image model is anywhere."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from import_support import coco_content, encoded, write_coco
from projector.inference.copies import as_array
from projector.inference.text_encoder import TextEncoder
from projector.inference.vision_encoder import VisionLanguageEncoder
from projector.making.imported import ImportSettings, load_import
from projector.making.reread import RereadSettings, rereading
from projector.models.resolve_readers import resolve_readers
from projector.options import ModelPaths
from shards.dataset.dataset import Dataset
from shards.dataset.failed_samples import HOPELESS
from shards.dataset.publish import Circumstances, publish
from shards.errors import CorruptShardError, StorageError, UsageError
from shards.format.plan import PlannedShard, make_plan
from shards.format.sample import Expected, Failure, check_sample, open_image
from shards.format.shard_writer import ShardWriter
from shards.sources.catalogue import catalogued
from shards.sources.filters import Rules
from shards.sources.source import SourceSpec
from shards.stores.local import open_storage
from shards.tools.verify import expected_of, verify

SETTINGS = ImportSettings(
    layers=(-8, -2),
    text_modes=("caption", "none"),
    vl_tokens="all",
    max_tokens=60,
    max_side=44,
    dtype="float32",
    batch_size=4,
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in a builder; given back, since the tiny models' bytes depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(tiny_sources, tmp_path_factory):
    """The text encoder and the VL model in folders from which everything else is gone."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(tiny_sources.vl.path, folder / "vl")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(Path(tiny_sources.image.path) / part, folder / "image" / part)
    return folder


@pytest.fixture
def readers(alone):
    return resolve_readers(ModelPaths(image=str(alone / "image"), vl=str(alone / "vl")))


@pytest.fixture
def planned_of(tmp_path):
    """Catalogue a small COCO and plan it: `planned_of(files)` with pictures to use instead of its own."""

    def plan(changes=None, caption=None):
        content, files = coco_content(captions=1)
        if caption:
            content["annotations"][2]["caption"] = caption
        spec = SourceSpec("coco", **write_coco(tmp_path / "set", content, files | (changes or {})))
        (tmp_path / "work").mkdir()
        rules = Rules(val_fraction=0.0)
        made = catalogued(open_storage(str(tmp_path / "data")), spec, rules, tmp_path / "work")
        made.put(open_storage(str(tmp_path / "data")))
        laid_out = make_plan(made.items(6), seed=0, val_fraction=0.0, samples_per_shard=6, segments=(6,))
        return spec, laid_out.shards[0].samples

    return plan


def make_all(maker, planned):
    return [result for step in maker.steps(planned, (), {}) for result in step.run()]


@pytest.fixture
def maker_of(tmp_path, readers, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)  # importing it is an error

    def make(spec):
        return load_import(str(tmp_path / "data"), spec, readers.text, readers.vl.model, SETTINGS)

    return make


def test_tensors_are_those_of_the_encoders(planned_of, maker_of, readers):
    spec, planned = planned_of()
    samples = make_all(maker_of(spec), planned)
    text = TextEncoder.from_pretrained(readers.text.path, device="cpu", dtype=torch.float32)
    vision = VisionLanguageEncoder.from_pretrained(
        readers.vl.model.path,
        device="cpu",
        dtype=torch.float32,
        layers=SETTINGS.layers,
        text_modes=SETTINGS.text_modes,
    )
    for number, (each, sample) in enumerate(zip(planned, samples, strict=True)):
        check_sample(sample, each, Expected(("caption", "none"), (-8, -2), imported=True))
        assert sample.caption == f"picture {number}, told 0"
        verbatim = number % 3 == 2  # the others have a side of 48, above 44
        assert sample.metadata["source"] == {
            "picture": f"{number:012d}.jpg",
            "place": f"{number:012d}.jpg",
            "width": (48, 32, 40)[number % 3],
            "height": (32, 48, 40)[number % 3],
            "verbatim": verbatim,
        }
        assert (sample.image == encoded(number)) == verbatim
        assert sample.image_format == "jpg"  # one name for all
        assert open_image(sample.image).format == ("JPEG" if verbatim else "PNG")
        (by_hand,) = text.encode([sample.caption])
        close(sample.tensors["text"], by_hand.embeddings)
        (states,) = vision.encode([open_image(sample.image).convert("RGB")], [sample.caption])
        for mode in SETTINGS.text_modes:
            assert sample.tensors[f"vl.{mode}.kind"].tolist() == states.kind[mode].tolist()
            for layer in SETTINGS.layers:
                close(sample.tensors[f"vl.{mode}.{layer}"], states.states[mode][layer])


def test_the_graft_reads_imported_pictures_too(planned_of, tmp_path, readers):
    spec, planned = planned_of()
    grafted = replace(SETTINGS, readers=("graft",))
    (sample, *_) = make_all(
        load_import(str(tmp_path / "data"), spec, readers.text, readers.vl.model, grafted), planned
    )
    by_hand = VisionLanguageEncoder.from_pretrained(
        readers.vl.model.path,
        device="cpu",
        dtype=torch.float32,
        layers=SETTINGS.layers,
        text_modes=SETTINGS.text_modes,
        language=readers.text.path,
    )
    (states,) = by_hand.encode([open_image(sample.image).convert("RGB")], [sample.caption])
    close(sample.tensors["graft.none.-2"], states.states["none"][-2])
    assert not any(name.startswith("vl.") for name in sample.tensors)


# webdataset leaves closing its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_readers_take_jpegs_grey_ones_and_webp_in_one_tar(planned_of, maker_of, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets
    import webdataset

    grey = {f"{n:012d}.jpg": encoded(n, mode="L", size=(40, 40)) for n in (0, 3)}
    webp = {"000000000001.jpg": encoded(1, format="WEBP", size=(40, 40))}
    spec, planned = planned_of(grey | webp)
    samples = make_all(maker_of(spec), planned)
    assert {open_image(sample.image).format for sample in samples} == {"PNG", "JPEG", "WEBP"}
    (tmp_path / "shard").mkdir()
    expected = Expected(SETTINGS.text_modes, SETTINGS.layers, imported=True)
    with ShardWriter(PlannedShard("train", 0, planned), tmp_path / "shard", "f", expected) as writer:
        for sample in samples:
            writer.add(sample)
        tar = str(writer.close().tar)
    read = datasets.load_dataset(
        "webdataset", data_files=[tar], split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [row["jpg"].size for row in read] == [open_image(sample.image).size for sample in samples]
    stock = list(webdataset.WebDataset(tar, shardshuffle=False).decode("pil"))
    assert [row["jpg"].mode for row in stock] == ["RGB"] * len(samples)


def test_read_again_a_sample_still_tells_where_it_is_from(planned_of, maker_of, readers, tmp_path):
    spec, planned = planned_of()
    samples = make_all(maker_of(spec), planned)
    root = str(tmp_path / "new")
    settings = {"text_modes": SETTINGS.text_modes, "layers": SETTINGS.layers, "import": {}}
    dataset = Dataset.create_or_open(open_storage(root), settings, {})
    (tmp_path / "shard").mkdir()
    shard = PlannedShard("train", 0, planned)
    with ShardWriter(shard, tmp_path / "shard", dataset.fingerprint, expected_of(dataset)) as writer:
        for sample in samples:
            writer.add(sample)
        publish(dataset, writer.close(), Circumstances("test", 1.0, 1.0, "CPU"))
    assert verify(root).problems == []
    again = RereadSettings(layers=(-6,), text_modes=("none",), vl_tokens="all", dtype="float32", batch_size=2)
    for before, after in zip(
        samples, make_all(rereading(root, readers.vl.model, None, again), planned), strict=True
    ):
        assert after.metadata["source"] == before.metadata["source"]
        assert (after.image, after.image_format) == (before.image, before.image_format)


def close(found, expected):
    """But for rounding: other pictures and captions stood in the batch, of other sizes."""
    found, expected = found.astype(np.float32), as_array(expected).astype(np.float32)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected)


def test_a_picture_that_cannot_be_used_fails_alone_and_for_good(planned_of, maker_of):
    broken = {"000000000001.jpg": encoded(1)[:-300], "000000000004.jpg": b""}
    spec, planned = planned_of(broken, caption="far too long " * 40)
    results = make_all(maker_of(spec), planned)
    failed = {number: result for number, result in enumerate(results) if isinstance(result, Failure)}
    assert {number: (each.stage, each.error_class) for number, each in failed.items()} == {
        1: ("image", "ImageError"),
        2: ("text", "SampleError"),
        4: ("image", "ImageError"),
    }
    assert "does not decode" in failed[1].message
    assert "0 bytes" in failed[4].message
    assert {each.error_class for each in failed.values()} <= set(HOPELESS)


def test_what_stops_the_run_is_no_picture_s_failure(planned_of, maker_of, monkeypatch):
    spec, planned = planned_of()
    maker = maker_of(spec)

    def refuse(_):
        raise StorageError("the store is gone")

    monkeypatch.setattr(maker.pictures._originals, "read", refuse)
    with pytest.raises(StorageError, match="the store is gone"):
        make_all(maker, planned)


def test_a_plan_that_the_catalogue_does_not_know(planned_of, maker_of):
    spec, planned = planned_of()
    maker = maker_of(spec)
    with pytest.raises(
        CorruptShardError, match="item 0 of the catalogue is not the planned train-000000-0000"
    ):
        maker.pictures.make([type(planned[0])(**{**vars(planned[0]), "caption": "another"})])


def test_a_dataset_without_its_catalogue(tmp_path, maker_of):
    with pytest.raises(CorruptShardError, match="its catalogue, source/, is gone"):
        maker_of(SourceSpec("coco", "a.json", str(tmp_path)))


def test_the_rest_of_the_pipeline_is_of_no_interest(readers, tiny_sources):
    paths = ModelPaths(image=tiny_sources.image.path, vl=tiny_sources.vl.path)
    whole = resolve_readers(paths)
    assert whole.text.files == readers.text.files
    assert {name.split("/")[0] for name in whole.text.files} == {"text_encoder", "tokenizer"}
    assert whole.to_json()["vl"] == tiny_sources.vl.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "image"), r"models.image = .*: no such folder"),
        (
            lambda folder: shutil.rmtree(folder / "image" / "tokenizer"),
            r"no tokenizer/tokenizer_config.json there",
        ),
        (lambda folder: shutil.rmtree(folder / "vl"), r"models.vl = .*: no such folder"),
        (
            lambda folder: (folder / "image" / "text_encoder" / "model.safetensors").unlink(),
            r"incomplete, missing \*.safetensors",
        ),
        (
            lambda folder: (folder / "image" / "text_encoder" / "config.json").write_text(
                '{"hidden_size": 32}'
            ),
            "the widths differ: the text encoder's hidden_size is 32, the VL model's is 64",
        ),
    ],
)
def test_models_that_will_not_do(alone, tmp_path, change, message):
    folder = tmp_path / "models"
    shutil.copytree(alone, folder)
    change(folder)
    with pytest.raises(UsageError, match=message):
        resolve_readers(ModelPaths(image=str(folder / "image"), vl=str(folder / "vl")))
