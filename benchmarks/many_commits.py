"""Datasets of very many commits and no shards, written fast, for benchmarks of what listings and records cost."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shards.dataset.dataset import FORMAT_VERSION, MANIFEST, Dataset
from shards.format.commit import COMMITS, Commit, commit_key, parquet_key, tar_key
from shards.format.plan import Plan, PlannedShard, make_plan
from shards.format.statistics import RunningStatistics
from shards.prompts.prompt import Prompt
from shards.stores.local import open_storage
from shards.stores.store import json_object

SETTINGS = {"made_by": "a benchmark"}
UNMADE = 8  # shards that are planned beyond the committed ones: what `missing` has to find
THREADS = 32  # as many as the S3 store keeps connections


def plan_of(count: int) -> Plan:
    """So many shards of one sample."""
    prompts = [Prompt(f"caption number {index}") for index in range(count)]
    return make_plan(prompts, seed=0, val_fraction=0.0, samples_per_shard=1, segments=(count,))


def fill(root: str, count: int, dimensions: int, *, manifest: bool) -> int:
    """Write a dataset's commits, without shards; the bytes of one commit."""
    storage = open_storage(root)
    dataset = Dataset.create_or_open(storage, SETTINGS, {})
    plan = plan_of(count + UNMADE)
    dataset.grow(len(plan), append=False)
    records = {shard.name: record_of(shard, dataset.fingerprint) for shard in plan.shards[:count]}
    numbers = RunningStatistics(dimensions).to_json()
    labels = {"statistics": dict.fromkeys(("text/caption", "vl.caption.-8/image"), numbers)}

    def put(name: str) -> int:
        data, key = json_object({**records[name], **labels}), commit_key(name)
        if root.startswith("s3://"):
            storage.put_bytes(key, data)
        else:  # not through the storage, which syncs every file
            Path(root, key).write_bytes(data)
        return len(data)

    if not root.startswith("s3://"):
        Path(root, COMMITS).mkdir()
    with ThreadPoolExecutor(THREADS) as pool:
        size = max(pool.map(put, records))
    if manifest:  # as write_manifest makes it, which would read every commit
        tags = {name: entry.tag for name, entry in dataset.committed().items()}
        shards = [{**record, "commit_tag": tags[name]} for name, record in sorted(records.items())]
        content = {
            "format_version": FORMAT_VERSION,
            "fingerprint": dataset.fingerprint,
            "shards": shards,
        }
        storage.put_bytes(MANIFEST, json_object(content))
    return size


def record_of(shard: PlannedShard, fingerprint: str) -> dict[str, Any]:
    """A commit without its statistics, its hashes as long as real ones."""
    commit = Commit(
        name=shard.name,
        split=shard.split,
        shard=shard.index,
        tar=tar_key(shard.name),
        sha256=shard.slice_hash[::-1],
        bytes=1_000_000 + shard.index,
        samples=len(shard.samples),
        failed=0,
        fingerprint=fingerprint,
        slice_hash=shard.slice_hash,
        attempt=f"{shard.index:032x}",
        wall_seconds=12.345,
        device_seconds=12.345,
        device="CPU",
        created="2025-01-01T00:00:00+00:00",
        adopted=False,
        side_files={parquet_key(shard.name): shard.slice_hash},
    )
    return asdict(commit)
