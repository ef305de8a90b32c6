"""Modes: what a reference and a prompt become together, for a projector and for what it is held against."""

import pytest
import torch
from torch.nn import functional

from projector.network.architectures import ProjectorNetwork, Shape
from projector.network.blend import BLENDS
from projector.network.projector import Projector
from projector.steering.modes import DIALLED, MODES, WITH_PROMPT, conditionings, projected, unprojected
from shards.errors import UsageError

WIDTH, LENGTH = 8, 5
TEMPLATE, CAPTION = 0, 2
KIND = torch.tensor([TEMPLATE] * 2 + [CAPTION] * 4 + [TEMPLATE] * 3, dtype=torch.uint8)
RANDOM = torch.Generator().manual_seed(0)
VL, PROMPT = torch.randn(12, WIDTH, generator=RANDOM), torch.randn(9, WIDTH, generator=RANDOM)
VL[3] *= 100  # an attention sink
ENDING = torch.randn(3, WIDTH, generator=RANDOM)


def projector_of(arch="linear", suffix=0):
    """A projector with random weights, two rows of prefix and a limit for sinks."""
    shape = Shape(arch, WIDTH, hidden=16, queries=4, prefix=2, suffix=suffix)
    network = ProjectorNetwork(shape)
    with torch.no_grad():
        for tensor in (*network.parameters(), network.text_prefix):
            tensor.copy_(torch.randn(tensor.shape, generator=RANDOM))
        if suffix:
            network.text_suffix.copy_(ENDING)
    config = {"layer": -2, "tokens": "image", "length": LENGTH, "template": {"vl_limit": 20.0}}
    return Projector(network, config)


def test_the_modes_are_those_of_the_interface():
    assert MODES == ("alone", "concat", "guidance", "blend", "interpolate")
    assert set(DIALLED) < set(WITH_PROMPT) < set(MODES)


@pytest.mark.parametrize(("arch", "suffix"), [("linear", 0), ("linear", 3), ("attention", 3), ("mlp", 0)])
def test_a_projectors_modes_are_those_of_its_conditioning(arch, suffix):
    projector = projector_of(arch, suffix)
    reference = projected(projector, VL, ENDING)
    alone, second = conditionings(reference, "alone")
    expected = projector.conditioning(VL)
    assert second is None
    assert alone.equal(expected if suffix else torch.cat([expected, ENDING]))
    joined, _ = conditionings(reference, "concat", PROMPT, KIND)
    assert joined.equal(projector.conditioning(VL, PROMPT, KIND, mode="concat"))
    mixed, _ = conditionings(reference, "blend", PROMPT, KIND, value=0.3)
    assert mixed.equal(projector.conditioning(VL, PROMPT, KIND, mode="blend", alpha=0.3))
    text, second = conditionings(reference, "guidance", PROMPT, KIND, value=0.3)
    assert text.equal(PROMPT)
    assert second.equal(alone)


def test_other_methods_stand_where_the_projectors_rows_stand():
    projector = projector_of()
    reference = unprojected(projector, VL, lambda vl: vl.double() * 2, ENDING)
    ordinary = torch.cat([VL[:3], VL[4:]])
    rows = 2 * ordinary[torch.linspace(0, 10, LENGTH).round().long()]
    alone, _ = conditionings(reference, "alone")
    torch.testing.assert_close(alone, torch.cat([projector.network.text_prefix, rows, ENDING]))
    joined, _ = conditionings(reference, "concat", PROMPT, KIND)
    torch.testing.assert_close(joined, torch.cat([PROMPT[:6], rows, PROMPT[6:]]))
    mixed, _ = conditionings(reference, "blend", PROMPT, KIND, value=0.3, blend="linear")
    torch.testing.assert_close(mixed, BLENDS["linear"](rows, PROMPT, 0.3, KIND))


@pytest.mark.parametrize("made", [projected, lambda *given: unprojected(*given[:2], lambda vl: vl, given[2])])
def test_the_guides_way_stretches_every_token_over_every_row(made):
    projector = projector_of()
    reference = made(projector, VL, ENDING)
    found, second = conditionings(reference, "interpolate", PROMPT, KIND, value=0.3)
    ordinary = torch.cat([VL[:3], VL[4:]])
    sequence = projector(ordinary) if made is projected else ordinary
    stretched = functional.interpolate(sequence.T[None], size=9, mode="linear", align_corners=False)[0].T
    assert second is None
    torch.testing.assert_close(found, 0.3 * stretched + 0.7 * PROMPT)
    assert not torch.isclose(found, PROMPT).all(-1).any()  # the template's rows are mixed, too


def test_an_end_that_nobody_knows_is_asked_for_only_where_it_is_needed():
    projector = projector_of()
    for reference in (projected(projector, VL), unprojected(projector, VL, lambda vl: vl)):
        for mode in ("alone", "guidance"):
            with pytest.raises(UsageError, match="does not predict the template's end"):
                conditionings(reference, mode, PROMPT, KIND)
        for mode in ("concat", "blend", "interpolate"):
            assert len(conditionings(reference, mode, PROMPT, KIND, value=0.5)[0])
    known = unprojected(projector_of(suffix=3), VL, lambda vl: vl)
    assert known.whole[-3:].equal(ENDING)


def test_what_does_not_go_together_is_refused():
    reference = projected(projector_of(suffix=3), VL)
    for given, said in (
        (("concat",), "wants a prompt"),
        (("mix", PROMPT, KIND), "mode = 'mix'; expected one of alone, concat"),
        (("concat", PROMPT, torch.zeros(9)), "no caption row"),
        (("concat", PROMPT, KIND[:4]), "does not fit text"),
        (("concat", PROMPT[:, :4], KIND), "cannot blend"),
    ):
        with pytest.raises(UsageError, match=said):
            conditionings(reference, *given)
    for mode in ("blend", "interpolate"):
        with pytest.raises(UsageError, match=r"alpha = 1\.5 is outside"):
            conditionings(reference, mode, PROMPT, KIND, value=1.5)
