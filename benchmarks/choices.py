"""Losses, weight decay, averaging, batch sizes and starts: how much each moves what an MLP reaches, over seeds.

    python benchmarks/choices.py --output benchmarks/results/choices-512.json
    python benchmarks/choices.py --networks --width 2560 --pairs 1000 --seeds 3 --epochs 3 --output FILE

Every row changes one thing of the defaults, for a network that starts at ridge and for one that starts at random; or,
with `--networks`, every row is a network by its defaults. Each is measured as trained and with the variance restored.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from quality import Bench, of_projector, trained
from synthetic import Synthetic
from training import hardware, over_seeds

from projector.options import Arch, TrainOptions

CHOICES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "loss huber": {"loss": "huber"},
    "loss cosine": {"loss": "cosine"},
    "raw squared error": {"loss": "raw_mse"},
    "weight decay 0": {"weight_decay": 0.0},
    "weight decay 0.1": {"weight_decay": 0.1},
    "average 0.99": {"ema": 0.99},
    "batches of 8": {"batch_size": 8},
    "batches of 128": {"batch_size": 128},
    "learning rate 5e-4": {"learning_rate": 5e-4},
    "learning rate 4.5e-3": {"learning_rate": 4.5e-3},
}
NETWORKS: tuple[Arch, ...] = ("ridge", "linear", "mlp", "attention")
FIGURES = ("content_probe", "mse_standardized", "sliced_wasserstein", "dims_outside")


def cases(networks: bool) -> dict[str, dict[str, Any]]:
    """What is changed of the defaults in each row: each network's own, or one choice at a time."""
    if networks:
        return {arch: {"arch": arch} for arch in NETWORKS}
    return {
        f"{start}, {name}": {"arch": "mlp", "start": start} | changes
        for start in ("ridge", "random")
        for name, changes in CHOICES.items()
    }


def main(words: list[str]) -> None:
    """Train all, and print or write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", action="store_true", help="the networks by their defaults")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", type=Path, help="JSON file, rewritten after each seed; default: stdout")
    options = parser.parse_args(words)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), Synthetic.realistic(options.width, seed), options.pairs, 100, 200)
            for name, changes in cases(options.networks).items():
                given = TrainOptions(
                    **{"objective": "embedding", "seed": seed, "epochs": options.epochs} | changes
                )
                projector, summary, _ = trained(bench, given)
                for row, restore in ((name, 0.0), (f"{name}, variance restored", 1.0)):
                    figures = bench.measure({"": of_projector(projector, restore)})[""]
                    told = {figure: figures[figure] for figure in FIGURES}
                    told["best_epoch"] = summary["best_epoch"]
                    found.setdefault(row, []).append(told)
                    print(f"seed {seed}, {row}: {json.dumps(told)}", file=sys.stderr, flush=True)
        result = {
            "hardware": hardware(),
            "options": {key: value for key, value in vars(options).items() if key != "output"},
            "rows": {
                name: {
                    figure: over_seeds([run[figure] for run in runs]) for figure in (*FIGURES, "best_epoch")
                }
                for name, runs in found.items()
            },
        }
        if options.output:
            options.output.write_text(json.dumps(result, indent=1) + "\n")
    if not options.output:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
