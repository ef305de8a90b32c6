"""Fidelity in `evaluate`: what is shown of a scene, counted by hand, and which way its differences point."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from projector.data.pairs import Conditioning, Pair, PairPicture, in_memory
from projector.evaluation.drawn_fidelity import FIDELITY, drawn_fidelity, put_fidelity
from shards.scenes.captions import canonical
from shards.scenes.draw import draw_scene
from shards.scenes.scene import attributes, sample_scene

COUNT = 20


class FakeArtist:
    """Draws the scene whose number stands in a conditioning, and keeps the seeds it is given."""

    def __init__(self, scenes):
        self.scenes, self.seeds = scenes, []

    def generate(self, embeddings, seeds):
        self.seeds += seeds
        return [Image.fromarray(draw_scene(self.scenes[int(each[0, 0])])) for each in embeddings]


def as_png(scene):
    data = io.BytesIO()
    Image.fromarray(draw_scene(scene)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def scenes():
    generator = np.random.default_rng(3)
    return [sample_scene(generator, 1 + place % 2) for place in range(COUNT)]


@pytest.fixture(scope="module")
def pairs(scenes):
    tokens, kind = torch.zeros(1, 4), torch.ones(1, dtype=torch.uint8)
    # Every two pairs are of one group, as captions of one picture are.
    source = in_memory(
        [Pair(f"{place}", tokens, kind, tokens, group=f"{place // 2}") for place in range(COUNT)]
    )
    texts = [Conditioning(tokens, 7 + place, canonical(scene)) for place, scene in enumerate(scenes)]
    shown = [PairPicture(as_png(scene), None, 7 + place) for place, scene in enumerate(scenes)]
    return replace(
        source,
        conditionings=lambda start, stop: iter(texts[start:stop]),
        pictures=lambda start, stop: iter(shown[start:stop]),
    )


def numbered(places):
    return [torch.full((1, 4), float(place)) for place in places]


def test_it_is_the_share_of_attributes_that_the_references_have(scenes, pairs):
    artist = FakeArtist(scenes)
    shifted = [(place + 2) % COUNT for place in range(COUNT)]  # of as many things
    found = drawn_fidelity({"own": numbered(range(COUNT)), "other": numbered(shifted)}, pairs, artist)
    assert artist.seeds == [7 + place for place in range(COUNT)] * 2
    assert found["own"].value == 1.0
    shares = []
    for place, other in enumerate(shifted):
        own, theirs = attributes(scenes[place]), attributes(scenes[other])
        shares.append(np.mean([theirs[name] == value for name, value in own.items()]))
    assert found["other"].value == pytest.approx(np.mean(shares))
    assert len(found["other"].under) == COUNT // 2
    assert found["other"].under.tolist() == [2.0] * (COUNT // 2)


def test_what_shows_more_is_called_better(scenes, pairs):
    others = [(place + 2) % COUNT for place in range(COUNT)]
    drawn = {
        "projector": numbered(range(COUNT)),
        "identity": numbered(others),
        "ridge": numbered([0] * COUNT),
    }
    fidelity = drawn_fidelity(drawn, pairs, FakeArtist([*scenes]))
    methods = {name: {} for name in drawn}
    put_fidelity(methods, fidelity, ["projector"])
    best = max(("identity", "ridge"), key=lambda name: methods[name][FIDELITY])
    against = methods["projector"]["against"][FIDELITY]
    assert against["baseline"] == best
    assert against["difference"] == pytest.approx(1 - methods[best][FIDELITY])
    low, high = against["interval"]
    assert 0 < low < against["difference"] < high
    assert against["better"]
    low, high = methods[best]["intervals"][FIDELITY]
    assert low < methods[best][FIDELITY] < high
    lost = methods[min(("identity", "ridge"), key=lambda name: methods[name][FIDELITY])]["against"][FIDELITY]
    assert lost["difference"] < 0
    assert not lost["better"]


def test_pictures_whose_caption_is_of_no_scene_are_left_out(scenes, pairs):
    captions = [canonical(scene) if place % 2 else "a red cat" for place, scene in enumerate(scenes)]
    texts = [Conditioning(torch.zeros(1, 4), 7 + place, caption) for place, caption in enumerate(captions)]
    some = replace(pairs, conditionings=lambda start, stop: iter(texts[start:stop]))
    artist = FakeArtist(scenes)
    found = drawn_fidelity({"own": numbered(range(COUNT))}, some, artist)
    assert artist.seeds == [7 + place for place in range(1, COUNT, 2)]
    assert (found["own"].value, found["own"].under.sum()) == (1.0, COUNT // 2)
    none = replace(pairs, conditionings=lambda start, stop: iter([texts[0]] * (stop - start)))
    assert drawn_fidelity({"own": numbered(range(COUNT))}, none, artist) == {}
