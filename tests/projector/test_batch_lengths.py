"""Pictures are drawn in batches of one length, so that attention needs no mask, and come out in plan order."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from projector.making.batching import make_sound
from projector.making.generated import PairSettings, PictureReader
from projector.making.shard_maker import STRETCH, FusedMaker, StagedMaker, by_length
from projector.models.offload import Residence
from shards.format.plan import make_plan
from shards.format.sample import open_image
from shards.prompts.prompt import Prompt

SETTINGS = PairSettings(
    height=64,
    width=64,
    steps=2,
    guidance=0.0,
    layers=(-8,),
    text_modes=("none",),
    vl_tokens="all",
    max_tokens=200,
    dtype="float32",
    batch_size=2,
)
WORDS = ("a red fox", "a red fox in the snow under an old birch, seen from below, in oil on wood " * 2)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize(
    "lengths", [[], [32], [32] * 7, [64, 32] * 5, [32, 64, 96, 64, 32, 32, 128, 64, 64, 32]]
)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_sample_once_in_as_few_batches_and_few_of_them_mixed(lengths, size):
    made = by_length(lengths, size)
    assert sorted(place for batch in made for place in batch) == list(range(len(lengths)))
    assert len(made) == -(-len(lengths) // size)
    mixed = [batch for batch in made if len({lengths[place] for place in batch}) > 1]
    over = sum(lengths.count(length) % size for length in set(lengths))
    assert len(mixed) <= -(-over // size)


def test_samples_of_one_length_stay_in_order():
    assert by_length([32] * 5, 2) == [[0, 1], [2, 3], [4]]
    assert by_length([64, 32, 64, 32, 64], 2) == [[1, 3], [0, 2], [4]]


@pytest.fixture(scope="module")
def planned():
    """Five samples of two padded lengths, by turns."""
    prompts = [Prompt(f"{WORDS[number % 2]}, number {number}") for number in range(5)]
    return make_plan(prompts, seed=1, val_fraction=0, samples_per_shard=50, segments=(5,)).shards[0].samples


@pytest.fixture(scope="module")
def maker(tiny_sources):
    torch.set_num_threads(1)
    return FusedMaker.load(tiny_sources, SETTINGS)


def drawn_by(maker, monkeypatch):
    """Keys of the samples of each batch that is drawn."""
    found, original = [], maker.pictures.make

    def make(batch):
        found.append([sample.key for sample in batch])
        return original(batch)

    monkeypatch.setattr(maker.pictures, "make", make)
    return found


def results_of(maker, planned, apart=()):
    return [result for step in maker.steps(planned, apart, {}) for result in step.run()]


def test_batches_are_of_one_length_and_samples_in_plan_order(maker, planned, monkeypatch):
    keys = [sample.key for sample in planned]
    assert len({maker.pictures.length(sample) for sample in planned}) == 2
    drawn = drawn_by(maker, monkeypatch)
    made = results_of(maker, planned)
    assert drawn == [[keys[0], keys[2]], [keys[1], keys[3]], [keys[4]]]
    assert [sample.key for sample in made] == keys
    for sample, alone in zip(made, (maker.make([each])[0] for each in planned), strict=True):
        pixels = [np.asarray(open_image(each.image).convert("RGB")).astype(int) for each in (sample, alone)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1, "batch mates move rounding only"
        assert np.array_equal(*(each.tensors["text"].view(np.uint8) for each in (sample, alone)))


def test_mates_stay_the_same_where_a_suspect_is_made_alone(maker, planned, monkeypatch):
    drawn = drawn_by(maker, monkeypatch)
    made = results_of(maker, planned, {planned[0].id})
    assert [len(batch) for batch in drawn] == [1, 1, 2, 1]
    assert [sample.key for sample in made] == [sample.key for sample in planned]


@pytest.mark.parametrize(("suspect", "read"), [(None, [2, 2, 1]), (3, [2, 1, 1, 1])])
def test_pictures_are_read_in_the_same_batches_elsewhere(maker, planned, tiny_sources, suspect, read):
    apart = set() if suspect is None else {planned[suspect].id}
    staged = StagedMaker.load(tiny_sources.image, SETTINGS)
    reader = PictureReader.load(tiny_sources, SETTINGS, Residence())
    together = [step.run() for step in staged.steps(planned, apart, {})]
    made = [sample for part in together for sample in make_sound(reader, part)]
    assert [len(part) for part in together if part] == read
    whole = results_of(maker, planned, apart)
    assert [sample.key for sample in made] == [sample.key for sample in whole]
    for sample, other in zip(made, whole, strict=True):
        assert sample.image == other.image
        assert sample.tensors.keys() == other.tensors.keys()
        for name, tensor in sample.tensors.items():
            assert tensor.tobytes() == other.tensors[name].tobytes(), name


def test_few_pictures_wait(maker, planned, monkeypatch):
    monkeypatch.setattr("projector.making.shard_maker.STRETCH", 1)
    assert STRETCH == 16
    drawn = drawn_by(maker, monkeypatch)
    made = results_of(maker, planned)
    assert [len(batch) for batch in drawn] == [2, 2, 1]
    assert [sample.key for sample in made] == [sample.key for sample in planned]


def test_a_batch_size_of_one_changes_nothing(tiny_sources, planned, monkeypatch):
    maker = FusedMaker.load(tiny_sources, replace(SETTINGS, batch_size=1))
    drawn = drawn_by(maker, monkeypatch)
    assert [sample.key for sample in results_of(maker, planned)] == [sample.key for sample in planned]
    assert [len(batch) for batch in drawn] == [1] * 5
