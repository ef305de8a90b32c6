"""The extractor: right tokens of the right layer, and refusals that say why."""

import io
import json

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from projector import Projector, VLEmbeddingExtractor, blend_interpolate
from projector.comparison.cases import user_pictures
from projector.data.pairs import Pair, in_memory
from projector.inference.vision_encoder import VisionLanguageEncoder
from projector.options import TrainOptions
from projector.training.loop import train
from shards.errors import UsageError
from shards.format.sample import KIND_IMAGE, as_png
from shards.sources.picture import kept

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 255, (256, 256, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def raw(tiny):
    return VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), dtype=torch.float32)


def a_projector(folder, *, width=64, tokens="image", text_mode="caption", layer=-8):
    random = torch.Generator().manual_seed(0)
    pairs = [
        Pair(f"k{i}", torch.randn(6, width, generator=random), torch.tensor([1, 1, 1, 2, 2, 2], dtype=torch.uint8),
             torch.randn(4, width, generator=random))
        for i in range(8)
    ]  # fmt: skip
    only = [pair.only(tokens) for pair in pairs]
    source = in_memory(only, layer=layer, text_mode=text_mode, tokens=tokens)
    options = TrainOptions(
        output=str(folder),
        objective="embedding",
        arch="linear",
        epochs=1,
        tokens=tokens,
        text_mode=text_mode,
        layer=layer,
        batch_size=4,
    )
    train(options, source, source, device="cpu")
    return str(folder)


@pytest.mark.parametrize("layer", [-2, -6, -8])
def test_states_are_the_encoders(tiny, raw, layer):
    encoder = VisionLanguageEncoder.from_pretrained(
        str(tiny / "vl"), device="cpu", dtype=torch.float32, layers=[layer], text_modes=["caption"]
    )
    expected = encoder.encode([PICTURE], ["a red fox"])[0]
    found = raw.extract(PICTURE, text="a red fox", hidden_layer=layer)
    keep = (expected.kind["caption"] == 1) | (expected.kind["caption"] == 2)
    torch.testing.assert_close(found.embeddings, expected.states["caption"][layer][keep])
    assert found.kind.tolist() == expected.kind["caption"][keep].tolist()
    assert (found.text_mode, found.tokens, found.projected, found.hidden_layer) == (
        "caption",
        "all",
        False,
        layer,
    )
    assert found.original_std == pytest.approx(float(found.embeddings.std()))


def test_tokens_can_be_chosen(raw):
    image = raw.extract(PICTURE, text="a red fox", image_tokens_only=True)
    text = raw.extract(PICTURE, text="a red fox", text_tokens_only=True)
    both = raw.extract(PICTURE, text="a red fox")
    assert (image.num_tokens, image.num_tokens + text.num_tokens) == (64, both.num_tokens)
    assert raw.extract(PICTURE).text_mode == "none"


def turned_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    PICTURE.save(buffer, format="JPEG", quality=100, exif=exif)
    return buffer.getvalue()


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def clear_corner():
    clear = PICTURE.convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 128, 128))
    return clear


@pytest.mark.parametrize(
    "data",
    [
        turned_jpeg(),
        png(clear_corner()),
        png(Image.fromarray(np.arange(256 * 256, dtype=np.uint16).reshape(256, 256))),
        png(PICTURE.convert("P")),
    ],
    ids=["turned", "transparent", "16 bits", "palette"],
)
def test_a_picture_is_read_as_import_and_compare_read_it(raw, tmp_path, data):
    (tmp_path / "given.png").write_bytes(data)
    (compared,) = user_pictures([str(tmp_path / "given.png")])
    imported = kept(data, 1024).pixels
    assert imported.tobytes() == compared.tobytes()
    with Image.open(io.BytesIO(data)) as given:
        found = raw.extract(given).embeddings
    torch.testing.assert_close(found, raw.extract(imported).embeddings, rtol=0, atol=0)


def test_image_tokens_do_not_see_the_text(raw):
    torch.testing.assert_close(
        raw.extract(PICTURE, text="a red fox", image_tokens_only=True).embeddings,
        raw.extract(PICTURE, image_tokens_only=True).embeddings,
    )


def test_scaling_to_text(raw):
    scaled, plain = raw.extract(PICTURE, scale_to_text=True), raw.extract(PICTURE)
    assert scaled.scaled_std == pytest.approx(61.0, rel=1e-4)
    assert scaled.scale_factor == pytest.approx(61.0 / plain.original_std, rel=1e-4)
    assert plain.scale_factor == 1.0


def test_a_projector_is_applied_to_what_it_was_trained_on(tiny, raw, tmp_path):
    path = a_projector(tmp_path / "p")
    extractor = VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), path, dtype=torch.float32)
    found = extractor.extract(PICTURE, text="a red fox", hidden_layer=-8)
    expected = Projector.from_pretrained(path)(raw.extract(PICTURE, image_tokens_only=True).embeddings)
    torch.testing.assert_close(found.embeddings, expected)
    assert (found.projected, found.tokens) == (True, "image")
    assert set(found.kind.tolist()) == {KIND_IMAGE}
    for spread, numbers in ((found.before, found.raw), (found.after, found.embeddings)):
        expected = (numbers.mean(), numbers.std(), numbers.min(), numbers.max())
        assert (spread.mean, spread.std, spread.min, spread.max) == pytest.approx(tuple(map(float, expected)))
    assert found.before != found.after
    blended = blend_interpolate(found.embeddings, torch.zeros(9, 64), alpha=0.5)
    assert blended.shape == (9, 64)


@pytest.mark.parametrize(
    ("projector", "call", "message"),
    [
        ({}, {"hidden_layer": -6}, "hidden_layer = -6: allowed are -8"),
        ({}, {"text": "x", "text_tokens_only": True}, "tokens 'text': the projector was trained on 'image'"),
        ({"tokens": "all"}, {}, "text mode 'none': the projector was trained on 'caption'; pass a text"),
        (None, {"text_tokens_only": True}, "needs a text"),
        (None, {"text_tokens_only": True, "image_tokens_only": True}, "exclude each other"),
        (None, {"hidden_layer": -40}, "hidden_layer = -40"),
        (None, {"text": "<|image_pad|>"}, "special token"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, tmp_path, projector, call, message):
    path = a_projector(tmp_path / "p", **projector) if projector is not None else None
    extractor = VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), path, dtype=torch.float32)
    with pytest.raises(UsageError, match=message):
        extractor.extract(PICTURE, **call)


def test_projectors_of_other_models_are_refused_at_loading(tiny, tmp_path):
    with pytest.raises(UsageError, match="its width is 32, the VL model's is 64"):
        VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), a_projector(tmp_path / "a", width=32))
    with pytest.raises(UsageError, match="trained on layer -20, the VL model has 12 blocks"):
        VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), a_projector(tmp_path / "b", layer=-20))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"hidden_size": 64, "text_config": [64]}')
    with pytest.raises(UsageError, match="no text_config with hidden_size"):
        VLEmbeddingExtractor.from_pretrained(str(tmp_path / "text"))
    with pytest.raises(UsageError, match=r"model_path = .*no such folder"):
        VLEmbeddingExtractor.from_pretrained(str(tmp_path / "none"))


def test_a_hub_id_is_fetched_as_everywhere_else(tiny, raw, monkeypatch):
    asked = []

    def fetched(name, *, revision, **_):
        asked.append((name, revision))
        return str(tiny / "vl")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    extractor = VLEmbeddingExtractor.from_pretrained("org/model@v1", dtype=torch.float32)
    assert asked == [("org/model", "v1")]
    torch.testing.assert_close(extractor.extract(PICTURE).raw, raw.extract(PICTURE).raw)


def test_a_projector_of_pooled_tokens_is_given_pooled_tokens(tiny, tmp_path):
    path = a_projector(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["dataset"]["vl_tokens"] = "pooled:5"
    (tmp_path / "config.json").write_text(json.dumps(config))
    extractor = VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), path, dtype=torch.float32)
    raw = VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), dtype=torch.float32)
    found = extractor.extract(PICTURE)
    states = raw.extract(PICTURE, hidden_layer=-8, image_tokens_only=True).embeddings
    averages = torch.nn.functional.adaptive_avg_pool1d(states.T[None], 5)[0].T
    torch.testing.assert_close(found.raw, averages)
    torch.testing.assert_close(
        found.embeddings, Projector.from_pretrained(path)(averages), rtol=1e-4, atol=1e-4
    )


def test_weights_are_rounded_as_those_that_made_the_pairs(tiny, tmp_path):
    path = a_projector(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["dataset"]["quantize"] = "int8"
    (tmp_path / "config.json").write_text(json.dumps(config))
    rounded, full = (
        VisionLanguageEncoder.from_pretrained(
            str(tiny / "vl"),
            device="cpu",
            dtype=torch.float32,
            layers=[-8],
            text_modes=["none"],
            quantize=quantize,
        ).encode([PICTURE], [""])[0]
        for quantize in ("int8", "none")
    )
    keep = rounded.kind["none"] == KIND_IMAGE
    extractor = VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), path, dtype=torch.float32)
    found = extractor.extract(PICTURE).raw
    torch.testing.assert_close(found, rounded.states["none"][-8][keep])
    assert not torch.allclose(found, full.states["none"][-8][keep], rtol=1e-3)
    config["dataset"]["quantize"] = "int4"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"dataset\.quantize is 'int4', expected one of none, int8"):
        Projector.from_pretrained(path)


def test_attention_sinks_do_not_reach_a_projector(tiny, tmp_path):
    path = a_projector(tmp_path)
    raw = VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), dtype=torch.float32)
    states = raw.extract(PICTURE, hidden_layer=-8, image_tokens_only=True).embeddings
    rms = states.square().mean(-1).sqrt()
    config = json.loads((tmp_path / "config.json").read_text())
    config["template"] = {"vl_limit": float(rms.sort().values[-3])}
    (tmp_path / "config.json").write_text(json.dumps(config))
    extractor = VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), path, dtype=torch.float32)
    assert extractor.extract(PICTURE).num_tokens == len(states) - 2


@pytest.mark.parametrize(
    ("size", "tokens"),
    [({"height": 320, "width": 320}, 11 * 9), ({"max_side": 512}, 16 * 12), ({}, 32 * 24)],
)
def test_a_large_picture_is_read_at_the_size_of_the_training(tiny, tmp_path, size, tokens):
    path = a_projector(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["dataset"]["picture"] = size
    (tmp_path / "config.json").write_text(json.dumps(config))
    extractor = VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), path, dtype=torch.float32)
    large = PICTURE.resize((4000, 3000))
    assert extractor.extract(large).num_tokens == tokens
    (tmp_path / "large.png").write_bytes(as_png(large))
    (reference,) = user_pictures([str(tmp_path / "large.png")], Projector.from_pretrained(path).picture_size)
    torch.testing.assert_close(extractor.extract(reference).raw, extractor.extract(large).raw)
    config["dataset"]["picture"] = {"height": -64, "width": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"dataset.picture is .* expected height and width, or max_side"):
        Projector.from_pretrained(path)
