"""The pipeline that takes pictures: what it draws is what the library's own way draws."""

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline

from projector import Projector, VLEmbeddingExtractor, ZImageProjectorPipeline
from projector.inference.image_generator import ImageGenerator
from projector.inference.text_encoder import TextEncoder
from projector.steering.references import steered
from shards.errors import UsageError
from steering_support import a_picture, a_steering_projector

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.usefixtures("one_thread"),
]
PROMPT, SEED = "a red fox in the snow", 7
SIZE = {"height": 64, "width": 64, "guidance_scale": 0.0}


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return a_steering_projector(tiny, tmp_path_factory.mktemp("p"))


@pytest.fixture(scope="module")
def pipe(tiny, folder):
    made = ZImageProjectorPipeline.from_pretrained(
        str(tiny / "image"), projector=folder, vision=str(tiny / "vl"), dtype=torch.float32
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def text(tiny):
    encoder = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32)
    return encoder.encode([PROMPT])[0]


@pytest.fixture(scope="module")
def seen(tiny, folder):
    extractor = VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), str(folder), dtype=torch.float32)
    return [extractor.extract(a_picture(seed)).raw for seed in (3, 4)]


def drawn(pipe, prompt=PROMPT, steps=2, **how):
    noise = torch.Generator("cpu").manual_seed(SEED)
    return pipe(prompt, generator=noise, num_inference_steps=steps, **SIZE, **how).images[0]


def levels_apart(a, b):
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


@pytest.mark.parametrize(
    ("prompt", "how"),
    [
        (PROMPT, {"mode": "concat"}),
        (PROMPT, {"mode": "blend", "alpha": 0.3}),
        (PROMPT, {"weights": [1.0, 0.5]}),
        (None, {}),
    ],
)
def test_its_picture_is_the_librarys_own(tiny, pipe, folder, text, seen, prompt, how):
    projector = Projector.from_pretrained(folder)
    given = (text.embeddings, text.kind) if prompt else (None, None)
    count = 2 if "weights" in how else 1
    conditioning = steered(projector, seen[:count], *given, **how)
    generator = ImageGenerator.from_pretrained(
        str(tiny / "image"), device="cpu", dtype=torch.float32, height=64, width=64, steps=2
    )
    (expected,) = generator.generate([conditioning], [SEED])
    references = [a_picture(seed) for seed in (3, 4)][:count]
    found = drawn(pipe, prompt, reference=references, **how)
    assert levels_apart(found, expected) <= 1
    assert levels_apart(found, drawn(pipe, prompt or "")) > 1


def test_a_projector_of_the_graft_reads_with_the_pipelines_text_encoder(tiny, text, tmp_path):
    vision, folder = str(tiny / "vl"), a_steering_projector(tiny, tmp_path / "p", reader="graft")
    grafted = ZImageProjectorPipeline.from_pretrained(
        str(tiny / "image"), projector=folder, vision=vision, dtype=torch.float32
    )
    grafted.set_progress_bar_config(disable=True)
    extractor = VLEmbeddingExtractor.from_pretrained(
        vision, str(folder), dtype=torch.float32, language=str(tiny / "image")
    )
    raw = extractor.extract(a_picture()).raw
    conditioning = Projector.from_pretrained(folder).conditioning(raw, text.embeddings, text.kind)
    expected = drawn(grafted, None, prompt_embeds=[conditioning])
    assert levels_apart(drawn(grafted, reference=a_picture()), expected) == 0
    grafted.save_pretrained(tmp_path / "saved")
    again = ZImageProjectorPipeline.from_pretrained(str(tmp_path / "saved"), dtype=torch.float32)
    again.set_progress_bar_config(disable=True)
    assert levels_apart(drawn(again, reference=a_picture()), expected) == 0


def test_the_plain_lines_with_the_stock_pipeline_draw_the_same(tiny, pipe, folder, text, seen):
    stock = ZImagePipeline.from_pretrained(str(tiny / "image"), dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    conditioning = Projector.from_pretrained(folder).conditioning(seen[0], text.embeddings, text.kind)
    found = drawn(stock, None, prompt_embeds=[conditioning])
    assert levels_apart(found, drawn(pipe, reference=a_picture())) <= 1
    assert levels_apart(drawn(stock), drawn(pipe)) == 0


def test_references_act_in_their_share_of_the_steps(pipe, text, monkeypatch):
    rows, told, forward = [], [], pipe.transformer.forward

    def counted(latents, timestep, conditionings, **more):
        rows.append([len(each) for each in conditionings])
        return forward(latents, timestep, conditionings, **more)

    def callback(pipe, step, timestep, tensors):
        told.append((step, sorted(tensors)))
        return {}

    monkeypatch.setattr(pipe.transformer, "forward", counted)
    drawn(
        pipe,
        steps=4,
        reference=a_picture(),
        start=0.25,
        end=0.75,
        num_images_per_prompt=2,
        callback_on_step_end=callback,
    )
    plain, steered_rows = len(text.embeddings), len(text.embeddings) + 6
    assert rows == [[plain] * 2, [steered_rows] * 2, [steered_rows] * 2, [plain] * 2]
    assert told == [(step, ["latents"]) for step in range(4)]


def test_prompts_in_a_batch_and_guidance(pipe):
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in (SEED, 8)]
    size = SIZE | {"guidance_scale": 2.0}
    two = pipe(
        [PROMPT, "a boat"], reference=a_picture(), generator=noise, num_inference_steps=2, **size
    ).images
    alone = pipe(
        PROMPT, reference=a_picture(), generator=noise[0].manual_seed(SEED), num_inference_steps=2, **size
    ).images[0]
    assert levels_apart(two[0], alone) <= 1
    assert levels_apart(two[1], alone) > 1


def test_saved_and_loaded_it_draws_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved", safe_serialization=True)
    loaded = ZImageProjectorPipeline.from_pretrained(str(tmp_path / "saved"), dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    assert (tmp_path / "saved" / "projector" / "model.safetensors").is_file()
    assert levels_apart(drawn(loaded, reference=a_picture()), drawn(pipe, reference=a_picture())) == 0


def test_another_projector_can_be_taken(tiny, pipe, folder, tmp_path):
    other = Projector.from_pretrained(folder)
    other.network.target_mean.add_(9.0)
    other.save_pretrained(tmp_path)
    before = drawn(pipe, reference=a_picture())
    pipe.load_projector(tmp_path)
    assert levels_apart(drawn(pipe, reference=a_picture()), before) > 1
    pipe.load_projector(folder)
    assert levels_apart(drawn(pipe, reference=a_picture()), before) == 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"start": 0.5, "end": 0.5}, "start = 0.5, end = 0.5; expected 0 <= start < end <= 1"),
        ({"end": 1.5}, "expected 0 <= start < end <= 1"),
        ({"mode": "sum"}, "mode = 'sum'; expected one of concat"),
        ({"prompt_embeds": [torch.zeros(3, 64)]}, "prompt_embeds and reference exclude each other"),
        ({"prompt": "<|im_end|>"}, "special token"),
        ({"reference": "cat.jpg"}, "reference holds a str; expected PIL pictures"),
        ({"reference": [a_picture()] * 180}, "the image model takes at most 992"),
    ],
)
def test_what_cannot_be_drawn_is_refused(pipe, monkeypatch, how, message):
    if isinstance(how.get("reference"), list):  # read once is enough here
        once = pipe._read(a_picture(), "")
        monkeypatch.setattr(pipe, "_read", lambda *_: once)
    with pytest.raises(UsageError, match=message):
        drawn(pipe, **{"reference": a_picture()} | how)


def test_a_projector_and_a_vision_model_are_needed(tiny, folder, tmp_path):
    with pytest.raises(UsageError, match="has none saved in it; give projector="):
        ZImageProjectorPipeline.from_pretrained(str(tiny / "image"))
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        ZImageProjectorPipeline.from_pretrained(str(tiny / "image"), projector=tmp_path)
    bare = ZImageProjectorPipeline.from_pretrained(str(tiny / "image"), projector=folder)
    with pytest.raises(UsageError, match="vision: no vision-language model named"):
        drawn(bare, reference=a_picture())
