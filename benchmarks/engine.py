"""Making pairs against the guide's loop: images/s, seconds by stage, utilisation, busy share, memory; without Ray.

    python benchmarks/engine.py --size tiny                                          does it run
    python benchmarks/engine.py --size medium --output benchmarks/results/engine-medium.json     two cores, minutes
    python benchmarks/engine.py --size full --side 1024 --steps 9 --device cuda --output …       one GPU of 80 GB

The guide encodes a prompt, generates the picture from the prompt, encoding it again, and saves both; then it reads the
pictures one by one with the whole Qwen3-VL, for one layer and one text mode a run, and saves .pt files. Here the
same models make the same samples through `FusedMaker` into a shard. Both take turns in one process.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from planned import planned_shard
from random_models import Models, make_models
from timeline import Clock, draw
from torch.utils.flop_counter import FlopCounterMode
from training import hardware

from projector.inference.image_generator import ImageGenerator
from projector.inference.text_encoder import TextEncoding
from projector.making.generated import PictureMaker, PictureReader
from projector.making.shard_maker import FusedMaker
from projector.models.offload import Residence
from shards.format.plan import PlannedShard
from shards.format.sample import Expected, Failure
from shards.format.shard_writer import ShardWriter

LAYERS, MODES = [-8, -6, -2], ["caption", "none"]
TARGETS = {"text": 6.0, "vl_one_layer": 1.5, "vl_three_layers_two_modes": 2.5, "whole": 1.3}
PEAK_SIZE = {"cpu": 2048, "cuda": 8192}


def main(words: list[str]) -> None:
    """Run, and print or write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "medium", "full"), default="tiny")
    parser.add_argument("--side", type=int, default=256, help="of the pictures, pixels")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--samples", type=int, default=8, help="of each turn")
    parser.add_argument("--turns", type=int, default=3, help="counted, after one that is not")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: bfloat16 on a GPU")
    parser.add_argument("--timeline", type=Path, help="SVG of the last turn of ours")
    parser.add_argument("--output", type=Path, help="JSON file; default: stdout")
    options = parser.parse_args(words)
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    result = run(options)
    text = json.dumps(result, indent=1) + "\n"
    options.output.write_text(text) if options.output else print(text)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All turns, and what they come to."""
    models = make_models(options.size, options.device, getattr(torch, options.dtype))
    shard = planned_shard(options.samples)
    one_layer, all_layers = (
        maker_of(models, options, layers, modes) for layers, modes in (([-8], ["caption"]), (LAYERS, MODES))
    )
    turns: dict[str, list[Clock]] = {"guide": [], "ours": [], "guide_all": [], "ours_all": []}
    for turn in range(options.turns + 1):
        for name, make in (
            ("guide", lambda clock: guide(models, shard, options, [-8], ["caption"], clock)),
            ("ours", lambda clock: ours(one_layer, shard, options, [-8], ["caption"], clock)),
            ("guide_all", lambda clock: guide(models, shard, options, LAYERS, MODES, clock)),
            ("ours_all", lambda clock: ours(all_layers, shard, options, LAYERS, MODES, clock)),
        ):
            clock = Clock(options.device)
            make(clock)
            if turn:
                turns[name].append(clock)
            print(f"turn {turn}, {name}: {clock.summary()}", file=sys.stderr, flush=True)
    if options.timeline:
        options.timeline.write_text(draw(turns["ours"][-1].spans))
    return report(turns, models, options)


def report(turns: dict[str, list[Clock]], models: Models, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios beside their targets, seconds by stage, utilisation."""

    def seconds(name: str, stage: str) -> float:
        return statistics.median(clock.seconds(stage) for clock in turns[name])

    ratios = {
        "text": seconds("guide", "text") / seconds("ours", "text"),
        "vl_one_layer": seconds("guide", "vl") / seconds("ours", "vl"),
        "vl_three_layers_two_modes": seconds("guide_all", "vl") / seconds("ours_all", "vl"),
        # Of the guide's six passes two would do, one for each mode, as a pass gives all layers.
        "vl_three_layers_two_modes, guide reading each mode once": seconds("guide_all", "vl")
        / len(LAYERS)
        / seconds("ours_all", "vl"),
        "whole": seconds("guide", "whole") / seconds("ours", "whole"),
        "whole, three layers and two modes": seconds("guide_all", "whole") / seconds("ours_all", "whole"),
    }
    flops, peak = flops_by_stage(models, options), matmul_peak(options)
    stages = ("text", "image", "vl")
    on_device = {name: sum(seconds(name, stage) for stage in stages) for name in turns}
    return {
        "hardware": hardware(),
        "options": {key: value for key, value in vars(options).items() if key not in ("output", "timeline")},
        "times_faster": {name: round(value, 2) for name, value in ratios.items()},
        "targets": TARGETS,
        "seconds": {
            name: {stage: round(seconds(name, stage), 3) for stage in (*stages, "whole")} for name in turns
        },
        "images_per_second": {name: round(options.samples / seconds(name, "whole"), 4) for name in turns},
        "busy_share": {name: round(on_device[name] / seconds(name, "whole"), 4) for name in turns},
        "flops_per_sample": {stage: f"{value:.3e}" for stage, value in flops.items()},
        "matmul_peak_flops_per_second": f"{peak:.3e}",
        "utilisation": {
            "image stage": round(options.samples * flops["image"] / seconds("ours", "image") / peak, 4),
            "whole": round(options.samples * sum(flops.values()) / seconds("ours", "whole") / peak, 4),
        },
        "peak_memory_gb": round(
            torch.cuda.max_memory_allocated() / 1e9
            if options.device != "cpu"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
            2,
        ),
    }


def maker_of(
    models: Models,
    options: argparse.Namespace,
    layers: list[int],
    modes: list[str],
    generator: ImageGenerator | None = None,
) -> FusedMaker:
    """This project's engine around the models, with its own generator unless one is given."""
    text, images, vision = models.ours(options.side, options.side, options.steps, layers, modes)
    images = generator or images
    residence = Residence()
    return FusedMaker(
        PictureMaker(text, images, options.batch_size, residence),
        PictureReader({"vl": vision}, "all", options.batch_size, residence),
    )


def ours(
    maker: FusedMaker,
    shard: PlannedShard,
    options: argparse.Namespace,
    layers: list[int],
    modes: list[str],
    clock: Clock,
) -> None:
    """A shard made, checked and written as in a build."""
    expected = Expected(tuple(modes), tuple(layers), options.side, options.side)
    inside = (
        (maker.pictures._text, "encode", "text"),
        (maker.pictures._images, "generate_with_latents", "image"),
        (maker.reader._visions["vl"], "encode", "vl"),
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        clock("whole"),
        clocked(clock, inside),
        ShardWriter(shard, Path(folder), "benchmark", expected) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="writer") as pen,
    ):

        def write(results: Sequence[Any]) -> None:
            with clock("write", on_device=False):
                for result in results:
                    assert not isinstance(result, Failure), result
                    writer.add(result)

        behind = [pen.submit(write, step.run()) for step in maker.steps(shard.samples, (), {})]
        for written in behind:
            written.result()
        with clock("write"):
            writer.close()


@contextmanager
def clocked(clock: Clock, inside: tuple[tuple[Any, str, str], ...]) -> Iterator[None]:
    """Have methods of models tell when they run."""

    def timed(method: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with clock(stage):
                return method(*arguments)

        return call

    for owner, name, stage in inside:
        setattr(owner, name, timed(getattr(owner, name), stage))
    try:
        yield
    finally:
        for owner, name, _ in inside:
            delattr(owner, name)


@torch.inference_mode()
def guide(
    models: Models,
    shard: PlannedShard,
    options: argparse.Namespace,
    layers: list[int],
    modes: list[str],
    clock: Clock,
) -> None:
    """The guide's loop: text and picture prompt by prompt, then each layer and mode picture by picture."""
    from PIL import Image

    pipeline = models.pipeline
    with tempfile.TemporaryDirectory() as name, clock("whole"):
        folder = Path(name)
        for sample in shard.samples:
            with clock("text"):
                embeddings, _ = pipeline.encode_prompt([sample.caption], do_classifier_free_guidance=False)
            torch.save(embeddings[0].cpu(), folder / f"{sample.id}.text.pt")
            with clock("text"):  # within the pipeline's call, where it is encoded again
                again, _ = pipeline.encode_prompt([sample.caption], do_classifier_free_guidance=False)
            with clock("image"):
                image = pipeline(
                    prompt_embeds=again,
                    height=options.side,
                    width=options.side,
                    num_inference_steps=options.steps,
                    guidance_scale=0.0,
                    generator=torch.Generator("cpu").manual_seed(sample.seed),
                ).images[0]
            image.save(folder / f"{sample.id}.png")
        for layer in layers:
            for mode in modes:
                for sample in shard.samples:
                    picture = Image.open(folder / f"{sample.id}.png").convert("RGB")
                    inputs = read_inputs(models, picture, sample.caption if mode == "caption" else "")
                    with clock("vl"):
                        states = models.vl(**inputs, output_hidden_states=True).hidden_states[layer][0]
                    torch.save(states.cpu(), folder / f"{sample.id}.{mode}.{layer}.pt")


def read_inputs(models: Models, image: Any, text: str) -> dict[str, Any]:
    """What `Qwen3VLProcessor` makes of a picture and a text."""
    tokenizer, device = models.vl_tokenizer, models.vl.device
    pixels = models.image_processor(images=[image], return_tensors="pt")
    content = [{"type": "image"}, *([{"type": "text", "text": text}] if text else [])]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    count = int(pixels["image_grid_thw"].prod()) // models.image_processor.merge_size**2
    ids = torch.tensor([tokenizer(prompt.replace("<|image_pad|>", "<|image_pad|>" * count)).input_ids])
    return {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
        "mm_token_type_ids": (ids == models.vl.config.image_token_id).int().to(device),
        "pixel_values": pixels["pixel_values"].to(device, models.vl.dtype),
        "image_grid_thw": pixels["image_grid_thw"].to(device),
    }


def flops_by_stage(models: Models, options: argparse.Namespace) -> dict[str, float]:
    """Floating-point operations of one sample of ours (one layer, captions), counted by torch."""
    text, images, vision = models.ours(options.side, options.side, options.steps, [-8], ["caption"])
    caption = planned_shard(1).samples[0].caption
    found: dict[str, float] = {}
    with FlopCounterMode(display=False) as counter:
        (encoding,) = text.encode([caption])
    found["text"] = counter.get_total_flops()
    assert isinstance(encoding, TextEncoding)
    with FlopCounterMode(display=False) as counter:
        (image,) = images.generate([encoding.embeddings], [0])
    found["image"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        vision.encode([image], [caption])
    found["vl"] = counter.get_total_flops()
    return found


def matmul_peak(options: argparse.Namespace) -> float:
    """Most floating-point operations a second that a large square product reaches here."""
    size = PEAK_SIZE[options.device.split(":")[0]]
    a = torch.randn(size, size, device=options.device, dtype=getattr(torch, options.dtype))
    best = 0.0
    for _ in range(10):
        begun = time.perf_counter()
        a @ a
        if options.device != "cpu":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best


if __name__ == "__main__":
    main(sys.argv[1:])
