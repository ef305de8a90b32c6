"""Weights on a device under each placement, counted from models of the real shapes that hold no numbers.

python benchmarks/memory.py
"""

import json

import torch
from random_models import make_models

from projector.models.int8 import quantize_weights
from ray_jobs.building.model_placement import Needs


def main() -> None:
    """Print gigabytes in bfloat16, and with the encoders in 8 bits."""
    models = make_models("full", "meta", torch.bfloat16)
    text, _, vision = models.ours(1024, 1024, 9, [-8, -6], ["caption"])
    image = held(models.pipeline.transformer) + held(models.pipeline.vae)
    shown = {"bfloat16": rows(Needs(held(text.model), image, held(vision.model), 0.0))}
    for encoder in (text, vision):
        quantize_weights(encoder.model, "int8")
    shown["build.quantize int8"] = rows(Needs(held(text.model), image, held(vision.model), 0.0))
    print(json.dumps(shown, indent=1))


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


if __name__ == "__main__":
    main()
