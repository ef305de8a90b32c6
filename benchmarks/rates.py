"""Which learning rate each network wants: validation loss by rate, started at random and at ridge, over seeds.

    python benchmarks/rates.py --quick
    python benchmarks/rates.py --width 512 --pairs 1000 --seeds 3 --output benchmarks/results/rates-512.json

Started at ridge the best epoch is never worse than the start, so what counts there is whether a rate finds
anything better; started at random, how low it gets, and after how many epochs it was lowest (fewer than all of
them: it overfits from there on).
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from synthetic import Synthetic
from training import ARCHES, hardware

from projector.options import TrainOptions
from projector.training.loop import train

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
STARTS = ("random", "ridge")


def main(words: list[str]) -> None:
    """Sweep, and print or write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--val", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="width 64, 100 pairs, one seed, two epochs")
    parser.add_argument("--output", type=Path, help="JSON file, rewritten after each rate; default: stdout")
    options = parser.parse_args(words)
    if options.quick:
        vars(options).update(width=64, pairs=100, val=30, seeds=1, epochs=2)
    result: dict[str, Any] = {
        "hardware": hardware(),
        "options": {key: value for key, value in vars(options).items() if key != "output"},
        "defaults": {
            arch: TrainOptions(arch=arch, objective="embedding").peak_learning_rate(options.width)
            for arch in ARCHES
        },
        "sweep": [],
    }
    for arch in ARCHES:
        for start in STARTS:
            for rate in RATES:
                runs = [one(options, arch, start, rate, seed) for seed in range(options.seeds)]
                row = {"arch": arch, "start": start, "learning_rate": rate, **summary(runs)}
                result["sweep"].append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                if options.output:
                    options.output.write_text(json.dumps(result, indent=1) + "\n")
    if not options.output:
        print(json.dumps(result, indent=1))


def one(options: argparse.Namespace, arch: Any, start: Any, rate: float, seed: int) -> dict[str, Any]:
    """Train once; the run's summary."""
    world = Synthetic.realistic(options.width, seed)
    with tempfile.TemporaryDirectory() as output:
        return train(
            TrainOptions(
                objective="embedding",
                arch=arch,
                start=start,
                learning_rate=rate,
                seed=seed,
                epochs=options.epochs,
                patience=None,
            ),
            world.source(options.pairs),
            world.source(options.val, first=options.pairs),
            output=output,
        )


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Over seeds: least validation loss, its share of ridge's, and the epoch that had it."""
    losses = [run["best_val_loss"] for run in runs]
    return {
        "best_val_loss": round(statistics.mean(losses), 5),
        "over_ridge": round(statistics.mean(run["best_val_loss"] / run["ridge_val_loss"] for run in runs), 4),
        "spread_over_seeds": round(max(losses) - min(losses), 5),
        "best_epochs": [run["best_epoch"] for run in runs],
        "seconds": round(statistics.mean(run["seconds"] for run in runs), 2),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
