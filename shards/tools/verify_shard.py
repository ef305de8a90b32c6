"""Everything that can be wrong with one shard at rest, found by reading it once; memory is bounded by one sample."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from shards.dataset.progress_figures import plain
from shards.errors import CorruptShardError, NotFoundError, StorageError
from shards.format.commit import Commit
from shards.format.members import members as each_member
from shards.format.members import read_metadata, require_whole
from shards.format.plan import PlannedSample, PlannedShard, sample_id
from shards.format.sample import Expected, check_image, check_tensors, decode_tensors
from shards.format.side_files import Row, planned_sample, read_table, sample_row
from shards.format.splits import normalise_caption
from shards.sources.item import imported_id
from shards.stores.store import Storage


@dataclass(frozen=True)
class Problem:
    """Something wrong.

    Attributes:
        shard: name of the shard, or the key of the file.
        sample: key of the sample; empty where it concerns all.
        what: in words.
    """

    shard: str
    sample: str
    what: str

    def __str__(self) -> str:
        place = f"{self.shard}, sample {self.sample}" if self.sample else self.shard
        return plain(f"{place}: {self.what}")


@dataclass
class Examined:
    """What one shard holds.

    Attributes:
        problems: in the order in which they were met.
        rows: of the whole samples, as its parquet should have them.
        bytes: read.
    """

    problems: list[Problem] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    bytes: int = 0

    @property
    def captions(self) -> list[tuple[str, str, str]]:
        """Of each whole sample: its id, the hash of its normalised caption, its key."""
        return [
            (row["id"], hashlib.sha256(normalise_caption(row["caption"]).encode()).hexdigest(), row["key"])
            for row in self.rows
        ]


def examine(storage: Storage, commit: Commit, expected: Expected) -> Examined:
    """Check hash, structure and content of one shard and its side files.

    Args:
        storage: where the dataset lies.
        commit: of the shard.
        expected: what every sample must hold.

    Returns:
        what was found.

    Raises:
        StorageError: the store failed, which says nothing about the shard.
    """
    found = Examined()

    def note(what: str) -> None:
        found.problems.append(Problem(commit.name, "", what))

    try:
        with storage.open(commit.tar) as file:
            stream = _Hashing(file)
            _check_tar(stream, commit, expected, found)
            while stream.read(1 << 20):  # what stands behind the archive's end counts for the hash
                pass
    except NotFoundError:
        note(f"{commit.tar} is missing")
        return found
    found.bytes = stream.count
    if stream.count != commit.bytes:
        note(f"{commit.tar} has {stream.count} bytes, its commit says {commit.bytes}")
    elif stream.digest.hexdigest() != commit.sha256:
        note(f"{commit.tar} has another SHA-256 than its commit says")
    if len(found.rows) != commit.samples:
        note(f"{len(found.rows)} whole samples, its commit says {commit.samples}")
    try:
        _check_side_files(storage, commit, found.rows)
    except ValueError as error:
        note(str(error))
    except CorruptShardError as error:
        note(str(error).removeprefix(f"{storage.root}: ").removesuffix("; run repair, then build"))
    return found


class _Hashing(io.RawIOBase):
    """Passes a stream on and hashes what goes by, so that a shard is read once."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.digest = hashlib.sha256()
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read(len(buffer))
        except OSError as error:
            raise StorageError(f"reading failed after {self.count:,} bytes: {error}") from error
        self.digest.update(data)
        self.count += len(data)
        buffer[: len(data)] = data
        return len(data)


@dataclass
class _Members:
    """The members of one sample, as they come by."""

    key: str
    content: dict[str, bytes] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


def _check_tar(stream: _Hashing, commit: Commit, expected: Expected, found: Examined) -> None:
    """Walk the archive; a broken one ends the walk, not the verification."""
    members, done = _Members(""), set[str]()

    def note(key: str, what: str) -> None:
        found.problems.append(Problem(commit.name, key, what))

    def finish() -> None:
        if members.content:
            try:
                found.rows.append(_checked_row(members, expected))
            except ValueError as error:
                note(members.key, str(error))

    try:
        for member in each_member(stream, commit):  # type: ignore[arg-type]
            if member.problem:
                note(member.key, member.problem)
                continue
            if member.key != members.key:
                finish()
                done.add(members.key)
                members = _Members(member.key)
                if member.key in done:
                    note(member.key, "its members are not next to each other")
            if member.suffix in members.content:
                note(member.key, f"member .{member.suffix} stands twice")
            members.content[member.suffix] = member.content
            members.places[member.suffix] = member.place
        finish()
    except ValueError as error:
        note(members.key, str(error))


def _checked_row(members: _Members, expected: Expected) -> Row:
    """A sample's row for the parquet; ValueError says what is wrong with the sample."""
    content = members.content
    image = content[require_whole(content)]
    try:
        caption = content["txt"].decode("utf-8")
        metadata = read_metadata(content["json"])
        told, identity = metadata["caption"], metadata["id"]
        picture = str(metadata["source"]["picture"]) if expected.imported else ""
        check_image(image, expected)
        check_tensors(decode_tensors(content["safetensors"]), expected)
        row = sample_row(members.key, metadata, members.places)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"does not decode: {error}") from None
    if told != caption:
        raise ValueError("the captions of .txt and .json differ")
    if identity != (imported_id(picture, caption) if expected.imported else sample_id(caption)):
        of_what = "its picture and caption" if expected.imported else "its caption"
        raise ValueError(f"id {identity!r} is not that of {of_what}")
    return row


def _check_side_files(storage: Storage, commit: Commit, rows: Sequence[Row]) -> None:
    """Compare parquet and dead-letter file with tar, commit and plan; ValueError on the first thing amiss."""
    table = read_table(storage, commit.parquet, sha256=commit.side_files.get(commit.parquet, ""))
    told = {name: table.commit.get(name) for name in ("sha256", "slice_hash", "fingerprint")}
    if told != {name: getattr(commit, name) for name in told}:
        raise ValueError(f"{commit.parquet} was written for another tar than the commit names")
    by_key = {row.get("key"): row for row in table.rows}
    if len(table.rows) != commit.samples or len(by_key) != commit.samples:
        raise ValueError(f"{commit.parquet} has {len(by_key)} samples, its commit says {commit.samples}")
    for row in rows:
        _compare(commit, row, by_key.get(row["key"], {}))
    dead_letters = commit.dead_letters
    hash_of_failed = commit.side_files.get(dead_letters, "")
    failed = read_table(storage, dead_letters, sha256=hash_of_failed).rows if commit.failed else ()
    if len(failed) != commit.failed:
        raise ValueError(f"{dead_letters} has {len(failed)} rows, its commit says {commit.failed}")
    try:
        samples = sorted(map(planned_sample, (*table.rows, *failed)), key=_position)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"a row of its side files does not say what was planned: {error}") from None
    if PlannedShard(commit.split, commit.shard, tuple(samples)).slice_hash != commit.slice_hash:
        raise ValueError("its samples are not those that the plan has for it (slice hash)")


def _compare(commit: Commit, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    differing = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    if differing:
        raise ValueError(f"{commit.parquet}, row {ours['key']}: {', '.join(differing[:3])} not as in the tar")


def _position(sample: PlannedSample) -> int:
    return sample.position
