"""What `build.quantize int8` costs: the encoders' error, and the memory of their weights.

    python benchmarks/int8.py --output benchmarks/results/int8.json

Relative error of the hidden states (Frobenius norm, by sample, mean of all), against the same model in float32, of
bfloat16 weights and activations, and of 8-bit weights with bfloat16 activations. The weights are random: those of a
trained model have outliers, which row by row cost more.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import held
from PIL import Image
from random_models import make_models
from training import hardware

from projector.models.int8 import quantize_weights

LAYERS = [-8, -6]
SAMPLES = 4
CAPTIONS = [
    "a lighthouse at dusk, seen from the sea, in heavy rain, as a woodcut",
    "a red fox",
    "two lanterns",
    "fog",
]


def states(text: Any, vision: Any, side: int) -> dict[str, list[torch.Tensor]]:
    """Hidden states of all samples by name."""
    drawn = np.random.default_rng(0)
    pictures = [Image.fromarray(drawn.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(SAMPLES)]
    seen = vision.encode(pictures, CAPTIONS)
    found = {"text": [item.embeddings.float() for item in text.encode(CAPTIONS)]}
    for mode in vision.text_modes:
        for layer in LAYERS:
            found[f"vl.{mode}.{layer}"] = [item.states[mode][layer].float() for item in seen]
    return found


def relative(full: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Mean relative error."""
    return float(np.mean([float((a - b).norm() / a.norm()) for a, b in zip(full, other, strict=True)]))


def main(words: list[str] | None = None) -> None:
    """Run, and print or write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "medium", "full"), default="medium")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file; default: stdout")
    options = parser.parse_args(words)
    models = make_models(options.size, options.device, torch.float32)
    text, _, vision = models.ours(options.side, options.side, 1, LAYERS, ["caption", "none"])
    full = states(text, vision, options.side)
    errors, weights = {}, {}
    for name in ("bfloat16", "int8"):
        for encoder in (text, vision):
            encoder.model.to(torch.bfloat16)
        if name == "int8":
            for encoder in (text, vision):
                quantize_weights(encoder.model, "int8")
        found = states(text, vision, options.side)
        errors[name] = {key: round(relative(full[key], found[key]), 5) for key in full}
        weights[name] = {"text": held(text.model), "vl": held(vision.model)}
    result = {
        "hardware": hardware(),
        "size": options.size,
        "samples": SAMPLES,
        "relative_error": errors,
        "weight_bytes": weights,
    }
    told = json.dumps(result, indent=1) + "\n"
    if options.output:
        options.output.write_text(told)
    else:
        print(told)


if __name__ == "__main__":
    main()
