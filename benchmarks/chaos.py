"""Kill, stop and starve writers of a dataset by the hundred, then look with stock tools what is there.

`python benchmarks/chaos.py --faults 300` has processes make small shards and commit them with the project's own code,
on a local folder and on the strict S3 stand-in behind a proxy that breaks requests. Processes are killed at random
moments and at the points between tar and commit, or stopped for a while and let go on; the next one goes on with what
is there. Each round ends when the dataset is complete: tars are compared with those of an undisturbed writer by
`tarfile` and SHA-256, keys counted, and every file must be one that a commit or the dataset names.

The shards are made by a stand-in without models, so that a fault costs a tenth of a second and not a Ray cluster;
real builds are killed by the tests of docs/reliability.md. It prints a JSON object; exit 1 where anything was lost,
doubled, other or invisible.
"""

import argparse
import functools
import hashlib
import io
import json
import os
import random
import signal
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import botocore.loaders

from fault_proxy import FaultProxy
from s3_support import HASTY, running_strict
from shards.dataset.dataset import Dataset
from shards.dataset.publish import Circumstances, publish
from shards.format.commit import tar_key
from shards.format.plan import Plan
from shards.stores.local import LocalStorage
from shards.stores.s3 import S3Storage
from shards.stores.store import Storage
from shards.tools.gc_and_repair import collect_garbage
from shards.tools.verify import verify
from tests_support import SETTINGS, a_plan, write_shard

SAMPLES, PER_SHARD = 30, 3
WRITERS = 3
STOPPED = 0.2  # seconds that a stopped process waits
LONGEST = 600  # seconds of a round
PACE = {"disk": 0.3, "strict S3": 3.0}  # seconds between two kills at most: a writer has to get somewhere
POINTS = ("before-parquet", "after-parquet", "before-tar", "after-tar", "before-commit", "after-commit")
WINDOW = ("after-tar", "before-commit")  # between tar and commit: half of all kills at a point
Open = Callable[[], Storage]


def write_all(opened: Open, plan: Plan, spool: Path, seed: int) -> None:
    """What a writer process does: make what is missing, in an order of its own, until nothing is."""
    dataset = Dataset.create_or_open(opened(), SETTINGS, {})
    dataset.grow(len(plan), append=False)
    todo = list(dataset.missing(plan))
    random.Random(seed).shuffle(todo)
    for shard in todo:
        folder = spool / f"{os.getpid()}-{shard.name}"
        built = write_shard(dataset, shard, folder)
        publish(dataset, built, Circumstances(f"{os.getpid()}-{seed}"))


def forked(act: Callable[[], None]) -> int:
    """A child process that does something and ends by itself; its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            act()
            code = 0
        finally:
            os._exit(code)
    return child


def round_of(
    opened: Open, plan: Plan, spool: Path, chance: random.Random, faults: Counter[str], pace: float
) -> None:
    """Have one dataset written by processes that are killed and stopped, until it is complete."""
    begun, alive, number = time.monotonic(), set[int](), 0
    while time.monotonic() - begun < LONGEST:
        for child in list(alive):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                alive.discard(child)
                faults["SIGKILL at a point"] += os.WIFSIGNALED(status)
        if not alive and _complete(opened, plan):
            return
        while len(alive) < WRITERS:
            number += 1
            point = chance.choice(WINDOW if chance.random() < 0.5 else POINTS)
            os.environ["SHARDS_CRASH_AT"] = f"{point}:{chance.randint(1, 3)}" if chance.random() < 0.7 else ""
            alive.add(forked(lambda seed=number: write_all(opened, plan, spool, seed)))  # type: ignore[misc]
        time.sleep(chance.uniform(0.02, pace))
        victim = chance.choice(sorted(alive))
        if chance.random() < 0.3:
            os.kill(victim, signal.SIGSTOP)
            time.sleep(STOPPED)
            os.kill(victim, signal.SIGCONT)
            faults["SIGSTOP and SIGCONT"] += 1
        elif chance.random() < 0.5 and os.waitpid(victim, os.WNOHANG) == (0, 0):
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            alive.discard(victim)
            faults["SIGKILL at a random moment"] += 1
        alive = {child for child in alive if _exists(child)}
    raise TimeoutError(f"not complete after {LONGEST} s")


def _exists(child: int) -> bool:
    """Whether a child is still to be waited for."""
    return Path(f"/proc/{child}").exists()


def _complete(opened: Open, plan: Plan) -> bool:
    storage = opened()
    if storage.stat("dataset.json") is None:
        return False
    return not Dataset.open(storage).missing(plan)


def contents(storage: Storage, plan: Plan) -> dict[str, tuple[str, list[str]]]:
    """SHA-256 and the keys of each tar that there is, by the name of its shard: `tarfile` alone reads it."""
    found = {}
    for shard in plan.shards:
        if storage.stat(tar_key(shard.name)) is not None:
            data = storage.get_bytes(tar_key(shard.name))
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                names = [name for name in tar.getnames() if name.endswith(".txt")]
            found[shard.name] = (hashlib.sha256(data).hexdigest(), names)
    return found


def judged(
    storage: Storage, plan: Plan, sound: dict[str, Any], files: Callable[[], set[str]]
) -> Counter[str]:
    """What is wrong with a finished dataset, in numbers of samples and files."""
    dataset = Dataset.open(storage)
    there = contents(storage, plan)
    keys = Counter(name for _, names in there.values() for name in names)
    wanted = {f"{sample.key}.txt" for shard in plan.shards for sample in shard.samples}
    collect_garbage(dataset, dry_run=False, spared=-60.0)
    dataset.write_manifest()
    named = {"dataset.json", "manifest.json", "_plan/000000.json"}
    for commit in dataset.commits():
        named |= {commit.tar, commit.parquet, f"_commit/{commit.name}.json"}
    return Counter(
        {
            "lost": len(wanted - keys.keys()),
            "doubled": sum(keys.values()) - len(keys),
            "other bytes": sum(there.get(name) != whole for name, whole in sound.items()),
            "invisible files": len(files() - named),
            "problems of verify": len(verify(storage.root).problems),
        }
    )


@contextmanager
def on_disk(folder: Path) -> Iterator[tuple[Callable[[int], Open], Callable[[int], set[str]], Counter[str]]]:
    """Roots in a folder: how to open one by its number, and all its files."""

    def files(number: int) -> set[str]:
        root = folder / str(number)
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}

    yield lambda number: lambda: LocalStorage(str(folder / str(number))), files, Counter()


@contextmanager
def on_s3(rate: float) -> Iterator[tuple[Callable[[int], Open], Callable[[int], set[str]], Counter[str]]]:
    """Roots on the strict stand-in behind a proxy that breaks a share of all requests."""
    with running_strict() as server, FaultProxy(server.port, seed=1, rate=rate) as proxy:
        os.environ |= server.env_through(proxy.endpoint)
        # Each process would read the description of S3 again, a tenth of a second.
        botocore.loaders.create_loader = functools.cache(botocore.loaders.create_loader)
        server.client.list_buckets  # noqa: B018 - reads it
        bucket = server.new_bucket()

        def files(number: int) -> set[str]:
            prefix = f"{number}/"
            keys = list(server.state.buckets[bucket].objects)
            return {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}

        yield lambda number: lambda: S3Storage(f"s3://{bucket}/{number}", HASTY), files, proxy.faults


def campaign(
    way: str, most: int, folder: Path, chance: random.Random, plan: Plan, sound: dict[str, Any]
) -> dict[str, Any]:
    """Rounds on one store until so many faults were made."""
    wrong: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    rounds, begun = 0, time.monotonic()
    with on_disk(folder) if way == "disk" else on_s3(0.05) as (opener, files, of_store):
        while sum(faults.values()) + sum(of_store.values()) < most:
            opened = opener(rounds)
            round_of(opened, plan, folder / "spool", chance, faults, PACE[way])
            os.environ["SHARDS_CRASH_AT"] = ""
            wrong += judged(opened(), plan, sound, lambda number=rounds: files(number))  # type: ignore[misc]
            rounds += 1
            print(
                f"{way}: round {rounds}, {dict(faults)}, store {dict(of_store)}", file=sys.stderr, flush=True
            )
        made = {**faults, **{f"store: {kind}": count for kind, count in sorted(of_store.items())}}
    names = ("lost", "doubled", "other bytes", "invisible files", "problems of verify")
    return {
        "rounds": rounds,
        "faults": sum(made.values()),
        "of them": made,
        **{name: wrong[name] for name in names},
        "seconds": round(time.monotonic() - begun),
    }


def main(words: list[str]) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--faults", type=int, default=300, help="in all, on both stores (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(words)
    plan = a_plan(SAMPLES, PER_SHARD)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed = LocalStorage(str(folder / "undisturbed"))
        write_all(lambda: undisturbed, plan, folder / "spool", 0)
        sound = contents(undisturbed, plan)
        chance = random.Random(options.seed)
        found = {}
        for way in ("disk", "strict S3"):
            (folder / way).mkdir()
            found[way] = campaign(way, options.faults // 2, folder / way, chance, plan, sound)
    print(json.dumps(found, indent=1))
    bad = ("lost", "doubled", "other bytes", "invisible files", "problems of verify")
    return int(any(result[name] for result in found.values() for name in bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
