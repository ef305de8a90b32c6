"""What a comparison leaves besides its pictures: compare.json, printed lines, and the grids for TensorBoard."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from projector.comparison.cases import HELD_OUT, PROJECTED, Case, Column
from projector.comparison.comparer import CompareSpec
from projector.comparison.outcome import JUDGED, by_method, differences, table_of
from projector.steering.modes import DIALLED, Mode
from projector.training.event_file import event_file, event_key, pictures
from ray_jobs.cli.run_options import CompareOptions
from shards.stores.store import Storage

MOST_GRIDS = 24  # in TensorBoard: a megabyte or so each

CaseWork = tuple[Case, list[Column]]
"""A case and the pictures that are made of it."""


def comparison(
    options: CompareOptions,
    modes: Sequence[Mode],
    work: Sequence[CaseWork],
    spec: CompareSpec,
    scores: Sequence[Sequence[Mapping[str, float]]],
) -> dict[str, Any]:
    """The content of compare.json."""
    table = table_of([case for case, _ in work], [columns for _, columns in work], scores)
    cases = [
        {
            "case": case.name,
            "reference": case.reference,
            "prompt": case.prompt,
            "seed": case.seed,
            "grid": case.grid,
            "pictures": [
                {**column._asdict(), "file": case.picture(column), "scores": dict(entry)}
                for column, entry in zip(columns, by_column, strict=True)
            ],
        }
        for (case, columns), by_column in zip(work, scores, strict=True)
    ]
    return {
        "modes": list(modes),
        "alphas": options.alphas,
        "blend": options.blend,
        "checkpoint": spec.checkpoint,
        "settings": asdict(spec.settings) | {"seed": options.seed, "models": spec.models.to_json()},
        "scorer": scorer_name(spec),
        "split": "" if options.images else HELD_OUT,
        "interval": "95%, Student's t over references; of differences 95% for all modes and values together",
        "references": len({case.group for case, _ in work}),
        "cases": cases,
        "methods": by_method(table),
        "differences": differences(table),
    }


def scorer_name(spec: CompareSpec) -> str:
    """What adherence and fidelity are measured with."""
    names = ["attributes read from pixels"] if spec.attributes else []
    return ", ".join(names + ([spec.siglip.id] if spec.siglip else [])) or "none"


def print_summary(result: Mapping[str, Any]) -> None:
    """Mean scores, a line per method, mode and value; then what the projector is better at than the best other."""
    for method, by_mode in result["methods"].items():
        for mode, by_value in by_mode.items():
            for value, scores in by_value.items():
                told = ", ".join(f"{name} {found['mean']:.3f}" for name, found in scores.items())
                print(f"{method:>14} {label(mode, value)}: {told}", flush=True)
    for mode, by_value in result["differences"].items():
        for value, found in by_value.items():
            for name in JUDGED:
                if score := found.get(name):
                    word = "better" if score["better"] else "not shown to be better"
                    ends = f"{score['mean']:+.3f}, {score['low']:+.3f} to {score['high']:+.3f}"
                    print(
                        f"{label(mode, value)}: {PROJECTED} {word} in {name} than {found['baseline']} ({ends})",
                        flush=True,
                    )


def label(mode: str, value: str) -> str:
    """A mode, with its value where it has a dial."""
    return f"{mode} {value}" if mode in DIALLED else mode


def put_grids(storage: Storage, cases: Sequence[Case]) -> None:
    """Show the grids of the first cases in TensorBoard, where it is installed: `tensorboard --logdir OUTPUT`."""
    if find_spec("tensorboard") is not None:
        grids = {f"compare/{case.name}": storage.get_bytes(case.grid) for case in cases[:MOST_GRIDS]}
        storage.put_bytes(event_key(0), event_file([pictures(grids)], 0))
