"""Does the velocity error rank projectors as their pictures do? Rank correlations over trainings of many kinds.

    python benchmarks/velocity_rank.py --models projector/models/mini --output benchmarks/results/velocity-rank.json

Projectors of every network, start, objective and many lengths of training, and methods that need none, each with its
velocity error on held-out pairs (`evaluate`'s figure), and the share of a reference's attributes
that its pictures show without a prompt. Then Spearman's rank correlation of the error with the share of attributes
missed: over everything, and among trainings of one start alone. Intervals are 95%, from a bootstrap over references
(the runs stay as they are).
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from steering import (
    LAYER,
    RESAMPLES,
    SIDE,
    STEPS,
    Condition,
    Judge,
    Made,
    World,
    alone,
    source_of,
    template_of,
    trained,
    unprojected,
)

from projector.data.pairs import PairSource
from projector.data.template import Template
from projector.evaluation.velocity_error import velocity_errors
from projector.inference.frozen_transformer import FrozenTransformer

EMBEDDING: dict[str, dict[str, Any]] = {
    "statistics": {"arch": "linear", "align": "statistics"},
    "ridge": {"arch": "ridge"},
    **{
        f"{arch} embedding": {"arch": arch, "objective": "embedding"}
        for arch in ("linear", "mlp", "attention")
    },
}
RESPONSE: dict[str, dict[str, Any]] = {
    f"{arch} from {start}, {epochs} epochs": {
        "arch": arch,
        "objective": "response",
        "compose": 0.0,
        "start": start,
        "epochs": epochs,
    }
    for arch, start, lengths in (
        ("linear", "ridge", (1, 3, 10)),
        ("mlp", "ridge", (1, 3, 10)),
        ("attention", "ridge", (1, 3, 10)),
        ("linear", "random", (3, 10)),
        ("attention", "random", (3, 10)),
    )
    for epochs in lengths
}


class Ranking:
    """The runs so far, written down as they are found.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.output: Path = options.output
        self.image: Path = options.models / "image"
        world = World(options.models, objects=1)
        self.train, self.val, test = (
            world.make(count, split, seed)
            for count, split, seed in (
                (options.pairs, "train", 1),
                (max(32, options.pairs // 10), "val", 2),
                (options.references, "test", 3),
            )
        )
        self.template: Template = template_of(self.train)
        self.test: list[Made] = test
        self.source: PairSource = source_of(test, self.template, self.image)
        self.model = FrozenTransformer.from_pretrained(
            str(self.image), device=torch.device("cpu"), height=SIDE, width=SIDE, steps=STEPS
        )
        self.judge = Judge(world, test, self.output.with_suffix(""))
        self.runs: dict[str, dict[str, Any]] = {}
        self.shown: dict[str, list[float]] = {}

    def measure(self, name: str, kind: str, condition: Condition) -> None:
        """Measure a method: what it draws and how far its velocities are off."""
        wholes = [condition(item)[0].float() for item in self.test]
        error = velocity_errors({name: wholes}, self.source, self.model)[name].value
        self.shown[name] = self.judge.alone(condition)
        self.runs[name] = {
            "kind": kind,
            "velocity_error": round(error, 4),
            "attributes": round(float(np.mean(self.shown[name])), 4),
        }
        print(name, json.dumps(self.runs[name]), flush=True)
        self.keep({})

    def keep(self, more: dict[str, Any]) -> None:
        """Write down what is known."""
        self.output.write_text(json.dumps({"runs": self.runs} | more, indent=1) + "\n")

    def correlations(self) -> dict[str, Any]:
        """Rank correlation of the velocity error with what pictures miss, over groups of runs."""
        kinds = sorted({run["kind"] for run in self.runs.values()})
        groups = {"all": list(self.runs)} | {
            kind: names
            for kind in kinds
            if len(names := [name for name, run in self.runs.items() if run["kind"] == kind]) > 3
        }
        groups["through the image model"] = [
            name for name, run in self.runs.items() if run["kind"].startswith("response")
        ]
        return {group: self._correlation(names) for group, names in groups.items()}

    def _correlation(self, names: Sequence[str]) -> dict[str, Any]:
        errors = [self.runs[name]["velocity_error"] for name in names]
        table = np.array([self.shown[name] for name in names])  # (runs, references)
        rows = np.random.default_rng(0).integers(table.shape[1], size=(RESAMPLES, table.shape[1]))
        drawn = [rank_correlation(errors, -table[:, row].mean(1)) for row in rows]
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        return {
            "runs": len(names),
            "spearman": round(rank_correlation(errors, -table.mean(1)), 3),
            "interval": [round(float(low), 3), round(float(high), 3)],
        }


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; equal values share the mean of their ranks."""

    def ranks(values: Sequence[float]) -> np.ndarray:
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(count) - (count - 1) / 2)[place]

    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder with `image` and `vl`")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--references", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.monotonic()
    ranking = Ranking(options)
    template = ranking.template
    others = dict(zip(ranking.test, [*ranking.test[1:], ranking.test[0]], strict=True))
    untrained: dict[str, Callable[[Made], Any]] = {
        "another's caption": lambda item: (others[item].text.embeddings, None),
        "identity": unprojected(template, "vl"),
        "graft": unprojected(template, "graft"),
    }
    for name, condition in untrained.items():
        ranking.measure(name, "untrained", condition)
    sources = tuple(source_of(made, template, ranking.image) for made in (ranking.train, ranking.val))
    for table in (EMBEDDING, RESPONSE):
        for name, how in table.items():
            kind = f"response from {how['start']}" if table is RESPONSE else "embeddings"
            projector = trained({"length": 16, **how}, sources, options.models, options.seed)
            ranking.measure(name, kind, alone(projector, template))
    ranking.keep(
        {
            "pairs": options.pairs,
            "references": options.references,
            "layer": LAYER,
            "correlations": ranking.correlations(),
            "seconds": round(time.monotonic() - begun),
        }
    )
    print(json.dumps(ranking.correlations(), indent=1))


if __name__ == "__main__":
    main()
