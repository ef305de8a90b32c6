"""What a cluster may suffer, done for real to small ones: nodes with addresses of their own, an S3 server beside them.

    python benchmarks/namespaces.py                                 every event, about half an hour on two cores
    python benchmarks/namespaces.py link-cut worker-killed          some
    python benchmarks/namespaces.py --output benchmarks/results/namespaces.json --page docs/reliability.md

Each event has a new cluster (`benchmarks/lab.py`): a head that holds no work and two nodes of one CPU each, to which
builds are told that they have a GPU. The event comes once work is under way. Asserted for builds: every planned sample
exactly once, the bytes of an undisturbed build, and no shard that was committed before the event made anew. For
trainings: every epoch exactly once, and the curve of an undisturbed training within 1e-4.

Seconds to recover are counted from the event: for builds until all shards that were under way on the lost node are
committed, or until the next commit; for trainings the longest time
without an epoch; at a kill of driver or head they include the start of what takes its place.
"""

import argparse
import io
import json
import re
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import Job, Lab, enter, laboratory, until, why_not
from training import hardware

from shards.verify import verify

BUILD = "samples=128 samples_per_shard=8 val_fraction=0.25 height=192 width=192 steps=8 layers=-8"
BUILD += " text_modes=caption,none batch_size=2 dtype=float32"  # GPUs that are only declared would turn it to bfloat16
TRAIN = "arch=mlp epochs=300 batch_size=16 patience=null log=[]"
TOLERANCE = 1e-4  # of validation losses: sums over another number of workers are rounded in another order
PATIENCE = 420.0  # seconds for what should take one or two minutes; others may be using the machine
OBJECT = re.compile(r"(train|val)/pairs-.*\.(tar|parquet)$")
BEGIN, END = "<!-- namespaces: written by benchmarks/namespaces.py -->", "<!-- /namespaces -->"


def flags(job: str, options: str, **more: object) -> list[str]:
    """A job's command line."""
    pairs = [option.split("=", 1) for option in options.split()] + [[k, str(v)] for k, v in more.items()]
    return [job, *(word for name, value in pairs for word in (f"--{job}.{name}", value))]


@dataclass
class Trial:
    """One event, and what it is measured against.

    Attributes:
        lab: where.
        name: of the event, and of the folder in the store.
        facts: what was found out.
    """

    lab: Lab
    name: str
    facts: dict[str, Any] = field(default_factory=dict)

    def keys(self, prefix: str) -> dict[str, str]:
        """Objects under a prefix of this trial's folder, with what changes when they are put again."""
        pages = self.lab.client.get_paginator("list_objects_v2").paginate(
            Bucket="lab", Prefix=f"{self.name}/{prefix}"
        )
        return {
            item["Key"].removeprefix(f"{self.name}/"): f"{item['ETag']} {item['LastModified']}"
            for page in pages
            for item in page.get("Contents", ())
        }

    def get(self, key: str) -> bytes:
        """An object of this trial's folder."""
        return bytes(self.lab.client.get_object(Bucket="lab", Key=f"{self.name}/{key}")["Body"].read())

    # Builds

    def build(self) -> Job:
        """Start one, or go on with it."""
        return self.lab.job(flags("build", BUILD, output=f"s3://lab/{self.name}/data"))

    def commits(self) -> dict[str, str]:
        """Commits so far."""
        return self.keys("data/_commit/")

    def built(self, job: Job, reached: int) -> None:
        """Wait until so many shards are committed."""

        def enough() -> bool:
            if job.process.poll() is not None:
                raise RuntimeError(f"the build ended before the event: {job.log.read_text()[-2000:]}")
            return len(self.commits()) >= reached

        until(enough, f"no {reached} commits")
        self.facts["shards_before"] = len(self.commits())
        self._before = self.commits()

    def under_way(self, node: str) -> set[str]:
        """Shards that a node's builders are making: each has a folder of the spool open."""
        found = set()
        for pid in self.lab.pids(node, "ray::"):
            for handle in Path(f"/proc/{pid}/fd").glob("*"):
                try:
                    found |= set(re.findall(r"(?:train|val)-\d{6}", str(handle.readlink())))
                except OSError:
                    continue
        return found

    def committed(self, shards: set[str], since: float) -> None:
        """Note how long it took until all of them were, from a time on."""
        until(lambda: shards <= {Path(key).stem for key in self.commits()}, f"{shards} not made", PATIENCE)
        self.facts["recovered_seconds"] = round(time.monotonic() - since, 1)
        self.facts["shards_under_way"] = len(shards)

    def judge_build(self, reference: "Trial") -> None:
        """Compare what is in the store with the undisturbed build."""
        mine, theirs = self.samples(), reference.samples()
        after = self.commits()
        findings = verify(f"s3://lab/{self.name}/data")
        self.facts |= {
            "lost": len(theirs.keys() - mine.keys()),
            "duplicated": sum(mine.values()) - len(mine),
            "made_anew": sum(after.get(key) != value for key, value in self._before.items()),
            "same_bytes": self.contents() == reference.contents(),
            "problems": len(findings.problems),
        }
        good = {"lost": 0, "duplicated": 0, "made_anew": 0, "same_bytes": True, "problems": 0}
        assert {name: self.facts[name] for name in good} == good, self.facts

    def contents(self) -> dict[str, bytes]:
        """Every tar and parquet of the dataset."""
        return {key: self.get(key) for key in self.keys("data/") if OBJECT.search(key)}

    def samples(self) -> Counter[str]:
        """How often each sample stands in the dataset."""
        found: Counter[str] = Counter()
        for key, content in self.contents().items():
            if key.endswith(".tar"):
                with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                    found.update({name.split(".")[0] for name in tar.getnames()})
        return found

    # Trainings

    def train(self, workers: str = "1-2") -> Job:
        """Start one on the undisturbed dataset, or go on with it."""
        return self.lab.job(
            flags(
                "train",
                TRAIN,
                data="s3://lab/reference/data",
                output=f"s3://lab/{self.name}/run",
                workers=workers,
            )
        )

    def epochs(self, place: str = "run") -> list[dict[str, Any]]:
        """Epochs so far."""
        try:
            text = self.get(f"{place}/metrics.jsonl").decode()
        except self.lab.client.exceptions.NoSuchKey:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def trained(self, job: Job, reached: int, place: str = "run") -> None:
        """Wait until so many epochs are over."""

        def enough() -> bool:
            if job.process.poll() is not None:
                raise RuntimeError(f"the training ended before the event: {job.log.read_text()[-2000:]}")
            return len(self.epochs(place)) >= reached

        until(enough, f"no {reached} epochs")
        self.facts["epochs_before"] = len(self.epochs(place))

    def pause(self, job: Job) -> None:
        """Watch a training to its end, and note the longest time without an epoch."""
        longest, seen, since = 0.0, self.facts["epochs_before"], time.monotonic()
        while job.process.poll() is None and time.monotonic() - since < PATIENCE:
            time.sleep(0.2)
            if (now := len(self.epochs())) > seen:
                longest, seen, since = max(longest, time.monotonic() - since), now, time.monotonic()
        job.wait(1)
        self.facts["recovered_seconds"] = round(longest, 1)

    def judge_training(self, reference: "Trial") -> None:
        """Compare the curve with that of the undisturbed training."""
        mine, theirs = self.epochs(), reference.epochs()
        numbers = Counter(line["epoch"] for line in mine)
        off = [abs(a["val_loss"] / b["val_loss"] - 1) for a, b in zip(mine, theirs, strict=True)]
        self.facts |= {
            "lost": len({line["epoch"] for line in theirs} - numbers.keys()),
            "duplicated": sum(numbers.values()) - len(numbers),
            "curve_off_by": float(f"{max(off):.1g}"),
            "workers_in_the_end": json.loads(self.get("run/summary.json"))["world_size"],
        }
        assert (self.facts["lost"], self.facts["duplicated"]) == (0, 0), self.facts
        assert self.facts["curve_off_by"] <= TOLERANCE, self.facts


# Events on a build


def raylet_killed(trial: Trial) -> None:
    """kill -9 of a node's raylet"""
    job = trial.build()
    trial.built(job, 3)
    shards, since = trial.under_way("n2"), time.monotonic()
    assert trial.lab.kill("n2", "raylet/raylet ") == 1
    trial.committed(shards, since)
    job.wait(PATIENCE)


def link_cut(trial: Trial) -> None:
    """a node's packets are lost in both directions, none is refused"""
    job = trial.build()
    trial.built(job, 3)
    shards, since = trial.under_way("n2"), time.monotonic()
    trial.lab.cut("n2")
    try:
        trial.committed(shards, since)
        job.wait(PATIENCE)
    finally:
        trial.lab.heal("n2")


def link_cut_ray_defaults(trial: Trial) -> None:
    """the same with Ray's own liveness settings"""
    trial.lab.cluster("n1", "n2", gpus=1, liveness={})
    link_cut(trial)


def link_slow(trial: Trial) -> None:
    """a node's link holds 2 Mbit/s, with half a second of queue"""
    job = trial.build()
    trial.built(job, 3)
    shards, since = trial.under_way("n2"), time.monotonic()
    trial.lab.slow("n2", 2)
    try:
        trial.committed(shards, since)
        job.wait(PATIENCE)
    finally:
        trial.lab.fast("n2")


def rolling_restart(trial: Trial) -> None:
    """each node stopped by SIGTERM and started again, one after the other"""
    job = trial.build()
    trial.built(job, 3)
    shards, since = trial.under_way("n1") | trial.under_way("n2"), time.monotonic()
    for name in ("n1", "n2"):
        trial.lab.stop(name)
        trial.lab.start(name, gpus=1)
        until(lambda name=name: trial.lab.pids(name, "ray::"), f"{name} does not come back")
    trial.committed(shards, since)
    job.wait(PATIENCE)


def spot_notice(trial: Trial) -> None:
    """notice of 20 s, then the node is killed"""
    job = trial.build()
    trial.built(job, 3)
    shards, since = trial.under_way("n2"), time.monotonic()
    trial.lab.drain("n2", 20)
    time.sleep(20)
    shards |= trial.under_way("n2")
    trial.lab.kill("n2")
    trial.committed(shards, since)
    job.wait(PATIENCE)


def driver_killed(trial: Trial) -> None:
    """kill -9 of the driver, submitted again"""
    job = trial.build()
    trial.built(job, 3)
    since = time.monotonic()
    job.kill()
    again = trial.build()
    until(lambda: len(trial.commits()) > trial.facts["shards_before"], "no further commit", PATIENCE)
    trial.facts["recovered_seconds"] = round(time.monotonic() - since, 1)
    again.wait(PATIENCE)


def head_killed(trial: Trial) -> None:
    """kill -9 of everything on the head, driver and all; a new cluster, submitted again"""
    trial.built(trial.build(), 3)
    since = time.monotonic()
    trial.lab.kill("head")
    trial.lab.cluster("n1", "n2", gpus=1)
    again = trial.build()
    until(lambda: len(trial.commits()) > trial.facts["shards_before"], "no further commit", PATIENCE)
    trial.facts["recovered_seconds"] = round(time.monotonic() - since, 1)
    again.wait(PATIENCE)


# Events on a training


def worker_killed(trial: Trial) -> None:
    """kill -9 of a training worker"""
    job = trial.train()
    trial.trained(job, 5)
    assert trial.lab.kill("n2", "ray::RayTrainWorker|ray::.*TrainWorker") == 1
    trial.pause(job)


def trainer_node_killed(trial: Trial) -> None:
    """kill -9 of a raylet: from two workers to one"""
    job = trial.train()
    trial.trained(job, 5)
    assert trial.lab.kill("n2", "raylet/raylet ") == 1
    trial.pause(job)
    assert json.loads(trial.get("run/summary.json"))["world_size"] == 1


def trainer_link_cut(trial: Trial) -> None:
    """packets of a worker's node are lost: from two workers to one"""
    job = trial.train()
    trial.trained(job, 5)
    trial.lab.cut("n2")
    try:
        trial.pause(job)
    finally:
        trial.lab.heal("n2")


def trainer_node_joins(trial: Trial) -> None:
    """a node joins: from one worker to two"""
    trial.lab.cluster("n1")
    job = trial.train()
    trial.trained(job, 5)
    trial.lab.start("n2")
    trial.pause(job)
    assert json.loads(trial.get("run/summary.json"))["world_size"] == 2


def trainer_spot_notice(trial: Trial) -> None:
    """notice of 60 s: the state is saved and one worker goes on at once"""
    job = trial.train()
    trial.trained(job, 5)
    trial.lab.drain("n2", 60)
    trial.pause(job)
    assert "going on without it" in job.log.read_text()
    assert json.loads(trial.get("run/summary.json"))["world_size"] == 1


def trainer_driver_killed(trial: Trial) -> None:
    """kill -9 of the driver, submitted again"""
    job = trial.train()
    trial.trained(job, 5)
    job.kill()
    trial.pause(trial.train())


BUILDS = {
    "raylet-killed": raylet_killed,
    "link-cut": link_cut,
    "link-cut-ray-defaults": link_cut_ray_defaults,
    "link-slow": link_slow,
    "rolling-restart": rolling_restart,
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


def run(lab: Lab, names: Sequence[str], keep: Callable[[dict[str, Any]], None]) -> None:
    """The undisturbed runs, then the events, each with a row for `keep`."""
    reference = Trial(lab, "reference")
    lab.cluster("n1", "n2", gpus=1)
    begun = time.monotonic()
    reference.build().wait(PATIENCE)
    keep({"event": "undisturbed build", "seconds": round(time.monotonic() - begun, 1)})
    if set(names) & TRAININGS.keys():
        lab.cluster("n1", "n2")
        begun = time.monotonic()
        reference.train().wait(PATIENCE)
        keep({"event": "undisturbed training", "seconds": round(time.monotonic() - begun, 1)})
    for name in names:
        trial, event = Trial(lab, name), (BUILDS | TRAININGS)[name]
        lab.cluster("n1", "n2", gpus=int(name in BUILDS))
        begun = time.monotonic()
        event(trial)
        trial.facts["seconds"] = round(time.monotonic() - begun, 1)
        (trial.judge_build if name in BUILDS else trial.judge_training)(reference)
        keep({"event": name, "what": event.__doc__, **trial.facts})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| event | what happens | lost | duplicated | seconds to recover |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "lost" in row:
            told = [row[name] for name in ("event", "what", "lost", "duplicated")]
            lines.append(f"| {' | '.join(map(str, told))} | {row['recovered_seconds']:.0f} |")
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Run, and print or write what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "events", nargs="*", metavar="EVENT", help=f"{', '.join(BUILDS | TRAININGS)}; default: all"
    )
    parser.add_argument("--output", type=Path, help="JSON file, rewritten after each event; default: stdout")
    parser.add_argument("--page", type=Path, help="Markdown page whose table is replaced")
    options = parser.parse_args(words)
    names = options.events or [*BUILDS, *TRAININGS]
    if unknown := [name for name in names if name not in BUILDS | TRAININGS]:
        parser.error(f"{unknown[0]!r} is no event; allowed: {', '.join(BUILDS | TRAININGS)}")
    if reason := why_not():
        parser.error(reason)
    if (code := enter([__file__, *words])) is not None:
        return code
    result: dict[str, Any] = {"hardware": hardware(), "build": BUILD, "train": TRAIN, "events": []}

    def keep(row: dict[str, Any]) -> None:
        result["events"].append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if options.output:
            options.output.write_text(json.dumps(result, indent=1) + "\n")

    with laboratory() as lab:
        run(lab, names, keep)
    if options.page:
        before, _, rest = options.page.read_text().partition(BEGIN)
        options.page.write_text(f"{before}{BEGIN}\n{table(result['events'])}\n{END}{rest.partition(END)[2]}")
    if not options.output:
        print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
