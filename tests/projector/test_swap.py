from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import Synthetic

from projector.evaluation.caption_swap import _shares, _sums, caption_swap, swapped, with_another
from projector.evaluation.distances import random_directions
from projector.evaluation.metrics import Standard
from projector.network.projector import Projector
from projector.options import TrainOptions
from projector.training.loop import train
from shards.format.sample import KIND_CAPTION, KIND_IMAGE

WIDTH = 48
SEEN = Synthetic(WIDTH, image_tokens=24, text_tokens=(5, 12), latent=6, image_signal=0.9)
BLIND = Synthetic(WIDTH, image_tokens=24, text_tokens=(5, 12), latent=6, image_signal=0.0)


def standard_of(pairs):
    text = np.concatenate([pair.text.double().numpy() for pair in pairs])
    return Standard(text.mean(0), text.std(0), random_directions(WIDTH, 2, seed=0))


def put_to_the_test(tmp_path, world, text_mode, tokens, **options):
    train(
        TrainOptions(
            output=str(tmp_path), objective="embedding", length=24, epochs=1, batch_size=50, **options
        ),
        world.source(150, text_mode=text_mode, tokens=tokens),
        world.source(30, first=5000, text_mode=text_mode, tokens=tokens),
    )
    held_out = world.source(60, first=9000, text_mode="caption", tokens="all")
    projector = Projector.from_pretrained(str(tmp_path))
    return caption_swap({"projector": projector}, held_out, standard_of(world.source(50)))["projector"]


@pytest.mark.parametrize("arch", ["ridge", "attention"])
def test_a_projector_that_could_only_copy_is_called_a_copier(tmp_path, arch):
    """The picture says nothing here: the caption in the VL input is the only signal."""
    found = put_to_the_test(tmp_path, BLIND, "caption", "all", arch=arch)
    assert found["copies"]
    assert found["caption"] > 0.3 > found["image"]
    assert found["intervals"]["takes_other"][0] > 0.2
    assert found["intervals"]["takes_own"][0] < 0 < found["intervals"]["takes_own"][1]
    assert "copies the caption instead of looking at the picture" in found["sentence"]


@pytest.mark.parametrize("arch", ["ridge", "attention"])
def test_a_projector_that_looks_at_the_picture_is_not(tmp_path, arch):
    found = put_to_the_test(tmp_path, SEEN, "none", "image", arch=arch)
    assert not found["copies"]
    assert found["image"] == found["own"] > 0.3, "no caption reaches image tokens"
    assert found["intervals"]["image"][0] > found["chance"]
    assert "reads image tokens alone, which no caption reaches" in found["sentence"]


def test_a_projector_that_learnt_nothing_follows_neither(tmp_path):
    found = put_to_the_test(tmp_path, BLIND, "none", "image", arch="ridge")
    assert not found["copies"]
    assert "follows" not in found["sentence"]
    assert "chance 1.7%" in found["sentence"]


def test_only_the_captions_tokens_change_places():
    pairs = list(SEEN.source(2, text_mode="caption", tokens="all"))
    mixed = swapped(pairs[0], pairs[1], "all")
    images = int((pairs[0].vl_kind == KIND_IMAGE).sum())
    assert torch.equal(mixed[:images], pairs[0].vl[:images])
    assert torch.equal(mixed[images:], pairs[1].vl[pairs[1].vl_kind == KIND_CAPTION])
    assert torch.equal(swapped(pairs[0], pairs[0], "all"), pairs[0].vl)
    assert torch.equal(swapped(pairs[0], pairs[1], "text"), mixed[images:])


@pytest.mark.parametrize(
    ("groups", "others"),
    [
        ("abcd", {0: 1, 1: 2, 2: 3, 3: 0}),
        ("aabbc", {0: 2, 1: 2, 2: 4, 3: 4, 4: 0}),
        ("abab", {0: 1, 1: 2, 2: 3, 3: 0}),
        ("abba", {0: 1, 1: 3, 2: 3}),
        ("aaa", {}),
        ("", {}),
    ],
)
def test_everyone_gets_a_caption_of_another_picture(groups, others):
    pairs = [replace(pair, group=group) for pair, group in zip(SEEN.source(len(groups)), groups, strict=True)]
    places = {pair.key: place for place, pair in enumerate(pairs)}
    assert {places[mine.key]: places[other.key] for mine, other in with_another(iter(pairs))} == others


def test_shares_are_those_of_a_plain_regression():
    random = np.random.default_rng(0)
    mine, theirs = random.normal(size=(2, 30, 6))
    theirs += 0.5 * mine
    outputs = 0.7 * mine + 0.2 * theirs + 0.1 * random.normal(size=(30, 6))
    columns = [(rows - rows.mean(0)).ravel() for rows in (mine, theirs)]
    expected, *_ = np.linalg.lstsq(np.stack(columns, axis=1), (outputs - outputs.mean(0)).ravel(), rcond=None)
    np.testing.assert_allclose(_shares(_sums(outputs, mine, theirs).sum(0)), expected)
    assert expected == pytest.approx([0.7, 0.2], abs=0.05)
    assert _shares(np.zeros(5)).tolist() == [0, 0]


def test_one_pair_has_nobody_to_swap_with(tmp_path):
    assert caption_swap({}, SEEN.source(1), standard_of(SEEN.source(5))) == {}
