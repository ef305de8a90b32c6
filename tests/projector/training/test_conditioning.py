"""Whole conditionings of a projector that was trained through the image model."""

import pytest
import torch

from projector import Projector
from response_support import TRAIN
from shards.errors import UsageError
from shards.format.sample import KIND_CAPTION

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_whole_conditioning_is_prefix_rows_and_end(trained, sources, encodings):
    projector = Projector.from_pretrained(str(trained))
    pair = next(iter(sources[1]))
    whole = projector.conditioning(pair.vl)
    template = sources[0].template
    assert len(whole) == len(template.prefix) + len(pair.vl) + len(template.suffix)
    torch.testing.assert_close(whole[: len(template.prefix)], template.prefix)
    wanted = encodings[TRAIN].embeddings[encodings[TRAIN].kind == KIND_CAPTION]
    sizes = [
        rows.square().mean(-1).sqrt().mean()
        for rows in (whole[len(template.prefix) : -len(template.suffix)], wanted)
    ]
    assert sizes[0] == pytest.approx(float(sizes[1]), rel=0.3)
    # What is blended weighs like text, whichever way it is asked for.
    torch.testing.assert_close(projector(pair.vl), whole[len(template.prefix) : -len(template.suffix)])


def test_rows_of_shorter_inputs_do_not_feel_the_padding(trained, sources):
    network = Projector.from_pretrained(str(trained)).network
    vl = [pair.vl.float() for pair in list(sources[1])[:2]]
    padded = torch.nn.utils.rnn.pad_sequence(vl, batch_first=True, padding_value=9.0)
    mask = torch.arange(padded.shape[1]) < torch.tensor([[len(vl[0])], [len(vl[1])]])
    rows, exists = network.conditioning(padded, mask)
    for place, alone in enumerate(vl):
        expected, _ = network.conditioning(alone[None])
        torch.testing.assert_close(rows[place][exists[place]], expected[0], rtol=1e-5, atol=1e-4)


def test_a_prompt_and_a_picture_in_both_modes(trained, sources, encodings):
    projector = Projector.from_pretrained(str(trained))
    vl, prompt = next(iter(sources[1])).vl, encodings[0]
    own = prompt.kind == KIND_CAPTION
    joined = projector.conditioning(vl, prompt.embeddings, prompt.kind)
    assert len(joined) == len(prompt.embeddings) + len(vl)
    last = int(torch.nonzero(own)[-1]) + 1
    torch.testing.assert_close(joined[:last], prompt.embeddings[:last])
    torch.testing.assert_close(joined[last + len(vl) :], prompt.embeddings[last:])
    mixed = projector.conditioning(vl, prompt.embeddings, prompt.kind, mode="blend", alpha=0.5)
    torch.testing.assert_close(mixed[~own], prompt.embeddings[~own])
    assert not torch.allclose(mixed[own], prompt.embeddings[own])
    torch.testing.assert_close(projector.conditioning(vl, prompt.embeddings), joined)  # found without kinds
    for wrong, said in (({"mode": "mix"}, "mode = 'mix'"), ({"mode": "blend", "alpha": 2.0}, "alpha = 2.0")):
        with pytest.raises(UsageError, match=said):
            projector.conditioning(vl, prompt.embeddings, **wrong)
    with pytest.raises(UsageError, match="are a batch"):
        projector.conditioning(torch.stack([vl, vl]))
    for wrong in ((torch.full_like(vl, torch.nan),), (vl, torch.full_like(prompt.embeddings, torch.inf))):
        with pytest.raises(UsageError, match="NaN or infinite"):
            projector.conditioning(*wrong)
    with pytest.raises(UsageError, match="kind of shape"):
        projector.conditioning(vl, prompt.embeddings, prompt.kind[:-1])
    projector.config["template"]["vl_limit"] = 0.0
    with pytest.raises(UsageError, match=f"all {len(vl)} tokens"):
        projector.conditioning(vl)
