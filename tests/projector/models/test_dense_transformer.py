"""Stacked tensors through the transformer's modules give what diffusers' lists give."""

from copy import deepcopy

import pytest
import torch

from projector.inference.dense_transformer import dense_velocities

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def transformer(tiny):
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel.from_pretrained(str(tiny / "image"), subfolder="transformer")


@pytest.mark.parametrize("size", [(8, 8), (8, 16), (16, 12)], ids=str)
@pytest.mark.parametrize("lengths", [(32, 32), (33, 64, 50)], ids=str)
def test_velocities_and_gradients_are_the_classs(transformer, size, lengths):
    torch.manual_seed(0)
    channels, width = transformer.config.in_channels, transformer.config.cap_feat_dim
    latents = torch.randn(len(lengths), channels, *size)
    times = torch.rand(len(lengths))
    captions = [torch.randn(length, width, requires_grad=True) for length in lengths]
    expected = torch.stack(transformer(list(latents[:, :, None]), times, captions, return_dict=False)[0])[
        :, :, 0
    ]
    longest = -(-max(lengths) // 32) * 32
    rows = torch.nn.utils.rnn.pad_sequence(captions, batch_first=True)
    rows = torch.nn.functional.pad(rows, (0, 0, 0, longest - rows.shape[1]))
    exists = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    found = dense_velocities(deepcopy(transformer), latents, times, rows, exists)
    assert float(((found - expected).norm() / expected.norm()).detach()) < 1e-5
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), captions),
        torch.autograd.grad(expected.square().sum(), captions),
        strict=True,
    ):
        assert float((one - other).norm() / other.norm()) < 1e-4


def test_rows_that_are_no_multiple_are_refused(transformer):
    width = transformer.config.cap_feat_dim
    with pytest.raises(ValueError, match="conditionings have 20 rows; pad them to a multiple of 32"):
        dense_velocities(transformer, torch.zeros(1, 16, 8, 8), torch.zeros(1), torch.zeros(1, 20, width))
