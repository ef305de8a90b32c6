"""Weights under each placement, counted from models of the real shapes that hold no numbers, and which cards hold them.

python benchmarks/memory.py
"""

import json

import torch
from random_models import Models, make_models

from projector.models.int8 import quantize_weights
from ray_jobs.planning.model_placement import (
    ACTIVATION_BYTES_PER_PIXEL,
    BUILDER_MEMORY,
    MACHINE_MEMORY,
    MEMORY_SHARE,
    PROCESS_BYTES,
    Needs,
    choose_placement,
)
from shards.errors import UsageError

CARDS = (16, 24, 32, 48, 80)  # gigabytes
SIDE, BATCH = 1024, 4


def main() -> None:
    """Print gigabytes in bfloat16, and with the encoders in 8 bits."""
    models = make_models("full", "meta", torch.bfloat16)
    text, _, vision = models.ours(SIDE, SIDE, 8, [-8, -6], ["caption"])
    image = held(models.pipeline.transformer) + held(models.pipeline.vae)
    shown = {"bfloat16": rows(Needs(held(text.model), image, held(vision.model), 0.0))}
    for encoder in (text, vision):
        quantize_weights(encoder.model, "int8")
    shown["build.quantize int8"] = rows(Needs(held(text.model), image, held(vision.model), 0.0))
    print(json.dumps(shown, indent=1))
    print(as_table(models))


def held(module: torch.nn.Module) -> int:
    """Bytes of weights."""
    return sum(weight.nbytes for weight in module.state_dict().values())


def rows(wanted: Needs) -> dict[str, str]:
    """Each model and each placement."""
    found = {
        "text encoder": wanted.text,
        "transformer and decoder": wanted.image,
        "vision-language model up to layer -6": wanted.vl,
        "fused": wanted.of("fused"),
        "staged, the fuller device": wanted.of("staged"),
        "offload": wanted.of("offload"),
    }
    return {name: f"{value / 1e9:.1f} GB" for name, value in found.items()}


def as_table(models: Models) -> str:
    """What `build` does on each card, in Markdown: it goes by the files, so blocks that are cut off count."""
    lines = [
        "| GPU | `build.quantize` | placement | on the GPU | host memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for card in CARDS:
        for quantize in ("none", "int8"):
            wanted = needs_of(models, linear=1 if quantize == "int8" else 2)
            lines.append(f"| {card} GB | {quantize} | {' | '.join(row(wanted, card * 1e9))} |")
    return "\n".join(lines)


def needs_of(models: Models, linear: int) -> Needs:
    """As `build` counts it, from whole models."""
    text, vl = (
        sum(
            weight.numel() * (linear if weight.dim() == 2 and "embed" not in name else 2)
            for name, weight in model.named_parameters()
        )
        for model in (models.pipeline.text_encoder, models.vl)
    )
    image = held(models.pipeline.transformer) + held(models.pipeline.vae)
    return Needs(text, image, vl, ACTIVATION_BYTES_PER_PIXEL * SIDE * SIDE * BATCH + PROCESS_BYTES)


def row(wanted: Needs, memory: float) -> tuple[str, str, str]:
    """Placement, gigabytes on the device, and of the host."""
    try:
        placement, _ = choose_placement("auto", wanted, memory)
    except UsageError:
        return "refused", f"{(wanted.of('offload') - wanted.beside) / 1e9:.1f} GB of weights alone", ""
    full = wanted.of(placement)
    fits = (
        f"{full / 1e9:.0f} GB"
        if full <= memory
        else f"{full / 1e9:.0f} GB: batches are halved until they fit"
    )
    models = (wanted.text, wanted.image, wanted.vl)
    waiting = (
        sum(models) if placement == "offload" else max(models)
    )  # fused: each passes through as it is loaded
    host = (waiting + BUILDER_MEMORY + MACHINE_MEMORY) / MEMORY_SHARE
    return placement, fits, f"{host / 1e9:.0f} GB"


if __name__ == "__main__":
    main()
