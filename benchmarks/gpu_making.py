"""Steps of `gpu.py` that make pairs: parity with the libraries, speed against the guide's loop."""

import copy
import statistics
import time
from collections import Counter
from contextlib import nullcontext
from typing import Any

import engine
import numpy as np
import torch
from gpu_setting import ONE, Setting
from PIL import Image
from planned import planned_shard
from timeline import Clock
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from projector.inference.image_generator import ImageGenerator
from projector.inference.text_encoder import TextEncoding
from projector.inference.vision_encoder import VisionEncoding

LAYERS = [-2, -6, -8]
ALL = ([-8, -6, -2], ["caption", "none"])
CAPTION_ROWS = 96
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float64."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return round(float((found - expected).norm() / expected.norm()), 6)


@torch.inference_mode()
def parity(setting: Setting) -> dict[str, Any]:
    """Our text, reading and picture paths against the libraries' own whole models, same weights and device."""
    models = setting.models
    text, images, vision = models.ours(setting.side, setting.side, setting.steps, LAYERS, ["caption", "none"])
    captions = [sample.caption for sample in planned_shard(6).samples]
    expected, _ = models.pipeline.encode_prompt(list(captions), do_classifier_free_guidance=False)
    encodings = [item for item in text.encode(captions) if isinstance(item, TextEncoding)]
    found: dict[str, Any] = {
        "text": max(
            relative(mine.embeddings, theirs) for mine, theirs in zip(encodings, expected, strict=True)
        )
    }
    made = images.generate([item.embeddings for item in encodings[:1]], [7])[0]
    theirs = models.pipeline(
        prompt=list(captions[:1]),
        height=setting.side,
        width=setting.side,
        num_inference_steps=setting.steps,
        guidance_scale=0.0,
        generator=[torch.Generator("cpu").manual_seed(7)],
    ).images[0]
    levels = np.abs(np.asarray(made, np.float64) - np.asarray(theirs, np.float64))
    found["picture"] = {"mean_levels_of_255": round(float(levels.mean()), 4), "most": float(levels.max())}
    found["picture"] |= {
        "norm": round(float(np.linalg.norm(levels) / np.linalg.norm(np.asarray(theirs, float))), 6)
    }
    pictures = _pictures(setting, 2)
    reference = copy.deepcopy(models.vl).float()
    encoded = [item for item in vision.encode(pictures, captions[:2]) if isinstance(item, VisionEncoding)]
    for mode in ("caption", "none"):
        for index, item in enumerate(encoded):
            inputs = engine.read_inputs(models, pictures[index], captions[index] if mode == "caption" else "")
            states = models.vl(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states
            inputs["pixel_values"] = inputs["pixel_values"].float()
            exact = reference(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states
            for layer in LAYERS:
                mine, theirs = item.states[mode][layer], states[layer][0]
                errors = {
                    "ours to the library": relative(mine, theirs),
                    "ours to float32": relative(mine, exact[layer][0]),
                    "the library to float32": relative(theirs, exact[layer][0]),
                }
                row = found.setdefault(f"{mode}, {layer}", dict.fromkeys(errors, 0.0))
                row |= {name: max(error, row[name]) for name, error in errors.items()}
    return found


def _pictures(setting: Setting, count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    small = random.integers(0, 255, (count, 16, 16, 3), dtype=np.uint8)
    return [
        Image.fromarray(each).resize((setting.side, setting.side), Image.Resampling.BICUBIC) for each in small
    ]


def throughput(setting: Setting) -> dict[str, Any]:
    """Images a second of the guide's loop and of ours, in turns; the first turn is short and not counted."""
    samples = 2 * setting.batch_size
    found: dict[str, Any] = {"compile": setting.compile_note}
    for title, (layers, modes), turns in (
        ("one layer", ONE, setting.turns),
        ("three layers, two modes", ALL, setting.turns - 1),
    ):
        if not turns:
            continue
        maker = engine.maker_of(setting.models, setting.words(samples), layers, modes, setting.images)
        seconds: dict[str, list[float]] = {"guide": [], "ours": []}
        stages: dict[str, dict[str, float]] = {}
        for turn in range(turns + 1):
            count = samples if turn else 1
            words, shard = setting.words(count), planned_shard(count)
            for name in ("guide", "ours"):
                clock = Clock(setting.device)
                if name == "guide":
                    engine.guide(setting.models, shard, words, layers, modes, clock)
                else:
                    engine.ours(maker, shard, words, layers, modes, clock)
                if turn:
                    seconds[name].append(clock.seconds("whole"))
                    stages[name] = {
                        stage: round(clock.seconds(stage), 3) for stage in ("text", "image", "vl", "write")
                    }
        middle = {name: statistics.median(times) for name, times in seconds.items()}
        found[title] = {
            "samples": samples,
            "seconds": {name: [round(each, 2) for each in times] for name, times in seconds.items()},
            "images_per_second": {name: round(samples / each, 3) for name, each in middle.items()},
            "times_faster": round(middle["guide"] / middle["ours"], 3),
            "seconds_by_stage": stages,
        }
    return found


def utilisation(setting: Setting) -> dict[str, Any]:
    """Share of the measured matrix-product peak that a denoising step reaches, by batch size."""
    with FlopCounterMode(display=False) as counter:
        denoise(setting.models.ours(setting.side, setting.side, setting.steps, *ONE)[1], [CAPTION_ROWS])
    flops, images = counter.get_total_flops(), setting.images
    found: dict[str, Any] = {
        "peak_teraflops": round(setting.peak / 1e12, 1),
        "teraflop_a_step": round(flops / 1e12, 2),
        "compile": setting.compile_note,
    }
    for size in (1, 2, 4, 8):
        spent = setting.median(lambda size=size: denoise(images, [CAPTION_ROWS] * size))
        found[f"batch {size}"] = {
            "milliseconds": spent,
            "share_of_peak": round(size * flops / (spent / 1e3) / setting.peak, 4),
        }
    found["best"] = max(value["share_of_peak"] for value in found.values() if isinstance(value, dict))
    return found


@torch.inference_mode()
def denoise(images: ImageGenerator, rows: list[int]) -> Any:
    """One call of the transformer, a picture for each number of caption rows."""
    transformer = images.pipeline.transformer
    where = {"device": transformer.device, "dtype": transformer.dtype}
    latents = torch.randn(len(rows), 16, 1, images.height // 8, images.width // 8, **where)
    captions = [torch.randn(count, transformer.config.cap_feat_dim, **where) for count in rows]
    time_left = torch.full((len(rows),), 0.5, **where)
    return transformer(list(latents.unbind(0)), time_left, captions, return_dict=False)[0]


def busy_share(setting: Setting) -> dict[str, Any]:
    """Share of a shard's wall time in which the device ran a kernel, and the kernels that took most of it."""
    if not setting.on_gpu:
        return {"share": "needs a GPU"}
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    samples = 2 * setting.batch_size
    words, shard = setting.words(samples), planned_shard(samples)
    maker = engine.maker_of(setting.models, words, *ONE, setting.images)
    engine.ours(maker, shard, words, *ONE, Unclocked())
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        begun = time.perf_counter()
        engine.ours(maker, shard, words, *ONE, Unclocked())
        wall = time.perf_counter() - begun
    kernels = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    by_name: Counter[str] = Counter()
    for event in kernels:
        by_name[event.name[:90]] += event.time_range.elapsed_us()
    gaps, end = [], spans[0][0]
    for start, stop in spans:
        gaps.append(start - end)
        end = max(end, stop)
    busy = (spans[-1][1] - spans[0][0] - sum(gap for gap in gaps if gap > 0)) / 1e6
    return {
        "share": round(busy / wall, 4),
        "wall_seconds": round(wall, 3),
        "longest_gaps_seconds": [round(gap / 1e6, 3) for gap in sorted(gaps, reverse=True)[:8]],
        "kernels": len(kernels),
        "seconds_by_kernel": {name: round(spent / 1e6, 3) for name, spent in by_name.most_common(25)},
    }


class Unclocked(Clock):
    """Takes no time and waits for nothing, so that the device is seen as it works in a build."""

    def __init__(self) -> None:
        super().__init__("cpu")


def attention_masks(setting: Setting) -> dict[str, Any]:
    """Milliseconds of one attention of the transformer, with and without a mask, by kernel."""
    config = setting.models.pipeline.transformer.config
    heads, size = config.n_heads, config.dim // config.n_heads
    length = (setting.side // 16) ** 2 + CAPTION_ROWS
    q, k, v = (
        torch.randn(setting.batch_size, heads, length, size, device=setting.device, dtype=setting.dtype)
        for _ in range(3)
    )
    mask = torch.ones(setting.batch_size, 1, 1, length, dtype=torch.bool, device=setting.device)
    mask[0, ..., -32:] = False
    kernels: dict[str, Any] = {}
    for backend in (None, *BACKENDS):
        for name, given in (("no mask", None), ("mask", mask)):
            title = f"{name}, {'chosen by torch' if backend is None else backend.name}"
            try:
                with nullcontext() if backend is None else sdpa_kernel(backend):
                    kernels[title] = setting.median(
                        lambda given=given: F.scaled_dot_product_attention(q, k, v, given), calls=10
                    )
            except RuntimeError:
                kernels[title] = "not available"
    return kernels


def compiled_blocks(setting: Setting) -> dict[str, Any]:
    """A denoising step without and with compiled blocks; captions of one length or of two."""
    alike = [CAPTION_ROWS] * setting.batch_size
    shapes = {"captions alike": alike, "captions differ": [CAPTION_ROWS - 32, *alike[1:]]}

    def steps() -> dict[str, float]:
        return {
            name: setting.median(lambda rows=rows: denoise(setting.images, rows))
            for name, rows in shapes.items()
        }

    found: dict[str, Any] = {"eager_ms": steps()}
    begun = time.monotonic()
    found["note"] = setting.compile_note
    found["compile_seconds"] = round(time.monotonic() - begun, 1)
    begun = time.monotonic()
    found["compiled_ms"] = steps()
    found["seconds_with_new_shapes"] = round(time.monotonic() - begun, 1)
    return found


def critical_path(setting: Setting) -> dict[str, Any]:
    """Seconds of CPU work for a batch that a device would have to wait for."""
    pictures = _pictures(setting, setting.batch_size)
    pixels = torch.rand(setting.batch_size, 3, setting.side, setting.side, device=setting.device)
    pixels = (pixels * 2 - 1).to(setting.dtype)
    processor, pipeline = setting.models.image_processor, setting.models.pipeline
    calls = {
        "image processor": lambda: processor(images=pictures, return_tensors="pt"),
        "decoded to pictures": lambda: pipeline.image_processor.postprocess(pixels, output_type="pil"),
    }
    found = {}
    for name, call in calls.items():
        call()
        begun = time.perf_counter()
        call()
        found[name] = round(time.perf_counter() - begun, 3)
    return found
