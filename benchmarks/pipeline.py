"""The whole Ray pipeline with builders that stand in for GPUs by sleeping: how much of their time it uses.

    python benchmarks/pipeline.py --actors 1 8 --output benchmarks/results/pipeline.json
    python benchmarks/pipeline.py --actors 1 8 32 64 --output …              about 300 MB of memory an actor
    python benchmarks/pipeline.py --actors --planned 1000000                 the driver's memory alone

Everything is the build's own (plan, monitor, Ray Data, builders, writing, commits) but the models: a batch sleeps.
Builders begin together, once all are up: how long that takes is told apart. `steady` counts from there until the
first builder finds nothing left to do, `whole` until the last commit. More builders than fit here are simulated.
"""

import argparse
import io
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import ray
from PIL import Image
from training import hardware

from projector.making.batching import BatchMaker
from projector.making.shard_maker import InOneStage
from ray_jobs.building.run import complete
from ray_jobs.cli.run_options import BuildOptions
from ray_jobs.cluster.connect import StopRequest
from ray_jobs.cluster.crew import Crew
from ray_jobs.cluster.guard import Guard
from ray_jobs.planning.shard_schedule import simulate
from shards.dataset.dataset import Dataset
from shards.format.plan import PlannedSample, make_plan, shard_sizes
from shards.format.sample import Failure, Sample, make_sample
from shards.prompts.prompt import Prompt
from shards.stores.local import open_storage

PER_SHARD, BATCH, WIDTH, SIDE = 16, 2, 64, 64
SHARDS_EACH = 8
TARGETS = {1: 0.97, 8: 0.97, 32: 0.95, 64: 0.90}
START_SECONDS = 600.0


class Sleeping(BatchMaker[PlannedSample, Sample]):
    """Stands in for the models: a sample takes so many seconds of sleep.

    Args:
        folder: where builders tell that they are up, and when they slept.
        actors: that are waited for before the first sample.
        seconds: a sample.
    """

    def __init__(self, folder: Path, actors: int, seconds: float) -> None:
        super().__init__(BATCH)
        self._seconds = seconds
        self._log = folder / f"{time.time_ns()}-{random.getrandbits(32)}.log"
        self._log.touch()
        deadline = time.monotonic() + START_SECONDS
        while len(list(folder.glob("*.log"))) < actors and time.monotonic() < deadline:
            time.sleep(0.05)
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, format="PNG")
        self._image = buffer.getvalue()
        rows = np.random.default_rng(0).normal(size=(12, WIDTH)).astype(ml_dtypes.bfloat16)
        kind = np.array([0, 0, *[2] * 10], np.uint8)
        seen = np.array([0, 3, *[1] * 4, 3, 0, *[2] * 4], np.uint8)
        self._tensors = {"text": rows, "text.kind": kind, "vl.caption.-8": rows, "vl.caption.kind": seen}

    def _make(self, batch: Sequence[PlannedSample]) -> list[Sample | Failure]:
        begun = time.time()
        time.sleep(self._seconds * len(batch))
        with self._log.open("a") as file:
            file.write(f"{begun} {time.time()} {len(batch)}\n")
        return [
            make_sample(sample, image=self._image, image_format="png", tensors=self._tensors)
            for sample in batch
        ]


def sleeping(folder: str, actors: int, seconds: float) -> InOneStage:
    """What a builder of the benchmark makes shards with."""
    return InOneStage(Sleeping(Path(folder), actors, seconds))


def one(actors: int, seconds: float) -> dict[str, Any]:
    """A whole run with so many builders."""
    samples = actors * SHARDS_EACH * PER_SHARD
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        settings = {"text_modes": ["caption"], "layers": [-8], "width": SIDE, "height": SIDE}
        dataset = Dataset.create_or_open(open_storage(str(folder / "data")), settings, {})
        dataset.grow(samples, append=False)
        plan = make_plan(
            [Prompt(f"caption {index}") for index in range(samples)],
            seed=0,
            val_fraction=0,
            samples_per_shard=PER_SHARD,
            segments=(samples,),
        )
        ray.init(
            num_cpus=2,
            num_gpus=actors,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=500_000_000,
        )
        for noisy in ("ray", "ray.data"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        begun = time.time()
        try:
            code = complete(
                "build",
                dataset,
                plan,
                BuildOptions(output=dataset.storage.root, spool=str(folder / "spool"), stuck_seconds=3600),
                Crew(actors, 1.0),
                partial(sleeping, str(folder / "logs"), actors, seconds),
                0,
                Guard(StopRequest(), None),
            )
            ended = time.time()
        finally:
            ray.shutdown()
        assert code == 0
        return measured(sorted((folder / "logs").glob("*.log")), actors, samples, begun, ended)


def measured(logs: list[Path], actors: int, samples: int, begun: float, ended: float) -> dict[str, Any]:
    """What the builders' own times come to."""
    spans = [
        [tuple(float(part) for part in line.split()) for line in log.read_text().splitlines()] for log in logs
    ]
    spans = [own for own in spans if own]
    start, first_idle = min(own[0][0] for own in spans), min(own[-1][1] for own in spans)
    asleep = sum(max(0.0, min(end, first_idle) - first) for own in spans for first, end, _ in own)
    slept = sum(end - first for own in spans for first, end, _ in own)
    return {
        "actors": actors,
        "samples": samples,
        "seconds_to_first_sample": round(min(own[0][1] for own in spans) - begun, 1),
        "steady": round(asleep / (actors * (first_idle - start)), 4),
        "whole": round(slept / (actors * (ended - start)), 4),
        "target_steady": TARGETS.get(actors),
    }


def driver_memory(planned: int) -> dict[str, Any]:
    """Of a driver that has planned so many samples and handed them to its monitor; in a process of its own."""
    script = (
        "import resource, time; begun = time.time()\n"
        "import ray\n"
        "from shards.format.plan import make_plan\n"
        "from shards.prompts.builtin import builtin_prompts\n"
        "from ray_jobs.building.run import start_monitor\n"
        "from ray_jobs.cli.run_options import BuildOptions\n"
        "ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; begun = time.time()\n"
        "prompts = builtin_prompts().prompts\n"
        f"plan = make_plan(prompts, seed=0, val_fraction=0.05, samples_per_shard=64, segments=({planned},))\n"
        "planned = time.time()\n"
        "monitor = start_monitor(plan.shards, BuildOptions(), 'build')\n"
        "ray.get(monitor.snapshot.remote()); handed = time.time()\n"
        "n = len(plan.shards)\n"
        "rows = ray.data.from_items([{'row': i} for i in range(n)], override_num_blocks=n)\n"
        "print('\\n', n, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, planned - begun, "
        "handed - planned, time.time() - handed)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True
    )
    shards, before, after, plan, hand, rows = done.stdout.split()[-6:]
    return {
        "planned": planned,
        "shards": int(shards),
        "driver_mb": round(int(after) / 1e3),
        "driver_mb_before_the_plan": round(int(before) / 1e3),
        "seconds_to_plan": round(float(plan), 1),
        "seconds_to_hand_over": round(float(hand), 1),
        "seconds_for_rows": round(float(rows), 1),
    }


def simulated() -> list[dict[str, Any]]:
    """Idle share at sizes that no machine here has: 10% spread, and one straggler at half or a quarter of the speed."""
    rows = []
    for gpus in (1, 8, 64, 256, 1024):
        for slowest in (1.0, 0.5, 0.25):
            drawn = random.Random(0)
            speeds = [1 / drawn.uniform(0.9, 1.1) for _ in range(gpus)]
            speeds[0] /= slowest
            tapered, flat = (
                round(simulate(sizes, speeds).idle, 4)
                for sizes in (shard_sizes(gpus * 8 * 64, 64), [64] * gpus * 8)
            )
            rows.append({"gpus": gpus, "straggler": slowest, "idle": tapered, "idle_in_equal_shards": flat})
    return rows


def main(words: list[str]) -> None:
    """Run, and print or write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--actors", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=1.0, help="a sample")
    parser.add_argument("--planned", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, help="JSON file, rewritten after each part; default: stdout")
    options = parser.parse_args(words)
    result: dict[str, Any] = {"hardware": hardware(), "seconds_a_sample": options.seconds, "runs": []}

    def keep() -> None:
        if options.output:
            options.output.write_text(json.dumps(result, indent=1) + "\n")

    result["simulated"] = simulated()
    result["driver"] = driver_memory(options.planned)
    for actors in options.actors:
        result["runs"].append(one(actors, options.seconds))
        print(json.dumps(result["runs"][-1]), file=sys.stderr, flush=True)
        keep()
    keep()
    if not options.output:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
