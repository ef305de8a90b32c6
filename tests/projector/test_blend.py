import pytest
import torch

from projector.network.blend import BLENDS, blend_adain, blend_adain_per_dim, blend_interpolate, blend_linear
from shards.errors import UsageError

VL, TEXT = torch.randn(30, 4), torch.randn(7, 4)


def test_mixes_the_mean_of_each_stretch_with_the_text():
    vl = torch.arange(28.0)[:, None].expand(28, 4)
    means = vl.reshape(7, 4, 4).mean(1)
    torch.testing.assert_close(blend_interpolate(vl, TEXT, 0.3), 0.3 * means + 0.7 * TEXT)
    torch.testing.assert_close(blend_interpolate(vl, TEXT, 1.0), means)


@pytest.mark.parametrize("blend", [BLENDS["interpolate"], BLENDS["adain"], BLENDS["adain_per_dim"]])
def test_every_token_of_a_picture_counts(blend):
    vl = torch.randn(1024, 4, requires_grad=True)
    blend(vl, torch.randn(20, 4), 0.5).square().sum().backward()
    assert (vl.grad.abs().sum(-1) > 0).all()


TEMPLATE, CAPTION = 0, 2
KIND = torch.tensor([TEMPLATE] * 3 + [CAPTION] * 4 + [TEMPLATE] * 2, dtype=torch.uint8)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("blend", BLENDS.values())
def test_template_rows_stay_and_caption_rows_are_blended_as_if_alone(blend, alpha):
    text = torch.randn(9, 4)
    text[0] *= 40  # the attention sink
    blended = blend(VL, text, alpha, kind=KIND)
    assert blended[KIND == TEMPLATE].equal(text[KIND == TEMPLATE])
    torch.testing.assert_close(blended[KIND == CAPTION], blend(VL, text[KIND == CAPTION], alpha))


def test_linear_drops_caption_rows_that_no_token_meets():
    text = torch.randn(9, 4)
    blended = blend_linear(VL[:1], text, 0.3, kind=KIND)
    expected = torch.cat([text[:3], 0.3 * VL[:1] + 0.7 * text[3:4], text[7:]])
    torch.testing.assert_close(blended, expected)


@pytest.mark.parametrize("blend", BLENDS.values())
def test_an_attention_sink_stays_where_no_kinds_are_given(blend):
    text = torch.randn(40, 16)
    text[0] *= 60
    blended = blend(torch.randn(64, 16), text, 1.0)
    assert blended[0].equal(text[0])
    assert not (blended[1:] == text[1:]).all(-1).any()


@pytest.mark.parametrize("blend", BLENDS.values())
def test_kinds_that_do_not_fit(blend):
    with pytest.raises(UsageError, match=r"kind \(9,\) does not fit text \(7, 4\)"):
        blend(VL, TEXT, 0.5, kind=KIND)
    with pytest.raises(UsageError, match="no caption row"):
        blend(VL, TEXT, 0.5, kind=torch.zeros(7, dtype=torch.uint8))


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
