"""What the storage costs beside the plain way: boto3's own transfers on S3, `cp` in a folder.

    python benchmarks/storage.py                     a temporary folder
    python benchmarks/storage.py s3://bucket/prefix  a store, by the usual AWS variables
    python benchmarks/storage.py --size-mb 640 --rounds 5 FOLDER

Both ways take turns within one process, so that a busy machine slows both. Ratios above 1 mean that the storage is
faster. Writes JSON to stdout; removes what it wrote.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from shards.stores.local import Storage, open_storage

Ways = dict[str, dict[str, Callable[[], object]]]


def local_ways(storage: Storage, source: Path, copy: Path) -> Ways:
    """The storage against `cp`, which does not sync, and against `cp` followed by `sync`, which promises as much."""
    target = Path(storage.root) / "plain"
    return {
        "put": {
            "storage": lambda: storage.put_file("ours", source),
            "cp": lambda: subprocess.run(["cp", source, target], check=True),
            "cp+sync": lambda: subprocess.run(
                ["sh", "-c", 'cp "$0" "$1" && sync "$1"', source, target], check=True
            ),
        },
        "get": {
            "storage": lambda: download(storage, "ours", copy),
            "cp": lambda: subprocess.run(["cp", target, copy], check=True),
        },
    }


def s3_ways(storage: Storage, source: Path, copy: Path) -> Ways:
    """The storage against boto3's managed transfers."""
    import boto3

    bucket, _, prefix = storage.root.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    key = f"{prefix}/plain".lstrip("/")
    return {
        "put": {
            "storage": lambda: storage.put_file("ours", source),
            "boto3": lambda: client.upload_file(str(source), bucket, key),
        },
        "get": {
            "storage": lambda: download(storage, "ours", copy),
            "boto3": lambda: client.download_file(bucket, key, str(copy)),
        },
    }


def download(storage: Storage, key: str, copy: Path) -> None:
    """Read an object through the storage's one stream into a file."""
    with storage.open(key) as stream, copy.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, in turns; one unmeasured turn goes before."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(times) for name, times in seconds.items()}


def report(kind: str, size: int, rounds: int, ways: Ways) -> dict[str, object]:
    """Seconds, MB/s and ratios of both directions."""
    found: dict[str, object] = {"store": kind, "bytes": size, "rounds": rounds}
    for direction, plain in ways.items():
        seconds = measure(plain, rounds)
        ours = seconds["storage"]
        found[direction] = {
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "mb_per_s": {name: round(size / value / 1e6, 1) for name, value in seconds.items()},
            "times_as_fast_as": {
                name: round(value / ours, 3) for name, value in seconds.items() if name != "storage"
            },
        }
    return found


def main(words: list[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "root", nargs="?", help="local folder or s3://bucket/prefix; a temporary folder by default"
    )
    parser.add_argument("--size-mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        source, copy = Path(folder) / "source", Path(folder) / "copy"
        with source.open("wb") as file:
            for _ in range(options.size_mb):
                file.write(os.urandom(1_000_000))
        base = (options.root or f"{folder}/root").rstrip("/")
        storage = open_storage(f"{base}/benchmark-{uuid.uuid4().hex[:8]}")
        storage.put_bytes("ours", b"")
        is_s3 = base.startswith("s3://")
        ways = (s3_ways if is_s3 else local_ways)(storage, source, copy)
        try:
            found = report("s3" if is_s3 else "local", source.stat().st_size, options.rounds, ways)
        finally:
            for key in ("ours", "plain"):
                storage.delete(key)
            if not is_s3:
                Path(storage.root).rmdir()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
