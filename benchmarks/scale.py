"""What a build of very many pairs on very many GPUs would ask of the parts that there is only one of.

    python benchmarks/scale.py --output benchmarks/results/scale.json

Measured here, in one process and one core each: how many builders the monitor can serve, as plain Python and as a Ray
actor with callers in other processes; what a commit of real size takes to be read by a driver that comes back and has
no manifest of it. Simulated: the share of GPU time that is idle with the plan's real shard sizes
(`ray_jobs/planning/shard_schedule.py`). Counted: requests of one shard to S3 (moto). The arithmetic from there is in
docs/reliability.md.
"""

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from resume import note_requests
from servers import serving
from training import hardware

from ray_jobs.building.failure_budget import FailureBudget
from ray_jobs.building.messages import Outcome
from ray_jobs.building.monitor import Monitor
from ray_jobs.planning.shard_schedule import simulate
from shards.dataset.dataset import Dataset
from shards.format.commit import Commit, Maker
from shards.format.plan import PlannedShard, make_plan, shard_sizes
from shards.format.statistics import RunningStatistics
from shards.prompts.prompt import Prompt
from shards.stores.local import open_storage
from shards.stores.store import json_object

PER_SHARD = 64
WIDTH = 2560  # of the hidden states
REPORTS = 10  # of a shard: one before each batch, and at its ends
SPREAD = 0.1  # of the builders' speeds, to both sides
MAKER = Maker("run", "n" * 56, "host", "10.0.0.1", "a" * 32, 12345, "01000000", "worker-" + "0" * 70)


def planned(samples: int, per_shard: int = PER_SHARD) -> list[PlannedShard]:
    """Shards of a plan of so many samples."""
    prompts = [
        Prompt(f"a caption of ordinary length, about a thing, number {index}") for index in range(samples)
    ]
    return list(
        make_plan(prompts, seed=0, val_fraction=0.05, samples_per_shard=per_shard, segments=(samples,)).shards
    )


def monitor_alone(builders: int, samples: int) -> dict[str, Any]:
    """Calls a second that a monitor answers, with so many builders at work from begin to end of the plan."""
    shards = planned(samples)
    monitor = Monitor(shards, FailureBudget("build", 0.5, 50))
    calls, begun = 0, time.perf_counter()
    held: dict[str, PlannedShard] = {}
    attempts = 0
    spent: Counter[str] = Counter()

    def call(name: str, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        start = time.perf_counter()
        answer = getattr(monitor, name)(*arguments, **options)
        spent[name] += time.perf_counter() - start
        return answer

    while True:
        while len(held) < builders:
            attempt, maker = f"attempt {attempts}", replace(MAKER, actor=f"{attempts % builders}")
            task = call("begin", attempt, maker)
            if task is None:
                break
            held[attempt] = task.shard
            attempts += 1
        if not held:
            break
        for attempt, shard in list(held.items()):
            size = len(shard.samples)
            for part in range(1, REPORTS + 1):
                call("report", attempt, made=size * part // REPORTS, failed=0, at_work=("x",))
            call("may_publish", attempt)
            call("end", attempt, Outcome.COMMITTED)
            del held[attempt]
        for question in ("snapshot", "take_events"):
            call(question)
        call("stuck", 60.0)
    seconds = sum(spent.values())
    return {
        "builders": builders,
        "samples": samples,
        "shards": len(shards),
        "calls": calls,
        "calls_per_second": round(calls / seconds),
        "microseconds": {name: round(1e6 * value / calls, 2) for name, value in spent.most_common()},
        "seconds": round(time.perf_counter() - begun, 1),
    }


@ray.remote(num_cpus=0)
class Caller:
    """Builders in another process, many at once."""

    def call(self, monitor: Any, first: int, builders: int, rounds: int) -> float:
        """Report for each of its builders, so many times; all answers of a round are waited for together."""
        names = [f"{number}" for number in range(first, first + builders)]
        ray.get([monitor.begin.remote(name, replace(MAKER, actor=name)) for name in names])
        begun = time.perf_counter()
        for done in range(rounds):
            ray.get([monitor.report.remote(name, made=done, failed=0, at_work=("x",)) for name in names])
        return time.perf_counter() - begun


def monitor_as_actor(builders: int, callers: int = 2, rounds: int = 30) -> dict[str, Any]:
    """Reports a second that the monitor answers as an actor, from callers in processes of their own."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        monitor: Any = ray.remote(num_cpus=0)(Monitor).remote(
            planned(builders * PER_SHARD * 2), FailureBudget("build", 0.5, 50)
        )
        each = builders // callers
        begun = time.perf_counter()
        running = [
            Caller.remote().call.remote(monitor, index * each, each, rounds)  # type: ignore[attr-defined]
            for index in range(callers)
        ]
        seconds = max(ray.get(running))
        return {
            "builders": builders,
            "callers": callers,
            "reports": each * callers * rounds,
            "reports_per_second": round(each * callers * rounds / seconds),
            "seconds": round(time.perf_counter() - begun, 1),
        }
    finally:
        ray.shutdown()


def requests_of_a_shard() -> dict[str, int]:
    """What making one shard asks of S3, beside what a builder asks once."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from shards.dataset.publish import Circumstances, adopt
    from tests_support import SETTINGS, commit_shard

    requests: list[str] = []
    note_requests(requests)
    shards = planned(4, 1)
    with serving("moto") as root, tempfile.TemporaryDirectory() as spool:
        dataset = Dataset.create_or_open(open_storage(f"{root}/data"), SETTINGS, {})
        dataset.grow(4, append=False)
        commit_shard(dataset, shards[0], Path(spool))  # what is asked once is over with the first
        requests.clear()
        dataset.is_committed(shards[1].name)
        adopt(dataset, shards[1].name, shards[1].slice_hash, Circumstances("x"))
        commit_shard(dataset, shards[1], Path(spool))
    return dict(Counter(requests))


def reading_a_commit(rounds: int = 200) -> dict[str, Any]:
    """Size of a commit at width 2560, one layer and two text modes, and the time its text takes to become a record."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from tests_support import SETTINGS, commit_shard

    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset.create_or_open(open_storage(f"{folder}/data"), SETTINGS, {})
        dataset.grow(4, append=False)
        (shard, *_) = planned(4, 1)
        commit_shard(dataset, shard, Path(folder))
        content = dataset.commit_file(shard.name)
    wide = RunningStatistics(WIDTH)
    wide.update(np.random.default_rng(0).standard_normal((8, WIDTH)).astype(np.float32))
    content["statistics"] = {name: wide.to_json() for name in content["statistics"] if ".-6/" not in name}
    text = json_object(content)
    begun = time.perf_counter()
    for _ in range(rounds):
        Commit.from_json(json.loads(text))
    seconds = (time.perf_counter() - begun) / rounds
    return {
        "statistics": len(content["statistics"]),
        "bytes": len(text),
        "milliseconds": round(1e3 * seconds, 2),
    }


def idle(gpus: int, samples: int) -> dict[str, Any]:
    """A run played through: builders of slightly different speeds, one at half of it."""
    drawn = random.Random(0)
    speeds = [1 / drawn.uniform(1 - SPREAD, 1 + SPREAD) for _ in range(gpus)]
    speeds[0] *= 2
    sizes = shard_sizes(samples, PER_SHARD)
    forecast = simulate(sizes, speeds)
    return {"gpus": gpus, "samples": samples, "shards": len(sizes), "idle": round(forecast.idle, 4)}


def main(words: list[str]) -> None:
    """Run, and print or write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--builders", type=int, nargs="*", default=[8, 64, 256, 1000])
    parser.add_argument("--output", type=Path, help="JSON file; default: stdout")
    options = parser.parse_args(words)
    result = {
        "hardware": hardware(),
        "requests_of_a_shard": requests_of_a_shard(),
        "commit": reading_a_commit(),
        "idle": [idle(gpus, options.samples) for gpus in options.builders],
        "monitor": [monitor_alone(count, options.samples) for count in options.builders],
        "monitor_as_actor": [monitor_as_actor(count) for count in options.builders],
    }
    text = json.dumps(result, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
