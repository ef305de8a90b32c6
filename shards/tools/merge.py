"""Joining datasets of one fingerprint: what one has and the other lacks is taken over, under the same commit rules.

Such datasets are parts of one plan, say halves made on two clusters: a shard of a name holds the same samples in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from shards.dataset.dataset import Dataset
from shards.dataset.failed_samples import failures
from shards.dataset.publish import Circumstances, publish
from shards.errors import CorruptShardError, UsageError
from shards.format.commit import Commit
from shards.format.plan import Segment
from shards.format.shard_writer import BuiltShard
from shards.format.side_files import read_table
from shards.stores.local import open_storage, writing
from shards.stores.spool import Spool
from shards.stores.store import Storage
from shards.tools.verify import expected_of
from shards.tools.verify_shard import examine


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        taken: names of the shards taken over.
        there: how many of the source already existed.
    """

    taken: tuple[str, ...]
    there: int


def merge(storage: Storage, source: Dataset, spool: Spool) -> Merged:
    """Take over every shard of a source that a root lacks.

    Args:
        storage: the root; a dataset like the source is made where it is empty.
        source: another dataset of the same fingerprint; it is only read.
        spool: where a shard lies on its way.

    Returns:
        what was done. Where both hold a shard, the root's stays.

    Raises:
        UsageError: the fingerprints differ, the two grew differently, so that their shards hold other samples, or
            the source tries a sample again that the root has made; or either is of an earlier format.
        CorruptShardError: a shard of the source is not sound; everything before it is taken over.
    """
    source.require_writable()  # what is taken over goes into a root of this format
    target = Dataset.create_or_open(storage, source.settings, source.packages)
    _follow(target, source)
    commits = source.commits()
    there = target.committed()
    lacking = [commit for commit in commits if commit.name not in there]
    for commit in lacking:
        with spool.workspace(commit.name) as folder:
            _take(target, source, commit, folder)
    if lacking:
        target.write_manifest()
    return Merged(tuple(commit.name for commit in lacking), len(commits) - len(lacking))


def _follow(target: Dataset, source: Dataset) -> None:
    """Give the target the growth records that the source has beyond its own."""
    ours, theirs = target.segments(), source.segments()
    shared = min(len(ours), len(theirs))
    if ours[:shared] != theirs[:shared]:
        raise UsageError(
            f"{source.storage.root}: planned as {_told(theirs)}, {target.storage.root} as {_told(ours)}; their shards "
            "hold different samples and cannot be merged"
        )
    _refuse_retries_of_made(target, source, theirs[shared:])
    for number, segment in enumerate(theirs[shared:], start=shared):
        record = {"samples": segment} if isinstance(segment, int) else {"retry": list(segment)}
        if not target.record(number, record):
            raise UsageError(f"{target.storage.root}: grew just now; run the merge again")


def _refuse_retries_of_made(target: Dataset, source: Dataset, segments: Sequence[Segment]) -> None:
    """A sample that failed in the source, and is tried again there, may have been made here: it would stand twice."""
    retried = {identity for segment in segments if not isinstance(segment, int) for identity in segment}
    if not retried:
        return
    there, failed = target.committed(), {row["id"] for row in failures(target)}
    made = [
        row["key"]
        for row in failures(source)
        if row["id"] in retried and row["shard"] in there and row["id"] not in failed
    ]
    if made:
        raise UsageError(
            f"{source.storage.root}: {made[0]} ({len(made)} samples) failed there and is tried again, and "
            f"{target.storage.root} has made it; merge the other way round, into {source.storage.root}"
        )


def _told(segments: Sequence[Segment]) -> str:
    return ", then ".join(
        f"{segment} samples" if isinstance(segment, int) else f"{len(segment)} retries"
        for segment in segments
    )


def _take(target: Dataset, source: Dataset, commit: Commit, folder: Path) -> None:
    """Copy a shard through the spool, and judge the very bytes that are then put."""
    keys = [commit.tar, commit.parquet] + ([commit.dead_letters] if commit.failed else [])
    local = open_storage(str(folder))
    for key in keys:
        path = folder / key
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            path.touch()
        with source.storage.open(key) as stream:
            while piece := stream.read(1 << 20):
                with writing(path), path.open("ab") as file:
                    file.write(piece)
    if problems := examine(local, commit, expected_of(source)).problems:
        raise CorruptShardError(f"source {source.storage.root}: {problems[0]}; run repair, then build there")
    tar, parquet, *failed = (folder / key for key in keys)
    record = read_table(local, commit.parquet, columns=()).commit
    publish(
        target,
        BuiltShard(tar, parquet, failed[0] if failed else None, record),
        Circumstances(**{each.name: getattr(commit, each.name) for each in fields(Circumstances)}),
    )
