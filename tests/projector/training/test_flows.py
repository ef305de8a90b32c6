"""The straight ways from noise to pictures, and the latents they end at."""

import io

import pytest
import torch
from PIL import Image

from projector.data.pairs import PairPicture
from projector.inference.frozen_transformer import FrozenTransformer
from projector.inference.image_generator import ImageGenerator
from projector.inference.latent_encoder import LatentEncoder
from projector.inference.text_encoder import TextEncoder
from projector.models.resolve import resolve_models
from projector.teaching import flows
from projector.teaching.flows import Flows

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SIDE, STEPS = 64, 4


@pytest.fixture(scope="module")
def folder():
    return resolve_models("mini").image.path


@pytest.fixture(scope="module")
def model(folder):
    return FrozenTransformer.from_pretrained(folder, device=CPU, height=SIDE, width=SIDE, steps=STEPS)


@pytest.fixture(scope="module")
def made(folder):
    """Three pictures with the latents that they were decoded from."""
    text = TextEncoder.from_pretrained(folder, device="cpu", dtype=torch.float32)
    images = ImageGenerator.from_pretrained(
        folder, device="cpu", dtype=torch.float32, height=SIDE, width=SIDE, steps=STEPS
    )
    captions = [
        f"a large {colour} solid circle in the centre, white background" for colour in ("red", "blue")
    ]
    captions.append("a small green striped star at the top left, dusk background")
    encodings = text.encode(captions)
    levels, latents = images.generate_with_latents([e.embeddings for e in encodings], [5, 6, 7])
    return [(Image.fromarray(pixels.numpy()), rows) for pixels, rows in zip(levels, latents, strict=True)]


def as_png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_are_encoded_to_the_latents_they_came_from(folder, made):
    encoder = LatentEncoder.from_pretrained(folder, device=CPU)
    found = encoder.encode([picture for picture, _ in made], height=SIDE, width=SIDE)
    for latents, (_, wanted) in zip(found, made, strict=True):
        assert (latents - wanted).square().mean() < 0.05 * wanted.square().mean()


def test_a_picture_of_other_size_and_proportions_is_cut_around_its_middle(folder, made):
    encoder, picture = LatentEncoder.from_pretrained(folder, device=CPU), made[0][0]
    wide = Image.new("RGB", (SIDE * 2, SIDE), "black")
    wide.paste(picture, (SIDE // 2, 0))
    exact, cut = encoder.encode([picture, wide], height=SIDE, width=SIDE)
    torch.testing.assert_close(cut, exact)


def test_a_way_leads_from_its_noise_to_the_picture(model, folder, made):
    pictures = [PairPicture(b"", latents.bfloat16(), seed) for seed, (_, latents) in enumerate(made)]
    paths = Flows(model, folder, iter(pictures), 3)
    pairs = torch.tensor([2, 0, 2])
    steps = torch.tensor([0, 1, 3])
    states, velocities = paths.at(pairs, steps)
    for place, (pair, step) in enumerate(zip(pairs.tolist(), steps.tolist(), strict=True)):
        left = float(model.sigmas[step])
        torch.testing.assert_close(
            states[place] + left * velocities[place], made[pair][1], rtol=0.02, atol=0.02
        )
        noise = states[place] - (1 - left) * velocities[place]
        assert float(noise.std()) == pytest.approx(1.0, abs=0.15)
    torch.testing.assert_close(states[0], model.noise([2])[0])
    again, _ = Flows(model, folder, iter(pictures), 3).at(pairs, steps)
    torch.testing.assert_close(again, states, rtol=0, atol=0)


def test_pictures_without_fitting_latents_are_encoded(model, folder, made, monkeypatch):
    monkeypatch.setattr(flows, "ENCODED_TOGETHER", 2)
    picture, latents = made[1]
    pictures = [
        PairPicture(as_png(picture), None, 1),
        PairPicture(b"", latents.bfloat16(), 1),
        PairPicture(as_png(picture), latents[:, :4].bfloat16(), 1),
    ]
    paths = Flows(model, folder, iter(pictures), 3)
    found = [paths.at(torch.tensor([pair]), torch.tensor([0]))[1] for pair in range(3)]
    torch.testing.assert_close(found[0], found[2])
    assert (found[0] - found[1]).square().mean() < 0.05 * latents.square().mean()
    assert paths.seeds == [1, 1, 1]


def test_every_step_has_noise_of_its_own():
    seeds = {flows.noise_seed(seed, step) for seed in range(50) for step in range(8)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert flows.noise_seed(7, 0) == 7
