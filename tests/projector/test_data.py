import itertools
import json
from io import BytesIO

import ml_dtypes
import numpy as np
import pytest
import torch
from PIL import Image

from projector.data.align import Alignment
from projector.data.dataset_pairs import bfloat16_tensor, load_pairs, picture_size
from projector.data.drawn import drawn
from projector.data.packed import Held, Ragged, statistics_of
from projector.data.pairs import Pair, in_memory, joined
from shards.dataset.dataset import Dataset
from shards.dataset.publish import Circumstances, publish
from shards.dataset.read import read_shard
from shards.errors import UsageError
from shards.format.plan import make_plan
from shards.format.sample import Expected, make_sample
from shards.format.shard_writer import ShardWriter
from shards.prompts.prompt import Prompt
from shards.stores.local import open_storage

WIDTH = 4


def pair(key="k", vl=5, text=3, kinds=None):
    kinds = torch.ones(vl, dtype=torch.uint8) if kinds is None else torch.tensor(kinds, dtype=torch.uint8)
    return Pair(key, torch.randn(vl, WIDTH), kinds, torch.randn(text, WIDTH))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pair("k", torch.randn(2, 4), torch.ones(2), torch.randn(2, 5)), "pair k: VL side"),
        (lambda: pair(kinds=[1, 1]), "5 VL tokens but 2 kinds"),
        (lambda: pair(vl=0), "no VL tokens"),
        (lambda: pair(text=0), "no text tokens"),
    ],
)
def test_pairs_that_are_none(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_only_keeps_one_kind():
    mixed = pair(kinds=[1, 1, 2, 1, 2])
    assert mixed.only("text").vl.equal(mixed.vl[[2, 4]])
    assert mixed.only("all").vl.equal(mixed.vl)
    assert pair().only("text") is None


def test_bfloat16_crosses_from_numpy_bit_for_bit():
    values = np.array([1.5, -13504.0, 3e38], dtype=ml_dtypes.bfloat16)
    assert bfloat16_tensor(values).tolist() == [float(value) for value in values]


def test_ragged_gathers_what_was_put_in():
    sequences = [torch.randn(n, WIDTH) for n in (3, 1, 7, 2)]
    ragged = Ragged.of(list(sequences), WIDTH)
    values, mask = ragged.gather(torch.tensor([2, 0, 2]))
    assert mask.sum(1).tolist() == [7, 3, 7]
    for row, kept, index in zip(values, mask, (2, 0, 2), strict=True):
        assert row[kept].equal(sequences[index])
    assert values.isfinite().all()
    statistics = statistics_of(ragged, WIDTH)
    np.testing.assert_allclose(statistics.mean, torch.cat(sequences).double().mean(0))


def test_resident_aligns_inputs_for_networks_that_keep_positions_only():
    pairs = [pair("a", 8, 3), pair("b", 6, 9)]
    alignment = Alignment("pool", length=4)
    kept = Held.load(iter(pairs), alignment, keeps_positions=True, width=WIDTH, dtype=torch.float32)
    free = Held.load(iter(pairs), alignment, keeps_positions=False, width=WIDTH, dtype=torch.float32)
    batch = kept.batch(torch.tensor([1, 0]))
    assert batch.inputs.shape == batch.targets.shape == (2, 4, WIDTH)
    assert batch.input_mask.equal(batch.target_mask)
    torch.testing.assert_close(batch.targets[1, :3], pairs[0].text)
    torch.testing.assert_close(batch.inputs[0], alignment.bring(pairs[1].vl, 4))
    free_batch = free.batch(torch.tensor([1, 0]))
    assert free_batch.input_mask.sum(1).tolist() == [6, 8]
    torch.testing.assert_close(free_batch.targets, batch.targets)


def test_a_source_in_memory_reads_ranges_again_and_again():
    pairs = [pair(str(index)) for index in range(5)]
    source = in_memory(pairs, layer=-6)
    assert (len(source), source.width, source.layer) == (5, WIDTH, -6)
    assert [p.key for p in source.read(1, 3)] == ["1", "2"]
    assert [p.key for p in source] == [p.key for p in source]


# --- shards ---


def tensors(index):
    """Value = 16 x index + position, negative in layer -6: an error in what is read is visible."""
    text_kind = np.array([0, 0, 2, 2, 2, 0], dtype=np.uint8)
    vl_kind = np.array([0, 3, 1, 1, 1, 1, 3, 2, 2, 2, 0], dtype=np.uint8)

    def rows(count, sign):
        return (sign * (16 * index + np.arange(count)[:, None]) * np.ones(WIDTH)).astype(ml_dtypes.bfloat16)

    return {
        "text": rows(6, 1),
        "text.kind": text_kind,
        "vl.caption.-8": rows(11, 1),
        "vl.caption.-6": rows(11, -1),
        "vl.caption.kind": vl_kind,
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A committed dataset of 12 samples in shards of 3."""
    root = tmp_path_factory.mktemp("dataset")
    prompts = [Prompt(f"caption number {index}") for index in range(12)]
    plan = make_plan(prompts, seed=0, val_fraction=0.3, samples_per_shard=3, segments=[12])
    dataset = Dataset.create_or_open(
        open_storage(str(root)), {"models": {"vl": {"id": "tiny", "files": {"a": "b"}}}}, {}
    )
    picture = BytesIO()
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save(picture, "PNG")
    for planned in plan.shards:
        with ShardWriter(
            planned,
            tmp_path_factory.mktemp("spool"),
            dataset.fingerprint,
            Expected(("caption",), (-8, -6), 16, 16),
        ) as writer:
            for sample in planned.samples:
                writer.add(
                    make_sample(
                        sample, image=picture.getvalue(), image_format="png", tensors=tensors(sample.index)
                    )
                )
            publish(dataset, writer.close(), Circumstances("a"))
    return str(root)


def test_pairs_from_shards_hold_the_tokens_asked_for(root):
    source = load_pairs(root, "train", layer=-6, text_mode="caption", tokens="image")
    assert len(source) + len(load_pairs(root, "val", layer=-6, text_mode="caption", tokens="image")) == 12
    for read in source:
        index = int(read.text[0, 0]) // 16
        expected = tensors(index)
        assert read.vl.float().numpy().tolist() == expected["vl.caption.-6"][2:6].astype(float).tolist()
        assert read.text.float().numpy().tolist() == expected["text"][2:5].astype(float).tolist()
        assert read.vl_kind.tolist() == [1] * 4


@pytest.mark.parametrize("name", ["text", "vl.caption.-6"])
def test_a_hidden_state_that_is_no_number_is_told_with_its_pair(root, monkeypatch, name):
    """In a template's row, too, which no pair holds and every conditioning does."""
    asked_for = {"layer": -6, "text_mode": "caption", "tokens": "image"}
    source = load_pairs(root, "train", **asked_for)
    last = list(source)[-1].key

    def broken(*asked, **more):
        for sample in read_shard(*asked, **more):
            if sample.key == last and name in sample.tensors:
                sample.tensors[name] = sample.tensors[name].copy()
                sample.tensors[name][0, 1] = np.nan
            yield sample

    monkeypatch.setattr("projector.data.dataset_pairs.read_shard", broken)
    said = f"pair {last}: NaN or infinite values in {name}"
    with pytest.raises(UsageError, match=said):
        list(source)
    with pytest.raises(UsageError, match=said):
        load_pairs(root, "train", **asked_for)
    if name == "text":
        with pytest.raises(UsageError, match=said):
            list(source.conditionings(0, len(source)))


def test_pictures_are_the_shards_own(root):
    source = load_pairs(root, "train", layer=-6, text_mode="caption", tokens="image")
    dataset = Dataset.open(open_storage(root))
    held = [
        sample
        for commit in dataset.commits()
        if commit.split == "train"
        for sample in read_shard(dataset.storage, commit)
    ]
    found = list(source.pictures(1, len(source)))
    assert [picture.data for picture in found] == [sample.image for sample in held[1:]]
    assert [picture.seed for picture in found] == [sample.metadata["seed"] for sample in held[1:]]
    assert all(picture.latents is None for picture in found)
    few = drawn(source, 3, seed=1)
    assert [picture.seed for picture in few.pictures(0, 3)] == [
        sample.metadata["seed"] for sample in held if sample.key in {pair.key for pair in few}
    ]
    both = joined(source, [source])
    assert [picture.seed for picture in both.pictures(0, len(both))] == 2 * [
        sample.metadata["seed"] for sample in held
    ]


def test_ranges_over_shard_borders_and_the_limit(root):
    source = load_pairs(root, "train", layer=-8, text_mode="caption", tokens="all")
    keys = [p.key for p in source]
    for start, stop in itertools.combinations(range(len(keys) + 1), 2):
        assert [p.key for p in source.read(start, stop)] == keys[start:stop]
    limited = load_pairs(root, "train", layer=-8, text_mode="caption", tokens="text", limit=4)
    assert [p.key for p in limited] == keys[:4]
    assert next(iter(limited)).vl_kind.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layer": -2}, r"^data = '.*': holds layers \[-8, -6\] and .* trained on layer -2"),
        (
            {"text_mode": "none"},
            r"^data = '.*': holds .* text modes \['caption'\]; .* text mode none",
        ),
    ],
)
def test_what_a_projector_settles_is_no_option_of_a_training(root, asked, message):
    with pytest.raises(UsageError, match=message):
        load_pairs(root, "val", **{"layer": -8, "text_mode": "caption", "tokens": "image"} | asked,
                   fixed=True)  # fmt: skip


def test_provenance_names_dataset_and_models_without_file_lists(root):
    provenance = load_pairs(root, "val", layer=-8, text_mode="caption", tokens="image").provenance
    assert provenance["models"] == {"vl": {"id": "tiny"}}
    assert provenance["picture"] == {}
    assert provenance["quantize"] == "none"
    assert len(provenance["fingerprint"]) == 64
    json.dumps(provenance)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"height": 64, "width": 96, "steps": 8}, {"height": 64, "width": 96}),
        ({"import": {"max_side": 512, "kind": "coco"}}, {"max_side": 512}),
        ({}, {}),
    ],
)
def test_provenance_names_the_size_of_the_pictures(settings, size):
    assert picture_size(settings) == size


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": -2}, r"^layer = -2: .* holds layers \[-8, -6\]"),
        ({"text_mode": "none"}, r"^text_mode = 'none': .* holds \['caption'\]"),
        ({"split": "test"}, "split 'test' holds no committed pairs"),
    ],
)
def test_what_the_dataset_does_not_hold(root, wrong, message):
    asked = {"split": "train", "layer": -8, "text_mode": "caption", "tokens": "image"} | wrong
    with pytest.raises(UsageError, match=message):
        load_pairs(root, asked.pop("split"), **asked)


def test_no_dataset_there(tmp_path):
    with pytest.raises(UsageError, match="no dataset there"):
        load_pairs(str(tmp_path), "train", layer=-8, text_mode="caption", tokens="image")


def test_a_reader_that_the_dataset_lacks_is_named(root):
    with pytest.raises(UsageError, match=r"was read by vl, not by graft; build one with readers graft"):
        load_pairs(str(root), "train", layer=-8, text_mode="caption", tokens="image", reader="graft")
