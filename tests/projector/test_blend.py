import pytest
import torch
from torch.nn import functional as F

from projector.steering.blend import BLENDS, blend_adain, blend_adain_per_dim, blend_interpolate, blend_linear
from shards.errors import UsageError

VL, TEXT = torch.randn(30, 4), torch.randn(7, 4)


def test_mixes_the_stretched_sequence_with_the_text():
    stretched = F.interpolate(VL.T[None], size=7, mode="linear", align_corners=False)[0].T
    torch.testing.assert_close(blend_interpolate(VL, TEXT, 0.3), 0.3 * stretched + 0.7 * TEXT)
    torch.testing.assert_close(blend_interpolate(VL, TEXT, 1.0), stretched)


def test_linear_cuts_the_longer_sequence_off():
    torch.testing.assert_close(blend_linear(VL, TEXT, 0.3), 0.3 * VL[:7] + 0.7 * TEXT)
    torch.testing.assert_close(blend_linear(TEXT, VL, 1.0), TEXT)
    assert blend_linear(VL[:5], TEXT, 0.0).equal(TEXT)


def test_adain_gives_the_vl_tokens_the_texts_mean_and_spread():
    vl, text = 40 * torch.randn(50, 6) - 7, 3 * torch.randn(50, 6) + 2  # one length: nothing is stretched
    blended = blend_adain(vl, text, 1.0)
    torch.testing.assert_close(blended.mean(), text.mean())
    torch.testing.assert_close(blended.std(), text.std())
    # One scale for all numbers: what tells tokens and dimensions apart stays.
    torch.testing.assert_close(
        torch.corrcoef(torch.stack([blended.flatten(), vl.flatten()]))[0, 1], torch.tensor(1.0)
    )


def test_adain_per_dim_gives_each_dimension_the_texts_mean_and_spread():
    vl = torch.randn(50, 6) * torch.tensor([1.0, 600, 1, 42, 1, 1]) - 7
    text = torch.randn(50, 6) + torch.arange(6)
    blended = blend_adain_per_dim(vl, text, 1.0)
    torch.testing.assert_close(blended.mean(0), text.mean(0))
    torch.testing.assert_close(blended.std(0), text.std(0))
    assert not torch.allclose(blend_adain(vl, text, 1.0).std(0), text.std(0), rtol=0.5)


@pytest.mark.parametrize("blend", [blend_adain, blend_adain_per_dim])
def test_adain_mixes_by_interpolation(blend):
    torch.testing.assert_close(blend(VL, TEXT, 0.3), 0.3 * blend(VL, TEXT, 1.0) + 0.7 * TEXT)
    assert blend(VL, TEXT, 0.5).shape == TEXT.shape


@pytest.mark.parametrize("blend", [blend_adain, blend_adain_per_dim])
def test_adain_of_tokens_that_do_not_vary_is_the_texts_mean(blend):
    over = None if blend is blend_adain else 0
    expected = TEXT.mean(over).expand(7, 4)
    torch.testing.assert_close(blend(torch.full((3, 4), 5.0), TEXT, 1.0), expected)
    assert blend(torch.ones(1, 4), TEXT[:1], 1.0).isfinite().all()


@pytest.mark.parametrize("blend", BLENDS.values())
def test_text_only_is_the_text_but_not_the_same_memory(blend):
    blended = blend(VL, TEXT, 0.0)
    assert blended.equal(TEXT)
    blended += 1
    assert not blended.equal(TEXT)


def test_equal_lengths_are_not_resampled():
    torch.testing.assert_close(blend_interpolate(VL[:7], TEXT, 1.0), VL[:7])


@pytest.mark.parametrize("blend", BLENDS.values())
def test_keeps_the_texts_dtype(blend):
    assert blend(VL, TEXT.bfloat16(), 0.5).dtype == torch.bfloat16


@pytest.mark.parametrize("blend", BLENDS.values())
@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan")])
def test_alpha_outside_its_range(blend, alpha):
    with pytest.raises(UsageError, match=r"outside \[0, 1\]"):
        blend(VL, TEXT, alpha)


@pytest.mark.parametrize("blend", BLENDS.values())
@pytest.mark.parametrize("vl", [torch.randn(3, 5), torch.randn(1, 3, 4), torch.randn(0, 4)])
def test_shapes_that_do_not_fit(blend, vl):
    with pytest.raises(UsageError, match="cannot blend"):
        blend(vl, TEXT, 0.5)
