"""Training against the guide's: quality, time to quality, step rate, ridge, and the caption-swap test.

    python benchmarks/training.py --quick                                 minutes, width 128: does it run
    python benchmarks/training.py --width 512 --seeds 3 --output results.json
    python benchmarks/training.py --width 2560 --pairs 1000 --output results.json

Everything is made on the spot (`synthetic`), written as shards and as the guide's .pt files, and trained
through `projector.training.loop.train`. The guide's epochs are timed before and after ours in the same process and
multiplied by its 50; its final quality comes from one whole run, with the files read once and under bfloat16
autocast unless `--literal` is given (`guide_shortcuts` in the result compares both). The JSON is rewritten after
every step, so an interrupted run leaves what it had.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import guide
import numpy as np
import steps
import swap
import torch
from quality import Apply, Bench, guide_ridge, of_guide, of_projector, trained, untrained
from synthetic import Synthetic
from torch import nn

from projector.network.projector import Projector
from projector.options import Arch, TrainOptions

PARTS = ("quality", "closed", "steps", "ridge", "swap", "shortcuts")
ARCHES: tuple[Arch, ...] = ("linear", "mlp", "attention")
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided, by number of seeds
TARGETS = {
    "time_to_quality": {"linear": 30.0, "mlp": 30.0, "attention": 10.0},
    "resident_share_of_bare": 0.95,
    "mlp_pairs_per_second_over_guide": 3.5,
    "ridge_seconds_over_two_linear_epochs": 1.0,
}
RIDGES = {
    "ridge on means": TrainOptions(arch="ridge", align="mean"),
    "ridge position-wise, masks": TrainOptions(arch="ridge", align="pool"),
    "ridge soft": TrainOptions(arch="ridge", align="soft"),
}


def hardware() -> dict[str, Any]:
    """Where the figures come from."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":")
    return {
        "cpu": cpu.split(":")[1].strip(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def options_of(words: argparse.Namespace, arch: Arch, seed: int) -> TrainOptions:
    """The project's defaults; only `--epochs` and `--precision` are taken over."""
    changes = {name: getattr(words, name) for name in ("epochs", "precision") if getattr(words, name)}
    return TrainOptions(**{"objective": "embedding", "arch": arch, "seed": seed} | changes)


def race(bench: Bench, words: argparse.Namespace, arch: Arch, seed: int) -> dict[str, Any]:
    """Ours and the guide's loop on one architecture; the guide's epochs are timed before and after ours."""
    width = bench.world.width

    def guide_epoch() -> float:
        return guide.train(bench.files, arch, width, epochs=words.timed_epochs, seed=seed).seconds

    guide_seconds = guide_epoch()
    curve: list[dict[str, float]] = []
    clock = {"spent": 0.0, "since": time.perf_counter()}

    def look(_record: dict[str, Any], projector: Projector) -> None:
        clock["spent"] += time.perf_counter() - clock["since"]
        add_point(clock["spent"], projector)
        clock["since"] = time.perf_counter()

    def look_at_start(seconds: float, projector: Projector) -> None:
        begun = time.perf_counter()
        add_point(seconds, projector)
        clock["since"] += time.perf_counter() - begun

    def add_point(seconds: float, projector: Projector) -> None:
        figures = bench.measure({"": of_projector(projector, 0.0)}, words.look)[""]
        point = {name: figures[name] for name in ("mse_standardized", "content_probe")}
        curve.append({"seconds": round(seconds, 2), **point})

    options = options_of(words, arch, seed)
    projector, summary, _ = trained(bench, options, on_start=look_at_start, on_epoch=look)
    guide_seconds += guide_epoch()
    seconds = statistics.median(guide_seconds) * guide.EPOCHS
    network, target = guide_end(bench, words, arch, seed)
    reached = {
        figure: next((point["seconds"] for point in curve if at_least(figure, point, target)), None)
        for figure in ("mse_standardized", "content_probe")
    }
    slowest = None if None in reached.values() else max(filter(None, reached.values()))
    return {
        "projector": projector,
        "guide": network,
        "seconds": round(
            clock["spent"] + time.perf_counter() - clock["since"] if not curve else clock["spent"], 2
        ),
        "found": {
            "guide_ends_at": target,
            "guide_epoch_seconds": [round(value, 2) for value in guide_seconds],
            "guide_seconds": round(seconds, 1),
            "seconds_until_that": reached,
            "times_less": round(seconds / slowest, 1) if slowest else None,
            "target": TARGETS["time_to_quality"][arch],
            "curve": curve,
            "pairs_per_second": round(bench.pairs * summary["epochs"] / clock["spent"], 1),
            "training_pairs_per_second": summary["pairs_per_second"],
            "epochs": summary["epochs"],
            "guide_pairs_per_second": round(bench.pairs * guide.EPOCHS / seconds, 1),
        },
    }


def guide_end(
    bench: Bench, words: argparse.Namespace, arch: Arch, seed: int
) -> tuple[nn.Module | None, dict[str, float]]:
    """The guide's network after a whole run and what it reaches; its figures alone where an earlier run has them."""
    if words.guide_from:
        earlier = json.loads(words.guide_from.read_text())["by_seed"][seed]["time_to_quality"]
        return None, earlier[arch]["guide_ends_at"]
    run = guide.train(bench.files, arch, bench.world.width, seed=seed, shortcuts=not words.literal)
    ends_at = bench.measure(of_guide(run.network), words.look)
    target = ends_at.get(" (caption rows)", ends_at.get(""))
    assert target is not None
    return run.network, target


def at_least(figure: str, point: dict[str, float], target: dict[str, float]) -> bool:
    """Whether a point of our curve is as good as the guide's end."""
    if figure == "mse_standardized":
        return point[figure] <= target[figure]
    return point[figure] >= target[figure]


def closed_forms(bench: Bench) -> tuple[dict[str, Apply], dict[str, float]]:
    """Every method that takes no epochs, and the seconds of those that are fitted."""
    methods, seconds = untrained(bench), {}
    for name, options in RIDGES.items():
        projector, _, seconds[name] = trained(bench, options)
        methods[name] = of_projector(projector, 0.0)
        methods[f"{name}, variance restored"] = of_projector(projector, 1.0)
    begun = time.perf_counter()
    methods["guide pooling + ridge"] = guide_ridge(bench)
    seconds["guide pooling + ridge"] = time.perf_counter() - begun
    return methods, seconds


def quality(bench: Bench, words: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The table's rows for one seed, and the races."""
    methods, seconds = closed_forms(bench)
    races = {}
    for arch in words.arches:
        raced = race(bench, words, arch, seed)
        races[arch] = raced["found"]
        methods[arch] = of_projector(raced["projector"], 0.0)
        methods[f"{arch}, variance restored"] = of_projector(raced["projector"], 1.0)
        seconds[arch] = raced["seconds"]
        for suffix, method in of_guide(raced["guide"]).items() if raced["guide"] else ():
            methods[f"guide {arch}{suffix}"] = method
            seconds[f"guide {arch}{suffix}"] = raced["found"]["guide_seconds"]
        print(f"  seed {seed}, {arch}: {json.dumps(races[arch])}", file=sys.stderr, flush=True)
    table = bench.measure(methods)
    for name, row in table.items():
        took = seconds.get(name, seconds.get(name.removesuffix(", variance restored")))
        if took is not None:
            row["seconds"] = round(took, 2)
    return {"table": table, "time_to_quality": races}


def over_seeds(values: list[float]) -> dict[str, float | None]:
    """Mean and half a 95% t interval, None where there are too few or too many seeds."""
    known = len(values) in T_95
    half = T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5 if known else None
    return {"mean": round(statistics.mean(values), 4), "interval": half if half is None else round(half, 4)}


def with_intervals(tables: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Mean over seeds and half a 95% t interval, per method and figure."""
    rows: dict[str, dict[str, Any]] = {}
    for name in tables[0]:
        rows[name] = {}
        for figure in tables[0][name]:
            rows[name][figure] = over_seeds([table[name][figure] for table in tables if name in table])
    return rows


def shortcuts(bench: Bench, words: argparse.Namespace) -> dict[str, Any]:
    """Whether autocast changes what the guide's loop ends at."""
    found = {}
    for name, short in (("literal", False), ("bfloat16 autocast, files read once", True)):
        run = guide.train(bench.files, "mlp", bench.world.width, shortcuts=short)
        found[name] = bench.measure(of_guide(run.network))[""] | {"best_val_loss": min(run.losses)}
    return found


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--val", type=int, default=100)
    parser.add_argument("--test", type=int, default=200, help="held-out samples that are measured")
    parser.add_argument("--look", type=int, default=100, help="of those, measured after each epoch")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="of the project's networks; default: the options' own")
    parser.add_argument("--precision", help="of the project's networks; default: the options' own")
    parser.add_argument("--timed-epochs", type=int, default=2, help="of the guide, before and after ours")
    parser.add_argument("--ridge-pairs", type=int, default=5000)
    parser.add_argument("--arches", nargs="+", choices=ARCHES, default=list(ARCHES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["quality", "steps", "ridge", "swap"])
    parser.add_argument("--literal", action="store_true", help="the guide's whole runs without shortcuts")
    parser.add_argument(
        "--guide-from",
        type=Path,
        help="earlier result, same width, pairs and seeds, for the guide's final quality",
    )
    parser.add_argument("--quick", action="store_true", help="width 128, 200 pairs, 3 epochs")
    parser.add_argument("--output", type=Path, help="JSON file, rewritten after each part; default: stdout")
    options = parser.parse_args(words)
    if options.quick:
        small = {
            "width": 128,
            "pairs": 200,
            "val": 40,
            "test": 60,
            "look": 40,
            "epochs": 3,
            "ridge_pairs": 400,
        }
        vars(options).update(small | {"timed_epochs": 1})
    return options


def main(words: list[str]) -> None:
    """Run the benchmark."""
    options = parse(words)
    result: dict[str, Any] = {"hardware": hardware(), "options": vars(options) | {"output": None}}
    result["options"]["guide_from"] = options.guide_from and options.guide_from.name
    result["targets"] = TARGETS

    def keep(**found: Any) -> None:
        result.update(found)
        text = json.dumps(result | {"load_average_at_end": os.getloadavg()}, indent=1)
        options.output.write_text(text + "\n") if options.output else None

    seeds: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            world = Synthetic.realistic(options.width, seed)
            bench = Bench(Path(folder), world, options.pairs, options.val, options.test)
            if "quality" in options.parts:
                seeds.append(quality(bench, options, seed))
                keep(by_seed=seeds, table=with_intervals([found["table"] for found in seeds]))
            if "closed" in options.parts:
                seeds.append({"table": bench.measure(closed_forms(bench)[0])})
                keep(by_seed=seeds, table=with_intervals([found["table"] for found in seeds]))
            if "swap" in options.parts:
                found = swap.caption_swap(bench, lambda arch, s=seed: options_of(options, arch, s))
                keep(caption_swap=[*result.get("caption_swap", []), found])
            if seed == 0 and "steps" in options.parts:
                keep(steps=steps.shares(bench.source("train")))
            if seed == 0 and "ridge" in options.parts:
                keep(ridge=steps.ridge_against_linear(bench.source("train"), options.ridge_pairs))
            if seed == 0 and "shortcuts" in options.parts:
                keep(guide_shortcuts=shortcuts(bench, options))
    if not options.output:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
