"""The first hour on a GPU as one command: parity, speed, memory and faults, without Ray, network or weights.

    python benchmarks/gpu.py --minutes 8 --output gpu.json          one GPU of 80 GB, full-size random models
    python benchmarks/gpu.py --size tiny --side 64 --device cpu     does it run

Steps run in order of worth, and each is saved as it ends: a run that is cut short leaves what it had. A step that
fails is recorded with its error, and the next one runs. It needs torch, diffusers, transformers and this project;
docs/performance.md says how to bring those to a machine without network.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_faults import sticky_fault
from gpu_making import (
    attention_masks,
    busy_share,
    compiled_blocks,
    critical_path,
    parity,
    throughput,
    utilisation,
)
from gpu_memory import decoder_memory, placements
from gpu_setting import Setting
from gpu_training import distributed_step, epochs, projector_calls, response_steps
from training import hardware

STEPS: dict[str, Callable[[Setting], Any]] = {
    "parity": parity,
    "compile": compiled_blocks,
    "throughput": throughput,
    "utilisation": utilisation,
    "busy": busy_share,
    "faults": sticky_fault,
    "projector": projector_calls,
    "epochs": epochs,
    "decoder": decoder_memory,
    "response": response_steps,
    "placements": placements,
    "distributed": distributed_step,
    "critical_path": critical_path,
    "attention": attention_masks,
}
TARGETS = {
    "throughput.times_faster": 1.5,
    "utilisation.best": 0.55,
    "busy.share": 0.97,
    "epochs.mlp.seconds_per_epoch": 1.0,
    "projector.milliseconds": 1.0,
}


def main(words: list[str]) -> None:
    """Run the steps and keep the JSON whole after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "medium", "full"), default="full")
    parser.add_argument("--side", type=int, default=1024, help="of the pictures, pixels")
    parser.add_argument("--steps", type=int, default=8, help="of denoising")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument(
        "--turns", type=int, default=2, help="that count; 1 leaves out three layers and two modes"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="no step begins after them")
    parser.add_argument("--only", nargs="+", choices=tuple(STEPS), default=tuple(STEPS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, help="JSON file; default: stdout")
    options = parser.parse_args(words)
    begun = time.monotonic()
    result: dict[str, Any] = {
        "hardware": hardware(),
        "options": {key: value for key, value in vars(options).items() if key != "output"},
        "targets": TARGETS,
        "steps": {},
    }
    setting = Setting(
        options.size, options.side, options.steps, options.batch_size, options.device, options.turns
    )
    for name in options.only:
        left = 60 * options.minutes - (time.monotonic() - begun)
        result["steps"][name] = run_step(name, setting) if left > 0 else {"skipped": "no time was left"}
        text = json.dumps(result, indent=1, default=str) + "\n"
        if options.output:
            options.output.write_text(text)
    if not options.output:
        print(text)


def run_step(name: str, setting: Setting) -> dict[str, Any]:
    """One step's figures and seconds, or its error."""
    begun = time.monotonic()
    try:
        found = {"found": STEPS[name](setting)}
    except Exception as error:  # the next step may still say something
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", "at": where}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    found["seconds"] = round(time.monotonic() - begun, 1)
    print(f"{name}: {json.dumps(found, default=str)[:1500]}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
