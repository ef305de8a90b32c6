"""Weights on a device under each placement, counted from models of the real shapes that hold no numbers.

python benchmarks/memory.py
"""

import json

import torch
from random_models import make_models

from ray_jobs.placement import Needs


def main() -> None:
    """Print gigabytes in bfloat16."""
    models = make_models("full", "meta", torch.bfloat16)

    def size(*parts: torch.nn.Module) -> float:
        return 2 * sum(parameter.numel() for part in parts for parameter in part.parameters())

    text, _, vision = models.ours(1024, 1024, 9, [-8, -6], ["caption"])
    pipeline = models.pipeline
    wanted = Needs(size(text.model), size(pipeline.transformer, pipeline.vae), size(vision.model), 0.0)
    shown = {
        "text encoder": wanted.text,
        "transformer and decoder": wanted.image,
        "vision-language model up to layer -6": wanted.vl,
        "fused": wanted.of("fused"),
        "staged, the fuller device": wanted.of("staged"),
        "offload": wanted.of("offload"),
    }
    print(json.dumps({name: f"{value / 1e9:.1f} GB" for name, value in shown.items()}, indent=1))


if __name__ == "__main__":
    main()
