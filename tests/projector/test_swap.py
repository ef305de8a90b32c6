import numpy as np
import pytest
import torch
from synthetic import Synthetic

from projector.evaluation.caption_swap import caption_swap, swapped, with_next
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
    assert "copies the caption instead of looking at the picture" in found["sentence"]


@pytest.mark.parametrize("arch", ["ridge", "attention"])
def test_a_projector_that_looks_at_the_picture_is_not(tmp_path, arch):
    found = put_to_the_test(tmp_path, SEEN, "none", "image", arch=arch)
    assert not found["copies"]
    assert found["image"] == found["own"] > 0.3, "no caption reaches image tokens"
    assert found["intervals"]["image"][0] > found["chance"]
    assert "follows the picture" in found["sentence"]


def test_a_projector_that_learnt_nothing_follows_neither(tmp_path):
    found = put_to_the_test(tmp_path, BLIND, "none", "image", arch="ridge")
    assert not found["copies"]
    assert "follows neither" in found["sentence"]


def test_only_the_captions_tokens_change_places():
    pairs = list(SEEN.source(2, text_mode="caption", tokens="all"))
    mixed = swapped(pairs[0], pairs[1], "all")
    images = int((pairs[0].vl_kind == KIND_IMAGE).sum())
    assert torch.equal(mixed[:images], pairs[0].vl[:images])
    assert torch.equal(mixed[images:], pairs[1].vl[pairs[1].vl_kind == KIND_CAPTION])
    assert torch.equal(swapped(pairs[0], pairs[0], "all"), pairs[0].vl)
    assert torch.equal(swapped(pairs[0], pairs[1], "text"), mixed[images:])


def test_everyone_gets_a_neighbour():
    pairs = list(SEEN.source(4))
    keys = [(mine.key, other.key) for mine, other in with_next(iter(pairs))]
    names = [pair.key for pair in pairs]
    assert keys == list(zip(names, names[1:] + names[:1], strict=True))
    assert list(with_next([])) == []


def test_one_pair_has_nobody_to_swap_with(tmp_path):
    assert caption_swap({}, SEEN.source(1), standard_of(SEEN.source(5))) == {}
