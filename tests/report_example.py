"""A run as the report reads it, written by hand: every file it knows, with hostile names and captions in them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from shards.dataset.dataset import Dataset
from shards.format.plan import make_plan
from shards.prompts.prompt import Prompt
from shards.stores.local import open_storage
from tests_support import SETTINGS, commit_shard

WIDTH = 400  # dimensions; enough for 396
HOSTILE = '<script>alert("x")</script>--></style>$\\frac{ _'
BASELINES = {"no_input": 1.0, "identity": 7.9, "global_scale": 1.49, "per_dim_norm": 1.2, "ridge": 0.31}
BEST = "ridge"
SCORES = ("adherence", "fidelity", "blockiness")


def figures(error: float, *, scale: float = 1.0) -> dict[str, Any]:
    """What is measured of one method, all of it following from its error."""
    r2 = 1 - min(error, 1.0)
    named = {
        str(dimension): {"std_ratio": scale * dimension / 100, "correlation": r2, "r2": r2}
        for dimension in (4, 396)
    }
    return {
        "mse": error * 0.9,
        "mse_standardized": error,
        "cosine_similarity": r2,
        "per_dim_correlation": r2**0.5,
        "r2": r2,
        "std_ratio_range": [0.2 * scale, 40.0 * scale],
        "outlier_dims": int(30 * scale),
        "collapsed_dims": 3,
        "recall_at_1": r2 / 2,
        "recall_at_5": r2 / 1.2,
        "rms_r2": r2 / 1.5,
        "rms_cosine": r2,
        "sliced_wasserstein": error / 2,
        "intervals": {"mse_standardized": [error * 0.9, error * 1.1], "r2": [r2 - 0.02, r2 + 0.02]},
        "dimensions": named,
        "worst_dimensions": [{"dimension": 396 - i, **named["396"]} for i in range(10)],
        "by_kind": {"image": {"mse_standardized": error, "r2": r2}, "text": {"mse_standardized": error / 2}},
    }


def evaluation(error: float = 0.26, *, copies: bool = False, doubt: float = 0.07) -> dict[str, Any]:
    """The content of eval.json; differences to the best baseline are known as well as `doubt` says."""
    random = np.random.default_rng(0)
    before = random.lognormal(0, 0.7, WIDTH)
    before[[4, 396]] = 9.0, 43.0
    methods = {name: figures(value) for name, value in BASELINES.items()} | {
        "projector": figures(error, scale=0.05)
    }
    for name, value in {**BASELINES, "projector": error}.items():
        if name != BEST:
            difference = value - BASELINES[BEST]
            methods[name]["against"] = {
                "mse_standardized": {
                    "baseline": BEST,
                    "difference": difference,
                    "interval": [difference - doubt, difference + doubt],
                    "p": 0.2 if abs(difference) < doubt else 0.001,
                    "better": difference < -doubt,
                }
            }
    profile = {
        "identity": {"std_ratio": before.tolist(), "correlation": random.normal(0, 0.15, WIDTH).tolist()},
        "projector": {
            "std_ratio": random.normal(0.8, 0.1, WIDTH).tolist(),
            "correlation": random.normal(0.6, 0.12, WIDTH).tolist(),
        },
    }
    ends = {"own": [0.6, 0.7], "image": [0.05, 0.11] if copies else [0.5, 0.6], "caption": [0.4, 0.5]}
    swap = {name: sum(interval) / 2 for name, interval in ends.items()}
    sentence = "projector copies the caption" if copies else "projector looks at the picture"
    return {
        "pairs": 200,
        "tokens": 12_345,
        "layer": -8,
        "text_mode": "caption",
        "align": "soft",
        "methods": methods,
        "winner": "projector",
        "ranking": sorted(methods, key=lambda name: methods[name]["mse_standardized"]),
        "profile": {"methods": profile},
        "caption_swap": {
            "projector": {
                "pairs": 200,
                **swap,
                "takes_own": 0.4,
                "takes_other": 0.1,
                "chance": 0.005,
                "intervals": ends,
                "copies": copies,
                "sentence": sentence,
            }
        },
    }


def picture(seed: int, side: int = 256) -> bytes:
    """A PNG of coloured discs."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), tuple(random.integers(40, 220, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, radius = (random.uniform(0, side), random.uniform(0, side), random.uniform(10, side / 4))
        draw.ellipse(
            (x - radius, y - radius, x + radius, y + radius), fill=tuple(random.integers(0, 255, 3).tolist())
        )
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_comparison(folder: Path, cases: int = 2) -> None:
    """compare.json and its pictures."""
    places = [("concat", 1.0), ("guidance", 0.3), ("guidance", 0.7)]
    made = [("text", "alone", 1.0)]
    made += [(method, *place) for place in places for method in ("identity", "projector")]
    listed = []
    for index in range(cases):
        pictures = []
        for number, (method, mode, value) in enumerate(made):
            file = folder / "pictures" / f"r{index}" / f"{method}.{mode}.{value:g}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(100 * index + number))
            file_key = str(file.relative_to(folder))
            pictures.append({"method": method, "mode": mode, "value": value, "file": file_key})
        (folder / f"r{index}.png").write_bytes(picture(100 * index + 99))
        listed.append(
            {
                "case": f"r{index}",
                "prompt": f"a lighthouse {HOSTILE}" if index else "a lighthouse at dusk",
                "reference": f"r{index}.png",
                "pictures": pictures,
            }
        )
    methods: dict[str, Any] = {}
    for method, mode, value in made:
        scores = {score: {"mean": 0.3 + value / 3, "low": 0.2, "high": 0.6} for score in SCORES}
        methods.setdefault(method, {}).setdefault(mode, {})[f"{value:g}"] = scores
    lead = {"baseline": "identity", "fidelity": {"mean": 0.25, "low": 0.125, "high": 0.375, "better": True}}
    content = {
        "blend": "interpolate",
        "scorer": "attributes read from pixels",
        "references": cases,
        "cases": listed,
        "methods": methods,
        "differences": {"concat": {"1": lead}},
    }
    (folder / "compare.json").write_text(json.dumps(content))


def write_training(folder: Path, *, epochs: int = 12, floor: float = 0.26) -> None:
    """metrics.jsonl, summary.json and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"epoch": e, "train_loss": floor + 1 / (e + 1), "val_loss": floor + 1 / e}
        for e in range(1, epochs + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    restoration = [
        {"strength": s, "val_loss": floor + s / 9, "std_ratio_range": [0.5, 2.0 - s], "dims_outside": 6}
        for s in (0.0, 0.5, 1.0)
    ]
    summary = {"arch": "mlp", "parameters": 21_000_000, "train_pairs": 1800, "best_val_loss": floor}
    recommendation = "mlp has 16% less validation loss than ridge"
    (folder / "summary.json").write_text(
        json.dumps({**summary, "restoration": restoration, "recommendation": recommendation})
    )
    (folder / "config.json").write_text(json.dumps({"arch": "mlp", "note": HOSTILE}))


def write_dataset(root: Path, spool: Path) -> None:
    """A dataset over a few cells of the prompt space, one of its samples failed."""
    cells = [
        (content, style, subject)
        for content in ("photograph", HOSTILE)
        for style in ("vintage", "painterly")
        for subject in ("animals", "people")
    ]
    prompts = [Prompt(f"{HOSTILE} number {i}", *cells[i % len(cells)]) for i in range(10)]
    plan = make_plan(prompts, seed=7, val_fraction=0.3, samples_per_shard=4, segments=(10,))
    dataset = Dataset.create_or_open(open_storage(str(root)), SETTINGS, {"numpy": "2"})
    dataset.grow(len(plan), append=False)
    for index, shard in enumerate(plan.shards):
        commit_shard(dataset, shard, spool, failing=(0,) if index == 0 else ())


def write_run(run: Path) -> None:
    """Everything but the dataset: two trainings with their evaluations, pictures, a learning curve."""
    for name, floor in (("mlp", 0.26), ("linear<b>", 0.3)):
        write_training(run / name, floor=floor)
        (run / name / "eval.json").write_text(json.dumps(evaluation(floor)))
    write_comparison(run / "compare")
    curve = [
        {"pairs": pairs, "val_loss": {"mean": loss, "low": loss * 0.96, "high": loss * 1.04}}
        for pairs, loss in ((1000, 0.41), (5000, 0.33), (10_000, 0.3), (20_000, 0.28))
    ]
    (run / "ladder.json").write_text(json.dumps({"curve": curve, "verdict": "more data pays: double it"}))


# What an earlier version wrote of an evaluation.
OLD_METHODS = {
    name: {"mse_standardized": error, "per_dim_correlation": 0.5, "mse": 1.0}
    for name, error in (("identity", 7.0), ("projector", 0.25), ("ridge", 0.3))
}
OLD = {"pairs": 3, "tokens": 9, "layer": -8, "text_mode": "none", "methods": OLD_METHODS}


def drawn_and_read(fidelity, low, high):
    """An evaluation whose pictures were read: ridge is behind in embeddings and velocities, and 0.4 in fidelity."""
    content = evaluation(0.28, doubt=0.01) | {"judged": {"velocity_error": 64, "fidelity": 32}}
    for name, value in (("projector", fidelity), ("ridge", 0.4), ("identity", 0.3)):
        content["methods"][name] |= {"fidelity": value, "velocity_error": 1 - value}
    content["methods"]["projector"]["against"]["fidelity"] = {
        "baseline": "ridge", "difference": fidelity - 0.4, "interval": [low, high], "p": 0.002, "better": low > 0,
    }  # fmt: skip
    return content
