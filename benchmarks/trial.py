"""One event of `namespaces.py`: the jobs it disturbs, and whether what is in the store afterwards is right."""

import io
import json
import re
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import Job, Lab, until
from network import ADDRESSES, pids

from shards.tools.verify import verify

BUILD = (
    "samples=320 samples_per_shard=8 val_fraction=0.25 height=192 width=192 steps=8 layers=-8 "
    "text_modes=caption,none batch_size=2 dtype=float32"  # GPUs that are only declared would turn it to bfloat16
)
TRAIN = "arch=mlp epochs=200 batch_size=16 patience=null log=[]"
LADDER = "samples=[64,128] gates=report curve_points=3 curve_seeds=1"
STEP = "epochs=100 batch_size=16 patience=null log=[]"  # of the ladder
TOLERANCE = 1e-4  # of validation losses: sums over another number of workers are rounded in another order
PATIENCE = 900.0  # seconds for what should take one to three minutes; others may be using the machine
OBJECT = re.compile(r"(train|val)/pairs-.*\.(tar|parquet)$")


def flags(section: str, options: str, **more: object) -> list[str]:
    """Options of a section as they stand on a command line."""
    pairs = [option.split("=", 1) for option in options.split()] + [[k, str(v)] for k, v in more.items()]
    return [word for name, value in pairs for word in (f"--{section}.{name}", value)]


@dataclass
class Trial:
    """One event, and what it is measured against.

    Attributes:
        lab: where.
        name: of the event, and of its folder in the store.
        run: in that folder, what the training leaves.
        facts: what was found out.
    """

    lab: Lab
    name: str
    run: str = "run"
    facts: dict[str, Any] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)

    # Jobs: started, or gone on with

    def build(self) -> Job:
        """A build."""
        return self.lab.job(["build", *flags("build", BUILD, output=f"s3://lab/{self.name}/data")])

    def train(self) -> Job:
        """A training of one or two workers, on the undisturbed dataset."""
        output = f"s3://lab/{self.name}/{self.run}"
        return self.lab.job(
            ["train", *flags("train", TRAIN, data="s3://lab/reference/data", output=output, workers="1-2")]
        )

    def climb(self) -> Job:
        """A ladder of two steps, which builds, trains and evaluates twice."""
        words = flags("ladder", LADDER, output=f"s3://lab/{self.name}")
        words += flags("build", BUILD.partition(" ")[2]) + flags("train", STEP, workers="1-2")
        return self.lab.job(["ladder", *words])

    # The store

    def keys(self, prefix: str) -> dict[str, str]:
        """Objects of this trial under a prefix, with what changes when they are put again."""
        pages = self.lab.client.get_paginator("list_objects_v2").paginate(
            Bucket="lab", Prefix=f"{self.name}/{prefix}"
        )
        return {
            item["Key"].removeprefix(f"{self.name}/"): f"{item['ETag']} {item['LastModified']}"
            for page in pages
            for item in page.get("Contents", ())
        }

    def get(self, key: str) -> bytes:
        """An object of this trial."""
        return bytes(self.lab.client.get_object(Bucket="lab", Key=f"{self.name}/{key}")["Body"].read())

    def commits(self) -> dict[str, str]:
        """Commits so far."""
        return self.keys("data/_commit/")

    def contents(self) -> dict[str, bytes]:
        """Every tar and parquet of the dataset."""
        return {key: self.get(key) for key in self.keys("data/") if OBJECT.search(key)}

    def epochs(self) -> list[dict[str, Any]]:
        """Epochs so far."""
        try:
            text = self.get(f"{self.run}/metrics.jsonl").decode()
        except self.lab.client.exceptions.NoSuchKey:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def summary(self) -> dict[str, Any]:
        """Of the training."""
        return dict(json.loads(self.get(f"{self.run}/summary.json")))

    # Before the event

    def wait(self, job: Job, condition: Callable[[], object], what: str) -> None:
        """Wait for something that a running job is to do."""

        def met() -> bool:
            if condition():
                return True
            if job.process.poll() is not None:
                raise RuntimeError(f"{what}: the job ended before; {job.log.read_text()[-2000:]}")
            return False

        until(met, what, PATIENCE)

    def built(self, job: Job, reached: int) -> None:
        """Wait until so many shards are committed."""
        self.wait(job, lambda: len(self.commits()) >= reached, f"{reached} commits")
        self.before = self.commits()
        self.facts["shards_before"] = len(self.before)

    def trained(self, job: Job, reached: int) -> None:
        """Wait until so many epochs are over."""
        self.wait(job, lambda: len(self.epochs()) >= reached, f"{reached} epochs")
        self.facts["epochs_before"] = len(self.epochs())

    def under_way(self, node: str) -> set[str]:
        """Shards that a node's builders are making: each has a folder of the spool open."""
        found: set[str] = set()
        for pid in pids(node, "ray::"):
            for handle in Path(f"/proc/{pid}/fd").glob("*"):
                try:
                    found |= set(re.findall(r"(?:train|val)-\d{6}", str(handle.readlink())))
                except OSError:
                    continue
        return found

    # After it

    def recovered(self, since: float) -> None:
        """Note the seconds from a time until now."""
        self.facts["recovered_seconds"] = round(time.monotonic() - since, 1)

    def made_elsewhere(self, job: Job, shards: set[str], since: float) -> None:
        """Wait until all of the shards that were under way are committed, and note how long it took."""
        self.facts["shards_under_way"] = len(shards)
        self.wait(job, lambda: shards <= {Path(key).stem for key in self.commits()}, f"{shards} committed")
        self.recovered(since)

    def goes_on(self, job: Job, since: float) -> None:
        """Wait until a job that was submitted again has committed something, and note how long it took."""
        self.wait(job, lambda: len(self.commits()) > len(self.before), "a further commit")
        self.recovered(since)
        job.wait(PATIENCE)

    def committed_by(self, node: str) -> bool:
        """Whether a node has committed anything, by the address in the store's own log."""
        commit = f"{ADDRESSES[node]} - .*PUT /lab/{self.name}/data/_commit/"
        return re.search(commit, self.lab.requests.read_text()) is not None

    def longest_pause(self, job: Job) -> None:
        """Watch a training to its end, and note the longest time without an epoch."""
        longest, seen, since = 0.0, self.facts["epochs_before"], time.monotonic()
        while job.process.poll() is None and time.monotonic() - since < PATIENCE:
            time.sleep(0.2)
            if (now := len(self.epochs())) > seen:
                longest, seen, since = max(longest, time.monotonic() - since), now, time.monotonic()
        job.wait(1)
        self.facts["recovered_seconds"] = round(longest, 1)

    # In the end

    def judge_build(self, reference: "Trial") -> None:
        """Compare the dataset with that of the undisturbed build; AssertionError where it is not the same."""
        mine, theirs = self.contents(), reference.contents()
        samples, planned = samples_in(mine), samples_in(theirs)
        after = self.commits()
        findings = verify(f"s3://lab/{self.name}/data")
        found = {
            "lost": len(planned.keys() - samples.keys()),
            "duplicated": sum(samples.values()) - len(samples),
            "made_anew": sum(after.get(key) != value for key, value in self.before.items()),
            "other_bytes": sum(mine.get(key) != content for key, content in theirs.items()),
            "problems": len(findings.problems),
        }
        self.facts |= found
        assert not any(found.values()), self.facts
        assert findings.complete
        assert mine.keys() == theirs.keys()

    def judge_training(self, reference: "Trial") -> None:
        """Compare the curve with that of the undisturbed training; AssertionError where it is another."""
        mine, theirs = self.epochs(), reference.epochs()
        numbers = Counter(line["epoch"] for line in mine)
        off = max(abs(a["val_loss"] / b["val_loss"] - 1) for a, b in zip(mine, theirs, strict=True))
        found = {
            "lost": len({line["epoch"] for line in theirs} - numbers.keys()),
            "duplicated": sum(numbers.values()) - len(numbers),
        }
        self.facts = found | self.facts
        self.facts |= {
            "curve_off_by": float(f"{off:.1g}"),
            "workers_in_the_end": self.summary()["world_size"],
        }
        assert not any(found.values()), self.facts
        assert off <= TOLERANCE, self.facts


def samples_in(contents: dict[str, bytes]) -> Counter[str]:
    """How often each sample stands in the tars."""
    found: Counter[str] = Counter()
    for key, content in contents.items():
        if key.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                found.update({name.split(".")[0] for name in tar.getnames()})
    return found
