"""What a dataset holds, as facts: counts, bytes, failures, coverage, what it took."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shards.dataset.dataset import READERS, Dataset
from shards.dataset.failed_samples import failures
from shards.format.commit import Commit
from shards.format.side_files import Row, planned_sample, read_table
from shards.format.splits import SPLITS
from shards.prompts.categories import AXES
from shards.prompts.variety import PromptFigures, prompt_figures
from shards.tools.watch import Observer

SHOWN_SETTINGS = ("height", "width", "layers", "text_modes", "dtype")


def info(dataset: Dataset, price_gpu_hour: float | None = None) -> dict[str, Any]:
    """Counts and sizes, from the commits and records alone.

    Args:
        dataset: opened dataset.
        price_gpu_hour: in any currency.

    Returns:
        `planned` samples in all, `samples` made, `failed` for good so far, whether it is `complete`, `shards`,
        `bytes` of their tars, `device_seconds`, of those `busy_seconds`, and more under names that say what they are
        or that `shards.dataset.progress_figures` explains.
    """
    observer = Observer(dataset)
    far = observer.look(time.time(), price_gpu_hour)
    commits = observer.commits
    hidden = dataset.storage.abandoned()
    return {
        "root": dataset.storage.root,
        "created": dataset.created,
        "fingerprint": dataset.fingerprint,
        "planned": far.planned,
        "samples": far.made,
        "failed": far.failed,
        "complete": far.complete,
        "shards": far.shards,
        "bytes": far.bytes,
        "device_seconds": round(far.device_seconds, 3),
        "busy_seconds": round(sum(commit.busy_seconds for commit in commits), 3),
        "lost_seconds": {end: round(seconds, 3) for end, seconds in far.lost.items()},
        "gpu_hours": round(far.gpu_hours, 6),
        "cost": far.cost,
        "work_seconds": round(far.work_seconds, 3),
        "pairs_per_hour": far.pairs_per_hour,
        "recent_pairs_per_hour": far.recent_pairs_per_hour,
        "seconds_left": far.seconds_left,
        "runs": far.runs,
        "builders": far.builders,
        "adopted_shards": sum(commit.adopted for commit in commits),
        "abandoned_files": len(hidden),
        "abandoned_bytes": sum(entry.size for entry in hidden),
        "splits": {split: _counts(c for c in commits if c.split == split) for split in SPLITS},
        "devices": sorted({commit.device for commit in commits if commit.device}),
        "settings": {key: dataset.settings.get(key) for key in SHOWN_SETTINGS},
    }


def details(dataset: Dataset) -> dict[str, Any]:
    """What takes a request for each shard: which cells of the prompt space are covered, and why samples failed.

    Args:
        dataset: opened dataset.

    Returns:
        `coverage`: samples made, by content, style and subject; `pictures`, see there; `failures`: tries that failed,
        by stage and error.
    """
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(lambda commit: _rows(dataset, commit, AXES), dataset.commits())
        cells = Counter(tuple(row[name] for name in AXES) for rows in tables for row in rows)
    return {
        "coverage": [
            {**dict(zip(AXES, cell, strict=True)), "samples": count} for cell, count in sorted(cells.items())
        ],
        "pictures": pictures(dataset),
        "failures": [
            {"stage": stage, "error_class": error, "tries": count}
            for (stage, error), count in sorted(causes_of(dataset).items())
        ],
    }


def pictures(dataset: Dataset) -> dict[str, int]:
    """How many pictures each split of an import has, where one may have several captions; empty for a build.

    Args:
        dataset: opened dataset; takes a request for each shard.
    """
    if "import" not in dataset.settings:
        return {}
    found: dict[str, set[str]] = {split: set() for split in SPLITS}
    commits = dataset.commits()
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(lambda commit: _rows(dataset, commit, ("source",)), commits)
        for commit, rows in zip(commits, tables, strict=True):
            found[commit.split].update(json.loads(row["source"])["picture"] for row in rows)
    return {split: len(names) for split, names in found.items()}


def causes_of(dataset: Dataset) -> Mapping[tuple[str, str], int]:
    """Tries that failed, by stage and class of error."""
    return Counter((str(row["stage"]), str(row["error_class"])) for row in failures(dataset))


def prompts(dataset: Dataset) -> PromptFigures:
    """How varied the captions of the samples are that were made; takes a request for each shard.

    Args:
        dataset: opened dataset.
    """
    columns = ("key", "id", "caption", *AXES, "seed", "plan_index")
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(lambda commit: _rows(dataset, commit, columns), dataset.commits())
        return prompt_figures(planned_sample(row) for rows in tables for row in rows)


def _counts(commits: Iterable[Commit]) -> dict[str, int]:
    samples = [commit.samples for commit in commits]
    return {"shards": len(samples), "samples": sum(samples)}


def _rows(dataset: Dataset, commit: Commit, columns: Sequence[str]) -> Iterable[Row]:
    sha256 = commit.side_files.get(commit.parquet, "")
    return read_table(dataset.storage, commit.parquet, columns, sha256=sha256).rows if commit.samples else ()
