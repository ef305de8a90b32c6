import pytest
import torch
from torch.nn import functional as F

from projector.blend import blend_interpolate
from shards.errors import UsageError

VL, TEXT = torch.randn(30, 4), torch.randn(7, 4)


def test_mixes_the_stretched_sequence_with_the_text():
    stretched = F.interpolate(VL.T[None], size=7, mode="linear", align_corners=False)[0].T
    torch.testing.assert_close(blend_interpolate(VL, TEXT, 0.3), 0.3 * stretched + 0.7 * TEXT)
    torch.testing.assert_close(blend_interpolate(VL, TEXT, 1.0), stretched)


def test_text_only_is_the_text_but_not_the_same_memory():
    blended = blend_interpolate(VL, TEXT, 0.0)
    assert blended.equal(TEXT)
    blended += 1
    assert not blended.equal(TEXT)


def test_equal_lengths_are_not_resampled():
    torch.testing.assert_close(blend_interpolate(VL[:7], TEXT, 1.0), VL[:7])


def test_keeps_the_texts_dtype():
    assert blend_interpolate(VL, TEXT.bfloat16(), 0.5).dtype == torch.bfloat16


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan")])
def test_alpha_outside_its_range(alpha):
    with pytest.raises(UsageError, match=r"outside \[0, 1\]"):
        blend_interpolate(VL, TEXT, alpha)


@pytest.mark.parametrize("vl", [torch.randn(3, 5), torch.randn(1, 3, 4), torch.randn(0, 4)])
def test_shapes_that_do_not_fit(vl):
    with pytest.raises(UsageError, match="cannot blend"):
        blend_interpolate(vl, TEXT, 0.5)
