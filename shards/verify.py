"""Everything that can be wrong with a dataset at rest, found by reading all of it once.

Memory is bounded by one sample; shards are read in parallel.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any

from shards.dataset import COMMIT_NAME, DATASET, GROWTH_NAME, MANIFEST, Commit, Dataset, failed_key
from shards.errors import CorruptShardError, NotFoundError, StorageError
from shards.objects import Storage
from shards.plan import normalise_caption, planned_count, sample_id
from shards.sample import IMAGE_FORMATS, Expected, check_image, check_tensors, decode_tensors
from shards.storage import open_storage

MAX_MEMBER = 1 << 30  # bytes; a 2048² sample with six layers is under 200 MB, a larger claim is a bomb
MEMBER_SUFFIXES = ("json", "safetensors", "txt")


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
        return f"{place}: {self.what}"


@dataclass
class Findings:
    """What a verification saw.

    Attributes:
        shards, samples, bytes: read.
        planned: samples that the growth records promise.
        accounted: samples and failures in commits.
        problems: in order of shards.
    """

    shards: int = 0
    samples: int = 0
    bytes: int = 0
    planned: int = 0
    accounted: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every planned sample is in a commit, made or failed."""
        return self.accounted == self.planned


@dataclass(frozen=True)
class _Seen:
    """One shard's content, for the checks across shards: (sample id, hash of the normalised caption, key)."""

    problems: tuple[Problem, ...]
    samples: tuple[tuple[str, str, str], ...]
    bytes: int


def verify(root: str, *, workers: int = 1) -> Findings:
    """Read and check a whole dataset.

    Args:
        root: of the dataset.
        workers: processes that read shards.

    Returns:
        what was seen; no problems when all is well.

    Raises:
        UsageError: there is no dataset.
    """
    dataset = Dataset.open(open_storage(root))
    commits, findings = _commits(dataset)
    seen_ids: dict[str, str] = {}
    seen_captions: dict[str, tuple[str, str]] = {}
    expected = expected_of(dataset)
    for commit, seen in zip(commits, _read_all(root, commits, expected, workers), strict=True):
        findings.problems += seen.problems
        findings.shards += 1
        findings.samples += len(seen.samples)
        findings.bytes += seen.bytes
        for identity, caption, key in seen.samples:
            if identity in seen_ids:
                findings.problems.append(
                    Problem(commit.name, key, f"id {identity} stands in {seen_ids[identity]} too")
                )
            seen_ids[identity] = key
            split, other = seen_captions.setdefault(caption, (commit.split, key))
            if split != commit.split:
                findings.problems.append(
                    Problem(commit.name, key, f"its caption stands in both splits, in {other} too")
                )
    findings.problems += _foreign(dataset, commits)
    findings.accounted = sum(commit.samples + commit.failed for commit in commits)
    findings.planned = planned_count(dataset.segments())
    return findings


def expected_of(dataset: Dataset) -> Expected:
    """What the dataset's settings promise of every sample."""
    settings = dataset.settings
    return Expected(
        text_modes=tuple(settings["text_modes"]),
        layers=tuple(settings["layers"]),
        width=settings.get("width", 0),
        height=settings.get("height", 0),
    )


def _commits(dataset: Dataset) -> tuple[list[Commit], Findings]:
    """Commits that can be read, and what is wrong with the others; the files themselves, not the manifest."""
    findings, commits = Findings(), []
    for name in sorted(dataset.committed()):
        try:
            commit = Commit.from_json(dataset.commit_file(name))
            expected_tar = f"{commit.split}/pairs-{commit.shard:06d}.tar"
            if (commit.name, commit.tar) != (
                name,
                expected_tar,
            ) or f"{commit.split}-{commit.shard:06d}" != name:
                raise ValueError(f"it names {commit.name} and {commit.tar}")
        except (ValueError, TypeError, AttributeError, CorruptShardError) as error:
            findings.problems.append(Problem(name, "", f"its commit cannot be believed: {error}"))
            continue
        if commit.fingerprint != dataset.fingerprint:
            findings.problems.append(Problem(name, "", "its commit carries another dataset's fingerprint"))
        commits.append(commit)
    return commits, findings


def _read_all(root: str, commits: list[Commit], expected: Expected, workers: int) -> Iterator[_Seen]:
    if workers == 1:
        storage = open_storage(root)
        yield from (_check_shard(storage, commit, expected) for commit in commits)
        return
    with ProcessPoolExecutor(max_workers=workers) as pool:
        yield from pool.map(_check_shard_at, [root] * len(commits), commits, [expected] * len(commits))


def _check_shard_at(root: str, commit: Commit, expected: Expected) -> _Seen:
    return _check_shard(open_storage(root), commit, expected)


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
        except OSError as error:  # the store failed, which says nothing about the shard
            raise StorageError(f"reading failed after {self.count:,} bytes: {error}") from error
        self.digest.update(data)
        self.count += len(data)
        buffer[: len(data)] = data
        return len(data)


def _check_shard(storage: Storage, commit: Commit, expected: Expected) -> _Seen:
    """Hash, structure and content of one shard."""
    problems: list[Problem] = []
    samples: list[tuple[str, str, str]] = []
    try:
        with storage.open(commit.tar) as file:
            stream = _Hashing(file)
            _check_tar(stream, commit, expected, problems, samples)
            while stream.read(1 << 20):  # what stands behind the archive's end counts for the hash
                pass
    except NotFoundError:
        return _Seen((Problem(commit.name, "", f"{commit.tar} is missing"),), (), 0)
    if stream.count != commit.bytes:
        problems.append(
            Problem(commit.name, "", f"{commit.tar} has {stream.count} bytes, its commit says {commit.bytes}")
        )
    elif stream.digest.hexdigest() != commit.sha256:
        problems.append(Problem(commit.name, "", f"{commit.tar} has another SHA-256 than its commit says"))
    if len(samples) != commit.samples:
        problems.append(
            Problem(commit.name, "", f"{len(samples)} whole samples, its commit says {commit.samples}")
        )
    if storage.stat(commit.parquet) is None:
        problems.append(Problem(commit.name, "", f"{commit.parquet} is missing"))
    if commit.failed and storage.stat(failed_key(commit.name)) is None:
        problems.append(Problem(commit.name, "", f"{failed_key(commit.name)} is missing"))
    return _Seen(tuple(problems), tuple(samples), stream.count)


def _check_tar(
    stream: _Hashing,
    commit: Commit,
    expected: Expected,
    problems: list[Problem],
    samples: list[tuple[str, str, str]],
) -> None:
    """Walk the archive; a broken one ends the walk, not the verification."""
    key, members, done = "", dict[str, bytes](), set[str]()

    def finish() -> None:
        if not members:
            return
        problem = _check_members(key, members, commit, expected, samples)
        if problem:
            problems.append(Problem(commit.name, key, problem))

    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=tarfile.RECORDSIZE) as tar:
            for member in tar:
                stem, _, suffix = member.name.partition(".")
                if problem := _check_header(member, commit):
                    problems.append(Problem(commit.name, stem, problem))
                    if member.size > commit.bytes:
                        return  # to skip what it claims to hold would take for ever
                    continue
                if stem != key:
                    finish()
                    done.add(key)
                    key, members = stem, {}
                    if key in done:
                        problems.append(Problem(commit.name, key, "its members are not next to each other"))
                if suffix in members:
                    problems.append(Problem(commit.name, key, f"member .{suffix} stands twice"))
                content = tar.extractfile(member)
                assert content is not None, "headers were checked to be files"
                members[suffix] = content.read()
            finish()
    except (tarfile.TarError, EOFError) as error:
        problems.append(Problem(commit.name, key, f"the tar is broken: {error}"))


def _check_header(member: tarfile.TarInfo, commit: Commit) -> str:
    """What is wrong with a member before its content is read; empty when nothing is."""
    stem, _, suffix = member.name.partition(".")
    prefix = f"{commit.name}-"
    if (
        "/" in member.name
        or "\\" in member.name
        or not stem.startswith(prefix)
        or not stem[len(prefix) :].isdigit()
    ):
        return f"member {member.name!r} does not belong here"
    if not member.isreg():
        return f"member {member.name!r} is no plain file (type {member.type!r})"
    if suffix not in (*MEMBER_SUFFIXES, *IMAGE_FORMATS):
        return f"member {member.name!r} is not one of a sample's four"
    if member.size > min(MAX_MEMBER, commit.bytes):
        return f"member {member.name!r} claims {member.size:,} bytes in a tar of {commit.bytes:,}"
    return ""


def _check_members(
    key: str,
    members: dict[str, bytes],
    commit: Commit,
    expected: Expected,
    samples: list[tuple[str, str, str]],
) -> str:
    """What is wrong with a sample; empty, and the sample counted, when nothing is."""
    images = [suffix for suffix in IMAGE_FORMATS if suffix in members]
    if len(images) != 1 or set(members) != {*MEMBER_SUFFIXES, *images}:
        return f"has members {', '.join(sorted(members))}; a sample has json, safetensors, txt and one image"
    try:
        caption = members["txt"].decode("utf-8")
        metadata = json.loads(members["json"])
        if metadata["caption"] != caption:
            return "the captions of .txt and .json differ"
        if metadata["id"] != sample_id(caption):
            return f"id {metadata['id']!r} is not that of its caption"
        check_image(members[images[0]], expected)
        check_tensors(decode_tensors(members["safetensors"]), expected)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"does not decode: {error}"
    normal = hashlib.sha256(normalise_caption(caption).encode()).hexdigest()
    samples.append((metadata["id"], normal, key))
    return ""


def _foreign(dataset: Dataset, commits: Iterable[Commit]) -> list[Problem]:
    """Files that belong to nothing; uncommitted leftovers are told apart, since gc removes them."""
    own = {DATASET, MANIFEST, "_lease.json"}
    for commit in commits:
        own |= {commit.tar, commit.parquet, failed_key(commit.name)}
    problems = []
    for entry in dataset.storage.list():
        if entry.key in own or _is_record(entry.key):
            continue
        if is_leftover(entry.key):
            continue
        problems.append(Problem(entry.key, "", "a foreign file; nothing of this dataset names it"))
    return problems


def _is_record(key: str) -> bool:
    """Whether a key is a commit's or a growth record's."""
    return bool(COMMIT_NAME.fullmatch(key) or GROWTH_NAME.fullmatch(key))


def is_leftover(key: str) -> bool:
    """Whether a file is named like a shard's, so that without a commit it is what a crash left."""
    folder, _, name = key.rpartition("/")
    stem, dot, suffix = name.partition(".")
    if folder in ("train", "val"):
        number = stem.removeprefix("pairs-")
        return (
            stem.startswith("pairs-")
            and len(number) == 6
            and number.isdigit()
            and dot + suffix in (".tar", ".parquet")
        )
    split, _, number = stem.partition("-")
    return folder == "failed" and split in ("train", "val") and number.isdigit() and suffix == "parquet"
