"""The transformer with real rotations gives what diffusers' complex ones give."""

from copy import deepcopy

import pytest
import torch

from projector.inference.rotary import use_complex_rotations, use_real_rotations

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def transformer(tiny):
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel.from_pretrained(str(tiny / "image"), subfolder="transformer")


@pytest.mark.parametrize("rows", [(32, 32), (7, 90), (64,)], ids=["alike", "masked", "alone"])
def test_real_rotations_give_the_same_velocities_and_gradients(transformer, rows):
    torch.manual_seed(0)
    channels, width = transformer.config.in_channels, transformer.config.cap_feat_dim
    latents = list(torch.randn(len(rows), channels, 1, 8, 12))
    captions = [torch.randn(count, width, requires_grad=True) for count in rows]
    times = torch.full((len(rows),), 0.3)
    ours = deepcopy(transformer)
    use_real_rotations(ours)
    use_real_rotations(ours)
    found = []
    for model in (transformer, ours):
        velocities = torch.stack(model(latents, times, captions, return_dict=False)[0])
        gradients = torch.autograd.grad(velocities.square().sum(), captions)
        found.append([velocities, *gradients])
    for expected, real in zip(*found, strict=True):
        assert float(((real - expected).norm() / expected.norm()).detach()) < 1e-6


def test_the_rotation_is_used(transformer):
    """A rotation left out would move the velocities far more than rounding does."""
    ours = deepcopy(transformer)
    use_real_rotations(ours)
    table = ours.rope_embedder
    arguments = [
        list(torch.randn(1, transformer.config.in_channels, 1, 8, 12)),
        torch.full((1,), 0.3),
        [torch.randn(40, transformer.config.cap_feat_dim)],
    ]
    turned = ours(*arguments, return_dict=False)[0][0].detach()
    ours.rope_embedder = lambda positions: table(torch.zeros_like(positions))
    still = ours(*arguments, return_dict=False)[0][0].detach()
    assert float((turned - still).norm() / still.norm()) > 1e-3


def test_the_way_back_is_the_library(transformer):
    ours = deepcopy(transformer)
    before = type(ours.rope_embedder), type(ours.layers[0].attention.processor)
    use_real_rotations(ours)
    assert type(ours.rope_embedder) is not before[0]
    use_complex_rotations(ours)
    use_complex_rotations(ours)
    assert (type(ours.rope_embedder), type(ours.layers[0].attention.processor)) == before
