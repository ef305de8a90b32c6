"""What the networks reach by their defaults, over seeds, beside ridge as recommended: no race, no guide.

python benchmarks/networks.py --output benchmarks/results/networks-2560.json
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from quality import Bench, of_projector, trained
from training import hardware, over_seeds

from projector.options import Arch, TrainOptions
from projector.synthetic import Synthetic

ARCHES: tuple[Arch, ...] = ("ridge", "linear", "mlp", "attention")
FIGURES = ("content_probe", "sliced_wasserstein", "dims_outside", "mse_standardized")


def main(words: list[str]) -> None:
    """Train all, and print or write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file, rewritten after each seed; default: stdout")
    options = parser.parse_args(words)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), Synthetic.realistic(options.width, seed), options.pairs, 100, 200)
            for arch in ARCHES:
                projector, summary, _ = trained(
                    bench, TrainOptions(arch=arch, seed=seed, epochs=options.epochs)
                )
                for name, restore in ((arch, 0.0), (f"{arch}, variance restored", 1.0)):
                    figures = bench.measure({"": of_projector(projector, restore)})[""]
                    row = {figure: figures[figure] for figure in FIGURES}
                    row["best_epoch"] = summary["best_epoch"]
                    found.setdefault(name, []).append(row)
                    print(f"seed {seed}, {name}: {json.dumps(row)}", file=sys.stderr, flush=True)
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
