"""The encoders and the generator against the libraries' own full paths."""

import numpy as np
import pytest
import torch
from PIL import Image

from projector.inference.image_generator import ImageGenerator
from projector.inference.text_encoder import SampleError, TextEncoder
from projector.inference.vision_encoder import VisionLanguageEncoder
from shards.prompts.builtin import builtin_prompts

CAPTIONS = [
    "a red fox",
    builtin_prompts().prompts[3].caption,
    'émoji 🦊, עברית, two\nlines, <b>markup</b> & "quotes"',
    "user\nassistant\n",
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
LAYERS = (-2, -6, -8)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def relative(found, expected):
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm())


def pipeline_of(tiny, dtype):
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(str(tiny / "image"), dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


def test_text_equals_encode_prompt(tiny, dtype):
    encoder = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=dtype)
    with torch.no_grad():
        expected, _ = pipeline_of(tiny, dtype).encode_prompt(
            list(CAPTIONS), do_classifier_free_guidance=False
        )
    for found, reference in zip(encoder.encode(CAPTIONS), expected, strict=True):
        assert found.embeddings.shape == reference.shape
        assert relative(found.embeddings, reference) < TOLERANCE[dtype]


def test_text_skips_what_is_not_used(tiny):
    encoder = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32)
    assert len(encoder.model.layers) == 11  # of 12
    assert not hasattr(encoder.model, "lm_head")


def test_image_equals_the_pipeline_with_the_same_generator(tiny, dtype):
    pipeline = pipeline_of(tiny, dtype)
    expected = pipeline(
        prompt=list(CAPTIONS[:2]),
        height=64,
        width=96,
        num_inference_steps=9,
        guidance_scale=0.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
    ).images
    encoder = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=dtype)
    generator = ImageGenerator.from_pretrained(
        str(tiny / "image"), device="cpu", dtype=dtype, height=64, width=96, steps=9, guidance=0.0
    )
    found = generator.generate([item.embeddings for item in encoder.encode(CAPTIONS[:2])], [5, 6])
    for image, reference in zip(found, expected, strict=True):
        assert image.size == (96, 64)
        difference = np.abs(np.asarray(image, np.float64) - np.asarray(reference, np.float64))
        if dtype == torch.float32:  # 1e-5 of 255 levels is no level; rounding at a border may turn a few
            assert difference.max() <= 1
            assert (difference > 0).mean() < 1e-3
        else:
            assert np.linalg.norm(difference) < TOLERANCE[dtype] * np.linalg.norm(
                np.asarray(reference, np.float64)
            )


def test_guidance_uses_the_empty_prompt(tiny):
    expected = pipeline_of(tiny, torch.float32)(
        prompt=CAPTIONS[0],
        negative_prompt="",
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    encoder = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32)
    conditioning, negative = (item.embeddings for item in encoder.encode([CAPTIONS[0], ""]))
    generator = ImageGenerator.from_pretrained(
        str(tiny / "image"), device="cpu", dtype=torch.float32, height=64, width=64, steps=3, guidance=2.0,
        negative=negative,
    )  # fmt: skip
    found = generator.generate([conditioning], [5])[0]
    assert np.abs(np.asarray(found, float) - np.asarray(expected, float)).max() <= 1
    with pytest.raises(ValueError, match="needs the conditioning of the empty prompt"):
        ImageGenerator(generator.pipeline, height=64, width=64, guidance=2.0)


def pictures(count, size=(128, 96)):
    random = np.random.default_rng(0)
    small = random.integers(0, 255, (count, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(picture).resize(size) for picture in small]


def full_forward(tiny, dtype, image, caption, mode):
    """One picture through the whole model, inputs put together from the library's own parts."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

    path = str(tiny / "vl")
    model = Qwen3VLForConditionalGeneration.from_pretrained(path, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    content = [{"type": "image"}] + ([{"type": "text", "text": caption}] if mode == "caption" else [])
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    pixels = Qwen2VLImageProcessorPil.from_pretrained(path)(images=[image], return_tensors="pt")
    count = int(pixels["image_grid_thw"].prod()) // 4
    text = text.replace("<|image_pad|>", "<|image_pad|>" * count)
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        output = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels["pixel_values"].to(dtype),
            image_grid_thw=pixels["image_grid_thw"],
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            output_hidden_states=True,
        )
    return [states[0] for states in output.hidden_states]


@pytest.mark.parametrize("mode", ["caption", "none"])
def test_vl_equals_the_full_forward(tiny, dtype, mode):
    images = pictures(2)
    encoder = VisionLanguageEncoder.from_pretrained(
        str(tiny / "vl"), device="cpu", dtype=dtype, layers=LAYERS, text_modes=["caption", "none"]
    )
    found = encoder.encode(images, CAPTIONS[1:3])
    for encoding, image, caption in zip(found, images, CAPTIONS[1:3], strict=True):
        expected = full_forward(tiny, dtype, image, caption, mode)
        for layer in LAYERS:
            assert encoding.states[mode][layer].shape == expected[layer].shape
            assert relative(encoding.states[mode][layer], expected[layer]) < TOLERANCE[dtype]


def test_vl_after_the_final_norm(tiny):
    image = pictures(1)
    encoder = VisionLanguageEncoder.from_pretrained(
        str(tiny / "vl"), device="cpu", dtype=torch.float32, layers=[-1, -3], text_modes=["none"]
    )
    states = encoder.encode(image, [""])[0].states["none"]
    expected = full_forward(tiny, torch.float32, image[0], "", "none")
    assert relative(states[-1], expected[-1]) < 1e-5
    assert relative(states[-3], expected[-3]) < 1e-5


def test_vl_computes_no_block_after_the_last_wanted_state(tiny):
    encoder = VisionLanguageEncoder.from_pretrained(
        str(tiny / "vl"), device="cpu", dtype=torch.float32, layers=[-8], text_modes=["caption", "none"]
    )
    assert len(encoder.model.language_model.layers) == 5  # hidden_states[-8] of 13 is the output of block 5
    runs = []
    encoder.model.visual.register_forward_hook(lambda *_: runs.append("vision"))
    encoder.model.language_model.register_forward_hook(lambda *_: runs.append("text"))
    encoder.encode(pictures(2), CAPTIONS[:2])
    assert runs == ["vision", "text"]


@pytest.mark.parametrize("layers", [[-13], [0], [-8, -40]])
def test_layers_that_the_model_has_not(tiny, layers):
    with pytest.raises(ValueError, match="of a model with 12 blocks; allowed are -12 to -1"):
        VisionLanguageEncoder.from_pretrained(
            str(tiny / "vl"), device="cpu", dtype=torch.float32, layers=layers, text_modes=["none"]
        )


def test_vl_inputs_equal_the_processors(tiny):
    try:
        from transformers import Qwen3VLProcessor

        processor = Qwen3VLProcessor.from_pretrained(str(tiny / "vl"))
    except (ImportError, OSError, ValueError) as error:
        pytest.skip(f"Qwen3VLProcessor cannot be built here: {type(error).__name__}")
    encoder = VisionLanguageEncoder.from_pretrained(
        str(tiny / "vl"), device="cpu", dtype=torch.float32, layers=[-8], text_modes=["caption"]
    )
    image = pictures(1, size=(256, 256))[0]
    content = [{"type": "image", "image": image}, {"type": "text", "text": CAPTIONS[1]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, add_generation_prompt=True, return_dict=True
    )
    tokens = encoder._tokenize("caption", CAPTIONS[1], 64)
    assert tokens.ids == inputs["input_ids"][0]


def test_kinds_tell_template_image_caption_and_markers_apart(tiny):
    encoder = VisionLanguageEncoder.from_pretrained(
        str(tiny / "vl"), device="cpu", dtype=torch.float32, layers=[-8], text_modes=["caption", "none"]
    )
    caption = "a red fox"
    encoding = encoder.encode(pictures(1, size=(288, 256)), [caption])[0]
    kinds = encoding.kind["caption"].tolist()
    assert kinds.count(1) == 288 * 256 // 32**2 == 72
    assert kinds.count(3) == 2
    assert kinds.count(2) == len(encoder.tokenizer(caption).input_ids)
    assert kinds.index(3) == kinds.index(1) - 1  # the start marker stands right before the picture
    assert encoding.kind["none"].tolist().count(2) == 0
    text = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32)
    of_text = text.encode([caption])[0].kind.tolist()
    assert of_text.count(2) == kinds.count(2)
    assert of_text[0] == 0


@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>", "<|vision_start|>"])
def test_captions_with_special_tokens_fail_alone(tiny, token):
    captions = ["fine", f"evil {token} caption", "fine too"]
    text = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32)
    results = text.encode(captions)
    assert [isinstance(result, SampleError) for result in results] == [False, True, False]
    assert token in str(results[1])
    vision = VisionLanguageEncoder.from_pretrained(
        str(tiny / "vl"), device="cpu", dtype=torch.float32, layers=[-8], text_modes=["caption"]
    )
    results = vision.encode(pictures(3), captions)
    assert [isinstance(result, SampleError) for result in results] == [False, True, False]


def test_a_caption_over_the_limit_is_an_error_not_cut(tiny):
    text = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32, max_tokens=40)
    results = text.encode(["short", "long " * 100])
    assert not isinstance(results[0], SampleError)
    assert "at most 40 allowed" in str(results[1])


def test_captions_are_left_untouched(tiny):
    captions = list(CAPTIONS)
    TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32).encode(captions)
    assert captions == CAPTIONS


def test_a_picture_depends_on_its_conditioning_and_seed_alone(tiny):
    text = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32)
    generator = ImageGenerator.from_pretrained(
        str(tiny / "image"), device="cpu", dtype=torch.float32, height=64, width=64
    )
    first, second = (item.embeddings for item in text.encode(["a red fox", "the passing of time"]))

    def pixels(conditioning, seeds, index=0):
        return np.asarray(generator.generate(conditioning, seeds)[index], float)

    alone = pixels([first], [1])
    np.testing.assert_array_equal(alone, pixels([first], [1]))
    assert (
        np.abs(alone - pixels([second, first], [9, 1], index=1)).max() <= 2
    )  # batch mates move rounding only
    of_prompt = np.abs(alone - pixels([second], [1])).mean()
    of_seed = np.abs(alone - pixels([first], [2])).mean()
    assert of_prompt > 10
    assert of_prompt > of_seed > 0
