"""What a cluster may suffer, done for real to small ones: nodes with addresses of their own, an S3 server beside them.

    python benchmarks/namespaces.py                                 every event, about half an hour on two cores
    python benchmarks/namespaces.py link-cut worker-killed          some
    python benchmarks/namespaces.py --output benchmarks/results/namespaces.json --page docs/reliability.md

Each event has a new cluster (`lab.py`, on `network.py`): a head that holds no work and two nodes of one CPU each, to
which builds are told that they have a GPU. The event comes once work is under way. Asserted for builds: every planned
sample exactly once, the bytes of an undisturbed build, and no shard that was committed before the event made anew. For
trainings: every epoch exactly once, and the curve of an undisturbed training within 1e-4. For a ladder both.

Seconds to recover are counted from the event. Builds: until all shards that were under way on the lost node are
committed, until the new node has committed its first one, or until the job that was submitted again has. Trainings:
the longest time without an epoch.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab import Lab, laboratory
from network import cut, enter, fast, heal, pids, slow, why_not
from training import hardware
from trial import BUILD, LADDER, PATIENCE, TRAIN, Trial

RAYLET = "raylet/raylet "
BEGIN, END = "<!-- namespaces: written by benchmarks/namespaces.py -->", "<!-- /namespaces -->"


def raylet_killed(trial: Trial) -> None:
    """kill -9 of a node's raylet"""
    job = trial.build()
    trial.built(job, 3)
    shards, since = trial.under_way("n2"), time.monotonic()
    assert trial.lab.kill("n2", RAYLET) == 1
    trial.made_elsewhere(job, shards, since)
    job.wait(PATIENCE)


def link_cut(trial: Trial) -> None:
    """a node's packets are lost in both directions, none is refused"""
    job = trial.build()
    trial.built(job, 3)
    shards, since = trial.under_way("n2"), time.monotonic()
    cut("n2")
    try:
        trial.made_elsewhere(job, shards, since)
        job.wait(PATIENCE)
    finally:
        heal("n2")


def link_cut_slow_to_tell(trial: Trial) -> None:
    """the same with Ray's own liveness settings"""
    trial.lab.cluster("n1", "n2", gpus=1, liveness={})
    link_cut(trial)


def link_slow(trial: Trial) -> None:
    """a node's link holds 2 Mbit/s, with half a second of queue"""
    job = trial.build()
    trial.built(job, 3)
    shards, since = trial.under_way("n2"), time.monotonic()
    slow("n2", 2)
    try:
        trial.made_elsewhere(job, shards, since)
        job.wait(PATIENCE)
    finally:
        fast("n2")


def rolling_restart(trial: Trial) -> None:
    """each node stopped by SIGTERM and started again, one after the other"""
    job = trial.build()
    trial.built(job, 3)
    shards, since = trial.under_way("n1") | trial.under_way("n2"), time.monotonic()
    for name in ("n1", "n2"):
        trial.lab.stop(name)
        trial.lab.start(name, gpus=1)
        trial.wait(job, lambda name=name: pids(name, "ray::MapWorker"), f"a builder on {name}")  # type: ignore[misc]
    trial.made_elsewhere(job, shards, since)
    job.wait(PATIENCE)


def node_joins(trial: Trial) -> None:
    """a node joins while one builds"""
    trial.lab.cluster("n1", gpus=1)
    job = trial.build()
    trial.built(job, 3)
    since = time.monotonic()
    trial.lab.start("n2", gpus=1)
    trial.wait(job, lambda: trial.committed_by("n2"), "a commit of the new node")
    trial.recovered(since)
    job.wait(PATIENCE)


def spot_notice(trial: Trial) -> None:
    """notice of 20 s, then the node is killed"""
    job = trial.build()
    trial.built(job, 3)
    since = time.monotonic()
    trial.lab.drain("n2", 20)
    time.sleep(20)
    shards = trial.under_way("n2")
    trial.lab.kill("n2")
    trial.made_elsewhere(job, shards, since)
    job.wait(PATIENCE)


def driver_killed(trial: Trial) -> None:
    """kill -9 of the driver; submitted again"""
    job = trial.build()
    trial.built(job, 3)
    since = time.monotonic()
    job.kill()
    trial.goes_on(trial.build(), since)


def head_killed(trial: Trial) -> None:
    """kill -9 of everything on the head, the driver too; a new cluster, submitted again"""
    trial.built(trial.build(), 3)
    since = time.monotonic()
    trial.lab.kill("head")
    trial.lab.cluster("n1", "n2", gpus=1)
    trial.goes_on(trial.build(), since)


def worker_killed(trial: Trial) -> None:
    """kill -9 of a training worker"""
    job = trial.train()
    trial.trained(job, 5)
    assert trial.lab.kill("n2", "TrainWorker") == 1
    trial.longest_pause(job)


def trainer_node_killed(trial: Trial) -> None:
    """kill -9 of a training node's raylet: from two workers to one"""
    job = trial.train()
    trial.trained(job, 5)
    assert trial.lab.kill("n2", RAYLET) == 1
    trial.longest_pause(job)
    assert trial.summary()["world_size"] == 1


def trainer_link_cut(trial: Trial) -> None:
    """packets of a training node are lost: from two workers to one"""
    job = trial.train()
    trial.trained(job, 5)
    cut("n2")
    try:
        trial.longest_pause(job)
    finally:
        heal("n2")
    assert trial.summary()["world_size"] == 1


def trainer_node_joins(trial: Trial) -> None:
    """a node joins a training: from one worker to two"""
    trial.lab.cluster("n1")
    job = trial.train()
    trial.trained(job, 5)
    trial.lab.start("n2")
    trial.longest_pause(job)
    assert trial.summary()["world_size"] == 2


def trainer_spot_notice(trial: Trial) -> None:
    """notice of 60 s to a training node: the state is saved, one worker goes on at once"""
    job = trial.train()
    trial.trained(job, 5)
    trial.lab.drain("n2", 60)
    trial.longest_pause(job)
    assert "going on without it" in job.log.read_text()
    assert trial.summary()["world_size"] == 1


def trainer_driver_killed(trial: Trial) -> None:
    """kill -9 of a training's driver; submitted again"""
    job = trial.train()
    trial.trained(job, 5)
    job.kill()
    trial.longest_pause(trial.train())


def ladder(trial: Trial) -> None:
    """a ladder: a node killed in its second build and started again, a worker killed in its second training"""
    job = trial.climb()
    trial.wait(job, lambda: trial.keys("linear/eval.json"), "the first step")
    trial.built(job, len(trial.commits()) + 2)
    shards, since = trial.under_way("n2"), time.monotonic()
    assert trial.lab.kill("n2", RAYLET) == 1
    trial.made_elsewhere(job, shards, since)
    trial.lab.start("n2")
    trial.trained(job, 5)
    assert trial.lab.kill("n2", "TrainWorker") + trial.lab.kill("n1", "TrainWorker")
    job.wait(PATIENCE)


BUILDS = {
    "raylet-killed": raylet_killed,
    "link-cut": link_cut,
    "link-cut-slow-to-tell": link_cut_slow_to_tell,
    "link-slow": link_slow,
    "rolling-restart": rolling_restart,
    "node-joins": node_joins,
    "spot-notice": spot_notice,
    "driver-killed": driver_killed,
    "head-killed": head_killed,
}
TRAININGS = {
    "worker-killed": worker_killed,
    "trainer-node-killed": trainer_node_killed,
    "trainer-link-cut": trainer_link_cut,
    "trainer-node-joins": trainer_node_joins,
    "trainer-spot-notice": trainer_spot_notice,
    "trainer-driver-killed": trainer_driver_killed,
}
LADDERS = {"ladder": ladder}
EVENTS = BUILDS | TRAININGS | LADDERS


def run(lab: Lab, names: Sequence[str], keep: Callable[[dict[str, Any]], None]) -> None:
    """The undisturbed runs, then the events, each with a row for `keep`."""
    reference, climbed = Trial(lab, "reference"), Trial(lab, "ladder-undisturbed", "mlp")
    undisturbed = [("build", 1, reference.build, BUILDS | TRAININGS)]
    undisturbed += [("training", 0, reference.train, TRAININGS), ("ladder", 0, climbed.climb, LADDERS)]
    for what, gpus, start, wanted in undisturbed:
        if set(names) & wanted.keys():
            lab.cluster("n1", "n2", gpus=gpus)
            begun = time.monotonic()
            start().wait(PATIENCE)
            keep({"event": f"undisturbed {what}", "seconds": round(time.monotonic() - begun, 1)})
    for name in names:
        trial = Trial(lab, name, "mlp" if name in LADDERS else "run")
        lab.cluster("n1", "n2", gpus=int(name in BUILDS))
        begun = time.monotonic()
        EVENTS[name](trial)
        trial.facts["seconds"] = round(time.monotonic() - begun, 1)
        if name not in TRAININGS:
            trial.judge_build(climbed if name in LADDERS else reference)
        if name not in BUILDS:
            trial.judge_training(climbed if name in LADDERS else reference)
        keep({"event": name, "what": EVENTS[name].__doc__, **trial.facts})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The events as a Markdown table."""
    lines = ["| event | lost | duplicated | seconds to recover |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{row['event']}`: {row['what']} | {row['lost']} | {row['duplicated']} | {row['recovered_seconds']:.0f} |"
        for row in rows
        if "lost" in row
    ]
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Run, and print or write what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("events", nargs="*", metavar="EVENT", help=f"{', '.join(EVENTS)}; default: all")
    parser.add_argument("--output", type=Path, help="JSON file, rewritten after each event; default: stdout")
    parser.add_argument("--page", type=Path, help="Markdown page whose table is replaced")
    options = parser.parse_args(words)
    names = options.events or list(EVENTS)
    if unknown := [name for name in names if name not in EVENTS]:
        parser.error(f"{unknown[0]!r} is no event; allowed: {', '.join(EVENTS)}")
    if options.page and options.events:
        parser.error("--page takes the table of all events; leave the names out, or --page")
    if reason := why_not():
        parser.error(reason)
    if (code := enter([__file__, *words])) is not None:
        return code
    result: dict[str, Any] = {
        "hardware": hardware(),
        "build": BUILD,
        "train": TRAIN,
        "ladder": LADDER,
        "events": [],
    }

    def keep(row: dict[str, Any]) -> None:
        result["events"].append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if options.output:
            options.output.write_text(json.dumps(result, indent=1) + "\n")

    with laboratory() as lab:
        run(lab, names, keep)
    if options.page:
        before, _, rest = options.page.read_text().partition(BEGIN)
        page = f"{before}{BEGIN}\n{table(result['events'])}\n{END}{rest.partition(END)[2]}"
        options.page.write_text(page)
    if not options.output:
        print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
