"""From a sample or a shard to whoever made it: the attempt, the process, its node and its log file."""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shards.dataset.dataset import READERS, Dataset
from shards.dataset.progress_figures import plain
from shards.dataset.run_records import read_run
from shards.errors import CorruptShardError, NotFoundError, UsageError
from shards.format.commit import Commit, Maker
from shards.format.side_files import Row, read_table
from shards.format.splits import SPLITS

PLACE = re.compile(rf"((?:{'|'.join(SPLITS)})-[0-9]{{6}})(-[0-9]{{4}})?")


@dataclass(frozen=True)
class Trace:
    """Where a sample, or a whole shard, comes from.

    Attributes:
        commit: of its shard.
        key, id, caption: of the sample; empty for a whole shard.
        failure: of a sample that could not be made: stage, error_class, message, traceback_sha256.
        versions: of what computed, by its run's record, else by the dataset's own.
    """

    commit: Commit
    key: str
    id: str
    caption: str
    failure: Mapping[str, str]
    versions: Mapping[str, str]


def trace(dataset: Dataset, what: str) -> list[Trace]:
    """Who made a sample or a shard.

    Args:
        dataset: opened dataset.
        what: a key (`train-000003-0007`), a shard's name (`train-000003`), or a sample id, which costs a request or
            two for each shard.

    Returns:
        one; of an id also its earlier tries that failed.

    Raises:
        UsageError: no committed shard has it.
    """
    place = PLACE.fullmatch(what)
    if place is None:
        with ThreadPoolExecutor(READERS) as pool:
            found = [
                _of_row(dataset, commit, row)
                for commit, rows in pool.map(
                    lambda commit: (commit, [*_rows(dataset, commit)]), dataset.commits()
                )
                for row in rows
                if row["id"] == what
            ]
        if not found:
            raise UsageError(
                f"{what!r}: no committed shard of {dataset.storage.root} holds a sample of that id; "
                "give a key (train-000003-0007), a shard's name (train-000003) or an id"
            )
        return found
    try:
        commit = dataset.commit(place[1])
    except NotFoundError:
        raise UsageError(
            f"{what}: shard {place[1]} of {dataset.storage.root} is not committed; `python -m shards ls` lists those "
            "that are"
        ) from None
    if not place[2]:
        return [Trace(commit, "", "", "", {}, _versions(dataset, commit.made_by))]
    rows = [row for row in _rows(dataset, commit) if row["key"] == what]
    if not rows:
        raise UsageError(f"{what}: {place[1]} has no sample at that place; it ends before")
    return [_of_row(dataset, commit, row) for row in rows]


def _rows(dataset: Dataset, commit: Commit) -> Iterator[Row]:
    """The rows of a shard's samples, those that could not be made last."""
    storage, hashes = dataset.storage, commit.side_files
    if commit.samples:
        columns = ("key", "id", "caption")
        yield from read_table(storage, commit.parquet, columns, sha256=hashes.get(commit.parquet, "")).rows
    if commit.failed:
        key = commit.dead_letters
        yield from read_table(storage, key, sha256=hashes.get(key, "")).rows


def _of_row(dataset: Dataset, commit: Commit, row: Row) -> Trace:
    why = ("stage", "error_class", "message", "traceback_sha256")
    failure = {name: str(row[name]) for name in why} if "error_class" in row else {}
    return Trace(
        commit,
        str(row["key"]),
        str(row["id"]),
        str(row["caption"]),
        failure,
        _versions(dataset, commit.made_by),
    )


def _versions(dataset: Dataset, maker: Maker) -> Mapping[str, str]:
    if re.fullmatch("[0-9a-f]{32}", maker.run):
        try:
            return read_run(dataset.storage, maker.run).packages
        except (NotFoundError, CorruptShardError):
            pass
    return dataset.packages


def lines(found: Trace) -> list[str]:
    """A trace for people, a fact a line."""
    commit = found.commit
    facts = [("shard", f"{commit.name}, committed {commit.created}{' (adopted)' if commit.adopted else ''}")]
    if found.key:
        state = "could not be made" if found.failure else "made"
        facts = [("sample", f"{found.key}, id {found.id}, {state}"), ("caption", found.caption[:200]), *facts]
    if found.failure:
        why = "{stage}: {error_class}: {message} (traceback {traceback_sha256:.12})".format(**found.failure)
        facts.append(("why", why))
    facts.append(
        (
            "attempt",
            f"{commit.attempt}, begun {commit.begun}, {commit.wall_seconds:,.1f} s on {commit.device or '(unknown)'}, "
            f"{commit.device_seconds:,.1f} device seconds, {commit.busy_seconds:,.1f} of them busy",
        )
    )
    facts += _whereabouts(commit.made_by)
    for earlier in commit.earlier:
        facts.append(("before", f"attempt {earlier.attempt} {earlier.end} after {earlier.seconds:,.1f} s"))
        facts += _whereabouts(earlier.made_by)
    facts.append(("with", ", ".join(f"{name} {version}" for name, version in found.versions.items())))
    return [f"{name:<8} {plain(text)}" for name, text in facts]


def _whereabouts(maker: Maker) -> list[tuple[str, str]]:
    if not maker.node:
        return [("by", "not recorded: made outside Ray, or by an earlier version")]
    return [
        ("by", f"process {maker.pid} on {maker.host} ({maker.address}), node {maker.node}"),
        ("actor", f"{maker.actor} of Ray job {maker.job}, run {maker.run}"),
        ("log", f"{maker.log}.err and .out in the folder of Ray's logs on that node"),
    ]
