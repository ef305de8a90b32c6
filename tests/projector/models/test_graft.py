"""The graft against the text encoder and the vision-language model it is made of."""

import pytest
import torch
from PIL import Image

from projector.inference.text_encoder import TextEncoder
from projector.inference.vision_encoder import VisionLanguageEncoder
from shards.errors import UsageError
from shards.format.sample import KIND_IMAGE

LAYER = -2


def load(tiny, **changes):
    given = {"device": "cpu", "dtype": torch.float32, "layers": [LAYER], "text_modes": ["none"]}
    return VisionLanguageEncoder.from_pretrained(str(tiny / "vl"), **given | changes)


@torch.no_grad()
def test_text_comes_out_exactly_as_the_encoder_gives_it(tiny):
    text = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32)
    expected = text.encode(["a red fox on a sledge"])[0].embeddings
    ids = torch.tensor([text._tokenize("a red fox on a sledge")[0]])
    for language, equal in ((str(tiny / "image"), True), (None, False)):
        grafted = load(tiny, language=language)
        grafted.model(input_ids=ids, use_cache=False)
        assert torch.equal(grafted._captured[LAYER][0], expected) == equal


def test_a_picture_is_seen_through_the_tower_and_read_by_the_encoder(tiny):
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    grafted, own = (load(tiny, language=language) for language in (str(tiny / "image"), None))
    found, other = grafted.encode(pictures, ["", ""]), own.encode(pictures, ["", ""])
    states = [each.states["none"][LAYER][each.kind["none"] == KIND_IMAGE] for each in found]
    assert not torch.allclose(states[0], states[1])
    assert found[0].kind["none"].tolist() == other[0].kind["none"].tolist()
    assert not torch.allclose(found[0].states["none"][LAYER], other[0].states["none"][LAYER])


def test_models_of_another_shape_are_refused(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config.from_pretrained(tiny / "image" / "text_encoder")
    config.intermediate_size += 32
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "text_encoder")
    with pytest.raises(UsageError, match=r"does not fit .*mlp.*the graft needs models of one family"):
        load(tiny, language=str(tmp_path))
