"""Milliseconds that a projector adds to a call, by architecture, at width 2560; a GPU where there is one.

    python benchmarks/apply.py                              1,050 tokens (a picture of 1024 pixels) and 64
    python benchmarks/apply.py --output benchmarks/results/apply.json
    python benchmarks/apply.py --quick                      width 128

One call of `Projector` on bfloat16 hidden states that lie on the device, as the extractor hands them over, with
everything inside: moving to float32, standardising, mapping, restoring, back to bfloat16. Networks start at ridge,
as trained ones do by default. Architectures take turns, so that what else the machine does falls on all alike.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from training import hardware

from projector.network.architectures import ProjectorNetwork, Shape
from projector.network.projector import Projector
from projector.options import Arch, TrainOptions

ARCHES: tuple[Arch, ...] = ("linear", "mlp", "attention")
TARGET_MS = 1.0  # on a GPU
WARM_UP = 3


def projector_of(arch: Arch, width: int, device: torch.device) -> Projector:
    """An untrained projector of the default shape."""
    options = TrainOptions(arch=arch, objective="embedding")
    residual = arch != "linear"
    shape = Shape(arch, width, options.hidden_size(width), options.length, residual=residual)
    return Projector(ProjectorNetwork(shape, random_start=True).to(device), {})


def milliseconds(projector: Projector, tokens: torch.Tensor) -> float:
    """Of one call, the device's work included."""
    on_gpu = tokens.device.type == "cuda"
    begun = time.perf_counter()
    projector(tokens)
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) * 1e3


def measure(words: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Median and quartiles of the calls, by architecture and number of tokens."""
    projectors = {arch: projector_of(arch, words.width, device) for arch in ARCHES}
    inputs = {
        count: torch.randn(count, words.width, device=device, dtype=torch.bfloat16) for count in words.tokens
    }
    times: dict[tuple[Arch, int], list[float]] = {}
    for turn in range(WARM_UP + words.calls):
        for arch, projector in projectors.items():
            for count, tokens in inputs.items():
                spent = milliseconds(projector, tokens)
                if turn >= WARM_UP:
                    times.setdefault((arch, count), []).append(spent)
    found: dict[str, Any] = {}
    for (arch, count), values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        found.setdefault(arch, {})[f"{count} tokens"] = {
            "median_ms": round(middle, 3),
            "quartiles_ms": [round(low, 3), round(high, 3)],
            "fastest_ms": round(min(values), 3),
        }
    return found


def main(words: list[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1050, 64])
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="width 128, 5 calls")
    parser.add_argument("--output", type=Path, help="JSON file; default: stdout")
    options = parser.parse_args(words)
    if options.quick:
        vars(options).update(width=128, calls=5)
    result: dict[str, Any] = {
        "hardware": hardware(),
        "width": options.width,
        "calls": options.calls,
        "target": f"under {TARGET_MS:g} ms on a GPU",
        "cpu": measure(options, torch.device("cpu")),
        "gpu": measure(options, torch.device("cuda"))
        if torch.cuda.is_available()
        else "none here: not measured",
        "load_average_at_end": os.getloadavg(),
    }
    text = json.dumps(result, indent=1)
    options.output.write_text(text + "\n") if options.output else print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
