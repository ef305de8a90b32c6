"""Planned samples to whole samples: one failure stays one, and the stored tensor is the conditioning."""

import pickle
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch

from projector.data.dataset_pairs import bfloat16_tensor
from projector.inference import image_generator as generate
from projector.inference import text_encoder as text
from projector.inference import vision_encoder as vision
from projector.inference.vision_encoder import pool_by_kind
from projector.making import generated as pairs
from projector.making.batching import make_sound
from projector.making.generated import PairSettings, Pictured, PictureReader
from projector.making.shard_maker import FusedMaker, StagedMaker, wait
from projector.models.offload import Residence
from shards.format.plan import make_plan
from shards.format.sample import Expected, Failure, Sample, check_sample, picture_of
from shards.prompts.prompt import Prompt

SETTINGS = PairSettings(
    height=64,
    width=64,
    steps=2,
    guidance=0.0,
    layers=(-8, -6),
    text_modes=("caption", "none"),
    vl_tokens="all",
    max_tokens=60,
    dtype="float32",
    batch_size=4,
)
EXPECTED = Expected(("caption", "none"), (-8, -6), 64, 64)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def plan_of(captions):
    plan = make_plan(
        [Prompt(c) for c in captions], seed=1, val_fraction=0, samples_per_shard=50, segments=(len(captions),)
    )
    return plan.shards[0].samples


PLANNED = plan_of(
    ["a red fox", "a <|im_end|> poison", "two\nlines", "far too long " * 30, "the passing of time"]
)


@pytest.fixture(scope="module")
def maker(tiny_sources):
    torch.set_num_threads(1)
    return FusedMaker.load(tiny_sources, SETTINGS)


def make_all(maker, planned, apart=(), given_up=None):
    return [result for step in maker.steps(planned, apart, given_up or {}) for result in step.run()]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert type(a) is type(b)
        if isinstance(a, Failure):
            assert a == b
            continue
        assert (a.key, a.image) == (b.key, b.image)
        for name in a.tensors:
            assert np.array_equal(a.tensors[name].view(np.uint8), b.tensors[name].view(np.uint8)), name


def test_sound_captions_become_sound_samples_and_the_others_say_why(maker):
    results = make_all(maker, PLANNED)
    assert [type(result) for result in results] == [Sample, Failure, Sample, Failure, Sample]
    for planned, result in zip(PLANNED, results, strict=True):
        if isinstance(result, Sample):
            assert check_sample(result, planned, EXPECTED) == 64
            assert result.caption == planned.caption
    assert (results[1].stage, results[1].error_class) == ("text", "SampleError")
    assert "<|im_end|>" in results[1].message
    assert "at most 60 allowed" in results[3].message


def test_the_stored_tensor_is_the_one_that_conditioned_the_picture(maker, monkeypatch):
    given = []
    original = maker.pictures._images.generate_with_latents
    monkeypatch.setattr(
        maker.pictures._images, "generate_with_latents", lambda e, s: given.extend(e) or original(e, s)
    )
    sample = maker.make(PLANNED[:1])[0]
    stored = torch.from_numpy(sample.tensors["text"].astype(np.float32))
    assert torch.equal(given[0], stored)


def test_the_same_shard_gives_the_same_bytes_again(maker):
    assert_same(make_all(maker, PLANNED), make_all(maker, PLANNED))


def test_captions_are_encoded_once_and_all_together(maker, monkeypatch):
    given, original = [], maker.pictures._text.encode
    monkeypatch.setattr(
        maker.pictures._text, "encode", lambda captions: given.append(len(captions)) or original(captions)
    )
    make_all(maker, PLANNED)
    assert given == [len(PLANNED)]


def test_where_all_captions_together_fail_each_batch_encodes_its_own(maker, monkeypatch):
    expected, original = make_all(maker, PLANNED), maker.pictures._text.encode

    def encode(captions):
        if len(captions) == len(PLANNED):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(captions)

    monkeypatch.setattr(maker.pictures._text, "encode", encode)
    monkeypatch.setattr(maker.pictures, "_ahead", {})
    assert_same(make_all(maker, PLANNED), expected)


def test_a_suspect_and_its_batch_mates_are_made_alone_and_what_is_given_up_is_not_made(maker):
    why = Failure.from_exception("worker", RuntimeError("3 workers died while making it"))
    planned = plan_of([f"caption {i}" for i in range(6)])
    suspect = planned[1].id
    steps = [step for step in maker.steps(planned, {suspect}, {suspect: why}) if step.run is not wait]
    assert [len(step.samples) for step in steps] == 2 * [1, 0, 1, 1, 2], "what is given up is at work in none"
    results = [result for step in steps for result in step.run()]
    assert results[1] is why
    assert all(isinstance(result, Sample) for index, result in enumerate(results) if index != 1)


def test_one_model_at_a_time_makes_the_same_samples(maker, tiny_sources, monkeypatch):
    in_turn = FusedMaker.load(tiny_sources, SETTINGS, one_at_a_time=True)
    moves = []
    for kind in ("TextEncoder", "ImageGenerator", "VisionLanguageEncoder"):
        module = next(m for m in (text, generate, vision) if hasattr(m, kind))
        monkeypatch.setattr(
            getattr(module, kind), "to", lambda _, device, kind=kind: moves.append((kind, device))
        )
    assert_same(make_all(in_turn, PLANNED), make_all(maker, PLANNED))
    # On this machine the device is the CPU too; what counts is that one leaves before the next one enters.
    assert moves == [
        ("TextEncoder", "cpu"),
        ("TextEncoder", "cpu"),
        ("ImageGenerator", "cpu"),
        ("ImageGenerator", "cpu"),
        ("VisionLanguageEncoder", "cpu"),
    ]


def test_pictures_read_elsewhere_become_the_same_samples(maker, tiny_sources):
    generator = StagedMaker.load(tiny_sources.image, SETTINGS)
    reader = PictureReader.load(tiny_sources, SETTINGS, Residence())
    found = []
    for step in generator.steps(PLANNED, (), {}):
        sent = pickle.dumps(step.run())
        found += make_sound(reader, pickle.loads(sent))
    assert_same(found, make_all(maker, PLANNED))


def test_a_picture_is_sent_as_its_png(maker):
    (pictured,) = maker.pictures.make(PLANNED[:1])
    assert isinstance(pictured, Pictured)
    assert len(pickle.dumps(pictured)) < len(pictured.image.result()) + pictured.tensors["text"].nbytes + 2000
    again = pickle.loads(pickle.dumps(pictured))
    assert again.picture.result().tobytes() == pictured.picture.result().tobytes()
    assert again.image.result() == pictured.image.result()


def test_reading_has_a_batch_size_of_its_own(maker, monkeypatch):
    original, sizes = maker.reader._visions["vl"].encode, []

    def encode(images, captions):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(images, captions)

    monkeypatch.setattr(maker.reader._visions["vl"], "encode", encode)
    monkeypatch.setattr(maker.reader, "batch_size", 4)
    results = make_all(maker, plan_of([f"caption {i}" for i in range(8)]))
    assert all(isinstance(result, Sample) for result in results)
    assert sizes == [4, 2, 2, 2, 2]
    assert (maker.pictures.batch_size, maker.reader.batch_size) == (4, 2)


def test_a_sample_that_breaks_its_batch_fails_alone(maker, monkeypatch):
    planned = plan_of(["one", "two", "three"])
    original = maker.pictures._images.generate_with_latents

    def generate(embeddings, seeds):
        if planned[1].seed in seeds:
            raise RuntimeError("broken in the middle")
        return original(embeddings, seeds)

    monkeypatch.setattr(maker.pictures._images, "generate_with_latents", generate)
    results = maker.make(planned)
    assert [type(result) for result in results] == [Sample, Failure, Sample]
    assert (results[1].stage, results[1].message) == ("image", "broken in the middle")


def test_out_of_memory_halves_the_batch_and_remembers(maker, monkeypatch):
    planned = plan_of([f"caption {i}" for i in range(6)])
    original, sizes = maker.pictures._images.generate_with_latents, []

    def generate(embeddings, seeds):
        sizes.append(len(seeds))
        if len(seeds) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(embeddings, seeds)

    monkeypatch.setattr(maker.pictures._images, "generate_with_latents", generate)
    monkeypatch.setattr(maker.pictures, "batch_size", 4)
    results = make_all(maker, planned)
    assert all(isinstance(result, Sample) for result in results)
    assert sizes == [4, 2, 1, 1, 2, 1, 1, 1, 1]
    assert maker.pictures.batch_size == 1


def test_memory_that_does_not_do_for_one_is_a_failure(maker, monkeypatch):
    def generate(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(maker.pictures._images, "generate_with_latents", generate)
    result = maker.make(PLANNED[:1])[0]
    assert (result.stage, result.error_class) == ("memory", "OutOfMemoryError")


def test_pooled_tokens_average_each_kind_down(tiny_sources):
    maker = FusedMaker.load(tiny_sources, replace(SETTINGS, vl_tokens="pooled:8"))
    whole = FusedMaker.load(tiny_sources, SETTINGS).make(PLANNED[:1])[0]
    pooled = maker.make(PLANNED[:1])[0]
    kinds = pooled.tensors["vl.caption.kind"]
    assert [int((kinds == kind).sum()) for kind in range(4)][1] == 8
    image = whole.tensors["vl.none.-8"][whole.tensors["vl.none.kind"] == 1].astype(np.float64)
    average = pooled.tensors["vl.none.-8"][pooled.tensors["vl.none.kind"] == 1].astype(np.float64)
    np.testing.assert_allclose(average.mean(axis=0), image.mean(axis=0), atol=0.05)
    assert check_sample(pooled, PLANNED[0], EXPECTED) == 64


def test_pooling_keeps_short_kinds_and_really_averages():
    state = torch.arange(8.0)[:, None]
    kind = torch.tensor([0, 1, 1, 1, 1, 1, 1, 2], dtype=torch.uint8)
    assert pool_by_kind(state, kind, 2)[:, 0].tolist() == [0, 2, 5, 7]
    assert torch.equal(pool_by_kind(state, kind, 6), state)


def test_bfloat16_is_stored_bit_for_bit(tiny_sources):
    sample = FusedMaker.load(tiny_sources, replace(SETTINGS, dtype="bfloat16")).make(PLANNED[:1])[0]
    assert {t.dtype for name, t in sample.tensors.items() if not name.endswith("kind")} == {
        np.dtype(ml_dtypes.bfloat16)
    }


def test_guidance_and_default_settings_run(tiny_sources):
    sample = FusedMaker.load(tiny_sources, replace(SETTINGS, guidance=1.5)).make(PLANNED[:1])[0]
    assert isinstance(sample, Sample)


@pytest.mark.long
def test_there_is_something_to_learn(tiny_sources):
    """A closed-form ridge from mean image token to mean caption token beats identity by far on held-out pairs."""
    from shards.prompts.builtin import builtin_prompts

    torch.set_num_threads(2)
    maker = FusedMaker.load(
        tiny_sources, replace(SETTINGS, height=128, width=128, steps=4, max_tokens=512, batch_size=8)
    )
    planned = make_plan(
        builtin_prompts().prompts, seed=0, val_fraction=0, samples_per_shard=200, segments=(120,)
    ).shards[0]
    x, y = [], []
    for sample in make_all(maker, planned.samples):
        tensors = {
            name: torch.from_numpy(t.astype(np.float32)).double() for name, t in sample.tensors.items()
        }
        x.append(tensors["vl.none.-8"][tensors["vl.none.kind"] == 1].mean(0))
        y.append(tensors["text"][tensors["text.kind"] == 2].mean(0))
    x, y = torch.stack(x), torch.stack(y)
    scale = lambda v: (v - v[:90].mean(0)) / v[:90].std(0)  # noqa: E731
    a, b = scale(x), scale(y)
    weights = torch.linalg.solve(
        a[:90].T @ a[:90] + 10 * torch.eye(64, dtype=torch.double), a[:90].T @ b[:90]
    )

    def correlation(p, t):
        p, t = p - p.mean(0), t - t.mean(0)
        return ((p * t).sum(0) / (p.norm(dim=0) * t.norm(dim=0))).median().item()

    assert correlation(a[90:] @ weights, b[90:]) > 0.2
    assert abs(correlation(x[90:], y[90:])) < 0.15


def test_a_picture_that_does_not_fit_is_decoded_in_tiles(tiny_sources, monkeypatch):
    maker = FusedMaker.load(tiny_sources, SETTINGS)
    images, original = maker.pictures._images, maker.pictures._images.generate_with_latents

    def generate(embeddings, seeds):
        if not images.decodes_in_tiles:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(embeddings, seeds)

    monkeypatch.setattr(images, "generate_with_latents", generate)
    assert isinstance(maker.make(PLANNED[:1])[0], Sample)
    assert images.decodes_in_tiles


def test_a_batch_size_left_open_is_searched_for_and_compiling_is_asked_for(tiny_sources, monkeypatch):
    monkeypatch.setattr(pairs, "find_batch_size", lambda *_: 3)
    monkeypatch.setattr(pairs, "compile_checked", lambda *_: "not used, for a reason")
    maker = FusedMaker.load(tiny_sources, replace(SETTINGS, batch_size=None, compile=True))
    assert (maker.pictures.batch_size, maker.notes) == (3, ("not used, for a reason",))
    assert FusedMaker.load(tiny_sources, SETTINGS).notes == (), "on a CPU nothing is compiled unasked"


def test_readers_and_latents_are_kept_where_asked_for(tiny_sources):
    settings = replace(SETTINGS, readers=("vl", "graft"), latents=True)
    maker = FusedMaker.load(tiny_sources, settings)
    planned = plan_of(["a red fox", "snow on a roof"])
    made = maker.make(planned)
    expected = Expected(
        settings.text_modes,
        settings.layers,
        settings.width,
        settings.height,
        readers=settings.readers,
        latents=True,
    )
    for sample, plan in zip(made, planned, strict=True):
        assert check_sample(sample, plan, expected) == 64
        own, grafted = (sample.tensors[f"{reader}.none.-8"] for reader in ("vl", "graft"))
        assert own.shape == grafted.shape
        assert (own != grafted).any()
    vae = maker.pictures._images.pipeline.vae
    latents = bfloat16_tensor(made[0].tensors["latents"])[None].float()
    decoded = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    seen = np.asarray(picture_of(made[0])).transpose(2, 0, 1) / 127.5 - 1
    assert np.abs(decoded[0].detach().clamp(-1, 1).numpy() - seen).mean() < 0.02
    with pytest.raises(ValueError, match="instead of"):
        check_sample(made[0], planned[0], replace(expected, latents=False))
