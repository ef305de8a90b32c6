"""Tidy and mend: what no commit names is removed, a broken shard is uncommitted so that a build makes it again."""

import time
from collections import Counter
from collections.abc import Iterable

from shards.dataset.dataset import Dataset
from shards.dataset.run_records import SILENT, runs_on_record
from shards.errors import CorruptShardError, NotFoundError, UsageError
from shards.format.commit import commit_key, shard_of, tar_key
from shards.stores.local import open_storage
from shards.tools.verify import verify

SPARED = 3600.0  # seconds: an upload that is retried takes no longer
TOGETHER = 2  # files of most shards: only where there are more is the commit asked which are its own


def leftovers(dataset: Dataset) -> list[str]:
    """Keys of shard files that no commit names: what crashes left behind."""
    # Files first, commits second: a shard committed in between is then named, not swept away.
    files = [entry.key for entry in dataset.storage.list() if shard_of(entry.key)]
    committed = dataset.committed().keys()
    # Of a committed shard only those that bear another mark than its own: a damaged commit must not cost its shard.
    several = Counter(shard_of(key) for key in files)
    return [
        key
        for key in files
        if shard_of(key) not in committed
        or (several[shard_of(key)] > TOGETHER and _is_others(dataset, shard_of(key), key))
    ]


def _is_others(dataset: Dataset, name: str, key: str) -> bool:
    """Whether a committed shard's commit names other files than this; False where it cannot be read."""
    try:
        commit = dataset.commit(name)
    except (CorruptShardError, NotFoundError):
        return False
    return key not in (commit.tar, commit.parquet, commit.dead_letters)


def collect_garbage(dataset: Dataset, *, dry_run: bool, spared: float = SPARED) -> list[str]:
    """Remove what no commit names, and hidden files of killed writers. Not while a run is at work.

    Args:
        dataset: opened dataset.
        dry_run: only list them.
        spared: seconds; files written since are kept, as their commit may be on its way.

    Returns:
        the keys.

    Raises:
        UsageError: a run is at work, whose next shard has no commit yet; or there are leftovers and not one commit,
            so that all there is would go; or the dataset is of an earlier format.
    """
    storage, now = dataset.storage, time.time()
    if not dry_run:
        dataset.require_writable()
        _refuse_while_at_work(dataset, now)
    hidden = storage.abandoned()
    written = {entry.key: entry.written for entry in (*storage.list(), *hidden)}
    keys = leftovers(dataset)
    if keys and not dry_run and not dataset.committed():
        raise UsageError(
            f"{dataset.storage.root} has {len(keys)} files of shards and no commit; gc would remove them all. "
            "Check that _commit/ is whole and readable; if nothing was ever committed, run the build again, "
            "which takes over what is whole, or remove the folder"
        )
    keys = [key for key in (*keys, *(entry.key for entry in hidden)) if written.get(key, now) <= now - spared]
    if not dry_run:
        for key in keys:
            storage.delete(key)
    return keys


def _refuse_while_at_work(dataset: Dataset, now: float) -> None:
    for run in runs_on_record(dataset.storage):
        if run.is_at_work(now):
            raise UsageError(
                f"{dataset.storage.root}: the {run.job} {run.run[:8]} is at work (last seen {run.seen}), and gc would "
                f"remove the shards that it is writing; wait for its end, or {SILENT / 60:.0f} minutes after it was "
                "killed"
            )


def uncommit(dataset: Dataset, names: Iterable[str]) -> None:
    """Take shards out of the dataset; the next build makes them again.

    The commit goes first: from then on the shard does not exist, whatever happens to the rest.
    """
    for name in names:
        dataset.storage.delete(commit_key(name))
        tar = tar_key(name)
        for prefix in (tar.removesuffix("tar"), f"failed/{name}."):
            for key in [entry.key for entry in dataset.storage.list(prefix)]:
                if shard_of(key) == name:
                    dataset.storage.delete(key)


def repair(root: str, *, workers: int = 1) -> list[str]:
    """Uncommit every shard that `verify` finds broken.

    Args:
        root: of the dataset.
        workers: processes that read shards.

    Returns:
        names of the shards taken out.

    Raises:
        UsageError: there is no dataset, or one of an earlier format, whose shards could not be made again.
    """
    dataset = Dataset.open(open_storage(root))
    dataset.require_writable()
    committed = dataset.committed()
    suspects = {problem.shard for problem in verify(root, workers=workers).problems} & committed.keys()
    # Removal is for good, so it takes two readings that agree: one bad read is not a bad shard.
    broken = (
        sorted(suspects & {problem.shard for problem in verify(root, workers=workers).problems})
        if suspects
        else []
    )
    uncommit(dataset, broken)
    if broken:
        dataset.write_manifest()
    return broken


def require_shards(dataset: Dataset) -> None:
    """Refuse a dataset in which nothing is committed yet."""
    if not dataset.committed():
        raise UsageError(f"{dataset.storage.root}: no shard is committed yet; build first")
