"""Pictures follow from conditioning and seed, whatever else goes on in the process."""

import numpy as np
import pytest
import torch

from projector.inference.image_generator import ImageGenerator
from projector.inference.text_encoder import TextEncoder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def conditioning(tiny):
    encoder = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32)
    return [found.embeddings for found in encoder.encode(["a red fox", "the passing of time", "x " * 60])]


@pytest.fixture(scope="module")
def generator(tiny):
    return ImageGenerator.from_pretrained(
        str(tiny / "image"), device="cpu", dtype=torch.float32, height=64, width=96, steps=3
    )


def pixels(images):
    return [np.asarray(image, np.int16) for image in images]


def test_no_text_encoder_is_loaded(generator):
    assert generator.pipeline.text_encoder is None
    assert generator.pipeline.tokenizer is None


def test_defaults_are_those_of_z_image_turbo(tiny):
    generator = ImageGenerator.from_pretrained(
        str(tiny / "image"), device="cpu", dtype=torch.float32, height=64, width=64
    )
    assert (generator.steps, generator.guidance) == (8, 0.0)


def test_order_and_batch_mates_move_rounding_only(generator, conditioning):
    alone = [
        pixels(generator.generate([embedding], [seed]))[0] for seed, embedding in enumerate(conditioning)
    ]
    for order in ((0, 1, 2), (2, 0, 1)):
        together = pixels(generator.generate([conditioning[index] for index in order], list(order)))
        for index, found in zip(order, together, strict=True):
            assert found.shape == (64, 96, 3)
            assert np.abs(found - alone[index]).max() <= 2


def test_global_random_state_neither_matters_nor_moves(generator, conditioning):
    torch.manual_seed(1)
    first = pixels(generator.generate(conditioning[:1], [5]))[0]
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    again = pixels(generator.generate(conditioning[:1], [5]))[0]
    assert np.array_equal(first, again)
    assert torch.equal(torch.rand(3), expected)


def test_what_is_given_is_left_as_it_was(generator, conditioning):
    before = [embedding.clone() for embedding in conditioning]
    seeds = [1, 2, 3]
    generator.generate(conditioning, seeds)
    assert seeds == [1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(before, conditioning, strict=True))


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_seeds_of_63_bits(generator, conditioning, seed):
    assert generator.generate(conditioning[:1], [seed])[0].mode == "RGB"


def test_nothing_is_printed(generator, conditioning, capfd):
    generator.generate(conditioning[:1], [1])
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_guidance_by_a_reference_goes_from_the_texts_picture_to_the_references(generator, conditioning):
    texts, references, seeds = conditioning[:2], conditioning[1:], [3, 4]
    text, reference = (pixels(generator.generate(side, seeds)) for side in (texts, references))
    assert all(np.abs(a - b).max() > 20 for a, b in zip(text, reference, strict=True))
    moved = {
        weight: pixels(generator.generate(texts, seeds, references=references, weight=weight))
        for weight in (0.0, 0.5, 1.0)
    }
    for found, expected in ((moved[0.0], text), (moved[1.0], reference)):
        assert all(np.abs(a - b).max() <= 2 for a, b in zip(found, expected, strict=True))
    for between, *ends in zip(moved[0.5], text, reference, strict=True):
        assert min(np.abs(between - end).max() for end in ends) > 5
    assert np.array_equal(pixels(generator.generate(texts, seeds))[0], text[0])  # nothing of it stays behind


def test_guidance_by_a_reference_and_away_from_the_empty_prompt(tiny, conditioning):
    empty, text, reference = conditioning
    guided = ImageGenerator.from_pretrained(
        str(tiny / "image"),
        device="cpu",
        dtype=torch.float32,
        height=64,
        width=64,
        steps=3,
        guidance=2.0,
        negative=empty,
    )
    for weight, alone in ((0.0, text), (1.0, reference)):
        found = guided.generate([text], [1], references=[reference], weight=weight)
        expected = guided.generate([alone], [1])
        assert np.abs(pixels(found)[0] - pixels(expected)[0]).max() <= 2


def test_as_many_references_as_pictures(generator, conditioning):
    with pytest.raises(ValueError, match="1 references for 2 conditionings"):
        generator.generate(conditioning[:2], [1, 2], references=conditioning[:1])


def test_noise_levels_are_calculated_once_and_begin_anew_with_each_batch(tiny, conditioning):
    generator = ImageGenerator.from_pretrained(
        str(tiny / "image"), device="cpu", dtype=torch.float32, height=64, width=64, steps=3
    )
    scheduler = generator.pipeline.scheduler
    first = generator.generate(conditioning[:1], [5])[0]
    levels = scheduler.timesteps
    again = generator.generate(conditioning[:1], [5])[0]
    assert scheduler.timesteps is levels
    generator.one_step([16])
    assert len(scheduler.timesteps) == 1, "another number of steps has levels of its own"
    last = generator.generate(conditioning[:1], [5])[0]
    assert first.tobytes() == again.tobytes() == last.tobytes()
