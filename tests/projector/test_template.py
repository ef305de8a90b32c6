"""What is the same in every prompt is found in the data, and only that."""

import pytest
import torch

from projector.data.template import WholeSample, find_template

WIDTH = 512
SINK = torch.zeros(WIDTH)
SINK[4], SINK[396] = 13_504.0, -4_544.0


def sample(index, *, constant=3, sink=True, noise=0.0):
    random = torch.Generator().manual_seed(index)
    fixed = 6 * torch.randn(constant, WIDTH, generator=torch.Generator().manual_seed(1000))
    if sink and constant:
        fixed[0] = SINK
    caption = 6 * torch.randn(5 + index % 4, WIDTH, generator=random)
    ending = 6 * torch.randn(2, WIDTH, generator=random)
    text = torch.cat([fixed * (1 + noise * torch.randn(1, generator=random)), caption, ending])
    kinds = torch.tensor([0] * constant + [2] * len(caption) + [0, 0], dtype=torch.uint8)
    vl = 5 * torch.randn(12, WIDTH, generator=random)
    vl_kind = torch.tensor([0, 3, *[1] * 8, 3, 0], dtype=torch.uint8)
    return WholeSample(text.bfloat16(), kinds, vl.bfloat16(), vl_kind)


def test_the_constant_tokens_and_the_sink_are_found():
    found = find_template(sample(i) for i in range(8))
    assert len(found.prefix) == 3
    assert found.prefix[0, 4] == pytest.approx(13_504, rel=0.01)
    (sink,) = found.sinks
    assert (sink["side"], sink["kind"], sink["positions"], sink["tokens"]) == ("text", "template", [0], 8)
    assert set(sink["dimensions"][:2]) == {4, 396}
    assert sink["times_median"] > 50
    assert "3 constant template tokens; attention sinks: 8 text template tokens" in str(found)
    assert found.as_json()["prefix_tokens"] == 3


def test_what_varies_is_no_constant():
    assert len(find_template(sample(i, noise=0.2) for i in range(8)).prefix) == 0
    assert len(find_template([sample(0)]).prefix) == 0  # one sample tells nothing
    assert len(find_template(sample(i, constant=0) for i in range(4)).prefix) == 0


def test_ordinary_tokens_are_no_sinks():
    found = find_template(sample(i, sink=False) for i in range(8))
    assert found.sinks == ()
    assert "attention sinks: none" in str(found)


def test_a_massive_image_token_is_one():
    def massive(index):
        made = sample(index)
        vl = made.vl.clone()
        vl[5] = 60 * vl[5]
        return WholeSample(made.text, made.text_kind, vl, made.vl_kind)

    found = find_template(massive(i) for i in range(8))
    assert [(sink["side"], sink["kind"]) for sink in found.sinks] == [("text", "template"), ("vl", "image")]
    assert found.sinks[1]["positions"] == [5]
