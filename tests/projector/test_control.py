"""The control: what Qwen3-VL writes of a picture is what the text encoder reads."""

from types import SimpleNamespace

import pytest
import torch

from projector.evaluation.caption_control import INSTRUCTION, Captioner, WrittenCaptions
from projector.inference.text_encoder import TextEncoder
from projector.models.int8 import Int8Linear
from shards.errors import CorruptShardError
from shards.format.sample import KIND_CAPTION
from vision_support import full_forward, pictures

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def captioner(tiny):
    return Captioner.from_pretrained(str(tiny / "vl"), device="cpu", dtype=torch.float32)


def test_the_first_word_is_the_likeliest_of_the_librarys_own_forward(tiny, captioner, monkeypatch):
    monkeypatch.setattr("projector.evaluation.caption_control.NEW_TOKENS", 3)
    image = pictures(1)[0]
    states = full_forward(tiny, image, INSTRUCTION)
    likeliest = captioner.model.lm_head(states[-1][-1]).argmax()
    written = []
    captioner.model.lm_head.register_forward_hook(lambda *args: written.append(args[2][0, -1].argmax()))
    captioner.write(image)
    assert written[0] == likeliest
    assert 1 <= len(written) <= 3


class Told(Captioner):
    """Writes what it is told instead of looking."""

    def __init__(self, captions):
        self.captions = list(captions)

    def write(self, image):
        return self.captions.pop(0)


@pytest.fixture(scope="module")
def encoder(tiny):
    return TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32)


def written(monkeypatch, encoder, captions, keys):
    samples = [type("Sample", (), {"key": key, "image": b""}) for key in keys]
    monkeypatch.setattr(
        "projector.evaluation.caption_control.read_samples", lambda *_args, **_named: iter(samples)
    )
    monkeypatch.setattr("projector.evaluation.caption_control.picture_of", lambda _: pictures(1)[0])
    dataset = type("Dataset", (), {"storage": type("Storage", (), {"root": "here"})})
    return WrittenCaptions(Told(captions), encoder, dataset, "val")


def tokens(encoder, caption):
    encoding = encoder.encode([caption])[0]
    return encoding.embeddings[encoding.kind == KIND_CAPTION]


def test_each_sample_gets_its_own_words(monkeypatch, encoder):
    keys = [f"val-{index}" for index in range(7)]
    captions = [f"picture number {index}" for index in range(7)]
    control = written(
        monkeypatch, encoder, captions[1:], keys
    )  # sample 0 is skipped: nothing is written of it
    for key, caption in list(zip(keys, captions, strict=True))[1:]:
        assert torch.equal(control(key), tokens(encoder, caption))
        assert torch.equal(control(key), tokens(encoder, caption)), "asked twice, written once"
    with pytest.raises(CorruptShardError, match="sample val-2 is not there, or not in its order"):
        control("val-2")


@pytest.mark.parametrize("nonsense", ["", "<|im_end|> and more"])
def test_words_that_say_nothing_stand_for_an_image(monkeypatch, encoder, nonsense):
    control = written(monkeypatch, encoder, [nonsense], ["val-0"])
    assert torch.equal(control("val-0"), tokens(encoder, "an image"))


def test_weights_are_rounded_as_those_that_made_the_dataset(tiny_sources, monkeypatch):
    monkeypatch.setattr(
        "projector.evaluation.caption_control.read_samples", lambda *_args, **_named: iter(())
    )
    dataset = SimpleNamespace(settings={"quantize": "int8"}, storage=SimpleNamespace(root="here"))
    control = WrittenCaptions.from_pretrained(tiny_sources, dataset, "val", device="cpu", dtype=torch.float32)
    for model in (control._captioner.model, control._encoder.model):
        assert any(isinstance(module, Int8Linear) for module in model.modules())
