"""The tiny image model, what it makes pictures from, and a run that was trained through it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from projector.data.pairs import Conditioning, PairPicture
from projector.inference.frozen_transformer import FrozenTransformer
from projector.inference.image_generator import ImageGenerator
from projector.inference.text_encoder import TextEncoder
from projector.models.resolve import resolve_models
from projector.training.loop import train
from response_support import CPU, SIDE, STEPS, TRAIN, VAL, encoded, options, turned
from shards.scenes.captions import varied
from shards.scenes.scene import sample_scene


@pytest.fixture(scope="module")
def model():
    return FrozenTransformer.from_pretrained(
        resolve_models("tiny").image.path, device=CPU, height=SIDE, width=SIDE, steps=STEPS
    )


@pytest.fixture(scope="module")
def encodings():
    return encoded()


@pytest.fixture(scope="module")
def sources(encodings):
    return turned(encodings)


@pytest.fixture(scope="module")
def trained(sources, tmp_path_factory):
    """A run to read and to compare with, of few epochs."""
    output = tmp_path_factory.mktemp("trained")
    train(options(output), *sources)
    return output


@pytest.fixture(scope="module")
def images():
    """The tiny pipeline at the size of these tests."""
    return ImageGenerator.from_pretrained(
        resolve_models("tiny").image.path,
        device="cpu",
        dtype=torch.float32,
        height=SIDE,
        width=SIDE,
        steps=STEPS,
    )


@pytest.fixture(scope="module")
def pictured(sources, encodings, images):
    """The same pairs with the latents that their pictures are decoded from."""

    def shown(source, part):
        _, latents = images.generate_with_latents(
            [e.embeddings for e in encodings[part]], list(range(len(source)))
        )
        pictures = [PairPicture(b"", latent.bfloat16(), seed) for seed, latent in enumerate(latents)]
        return replace(source, pictures=lambda start, stop: iter(pictures[start:stop]))

    return shown(sources[0], slice(0, TRAIN)), shown(sources[1], slice(TRAIN, TRAIN + VAL))


@pytest.fixture(scope="module")
def scene_sources(sources):
    """The same pairs with captions of scenes: what they are made from is encoded from those."""
    generator = np.random.default_rng(1)
    path = resolve_models("tiny").image.path
    encoder = TextEncoder.from_pretrained(path, device="cpu", dtype=torch.float32)

    def told(source):
        captions = [varied(sample_scene(generator), generator) for _ in range(len(source))]
        made_from = [
            Conditioning(encoding.embeddings, 100 + number, caption)
            for number, (encoding, caption) in enumerate(zip(encoder.encode(captions), captions, strict=True))
        ]
        return replace(source, conditionings=lambda start, stop: iter(made_from[start:stop]))

    return told(sources[0]), told(sources[1])
