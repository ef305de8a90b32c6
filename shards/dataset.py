"""A dataset under its root: what it is, what is planned, what is committed.

The listing of `_commit/` is the only truth about what exists. `manifest.json` is a cache of the commits' contents
that spares readers one request per shard; it is believed only where its entry's tag is the listing's.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from shards.crash import crash_point
from shards.errors import (
    AlreadyExistsError,
    CorruptShardError,
    DatasetMismatchError,
    NotFoundError,
    StorageError,
    UsageError,
)
from shards.objects import Entry, Storage
from shards.plan import Plan, PlannedShard, Segment
from shards.statistics import RunningStatistics
from shards.write import COMMIT_KEY, BuiltShard

FORMAT_VERSION = 1
DATASET = "dataset.json"
MANIFEST = "manifest.json"
COMMITS = "_commit/"
GROWTH = "_plan/"
COMMIT_NAME = re.compile(r"_commit/((?:train|val)-[0-9]{6})\.json")
GROWTH_NAME = re.compile(r"_plan/[0-9]{6}\.json")


@dataclass(frozen=True)
class Commit:
    """What makes a shard exist. `statistics` stays in the file: it is large and few ask for it."""

    name: str
    split: str
    shard: int
    tar: str
    sha256: str
    bytes: int
    samples: int
    failed: int
    fingerprint: str
    slice_hash: str
    attempt: str
    wall_seconds: float
    device_seconds: float
    device: str
    created: str
    adopted: bool

    @property
    def parquet(self) -> str:
        """Key of the shard's side file."""
        return self.tar.removesuffix(".tar") + ".parquet"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Commit":
        """A commit from its file; ValueError when a field is missing."""
        try:
            commit = cls(**{field.name: data[field.name] for field in fields(cls)})
        except KeyError as error:
            raise ValueError(f"commit lacks {error}") from None
        if (commit.name, commit.tar) != (
            f"{commit.split}-{commit.shard:06d}",
            f"{commit.split}/pairs-{commit.shard:06d}.tar",
        ):
            raise ValueError(f"commit names {commit.name!r} and {commit.tar!r}, which do not belong together")
        return commit


def fingerprint_of(settings: Mapping[str, Any]) -> str:
    """SHA-256 over the settings as canonical JSON."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def failed_key(name: str) -> str:
    """Key of the dead-letter file of a shard."""
    return f"failed/{name}.parquet"


def is_new(storage: Storage) -> bool:
    """Whether a root is empty, so that a dataset can be made there.

    Raises:
        UsageError: it holds something that is no dataset.
    """
    if storage.stat(DATASET) is not None:
        return False
    # A writer's lease and probe may stand in a root before the dataset does.
    foreign = next(
        (entry for entry in storage.list() if not entry.key.startswith(("_lease.json", "_probe/"))), None
    )
    if foreign is not None:
        raise UsageError(
            f"{storage.root}: holds something that is no dataset ({foreign.key}, no {DATASET}); "
            "give an empty or new root"
        )
    return True


class Dataset:
    """An opened dataset. Make one with `open` or `create_or_open`."""

    def __init__(self, storage: Storage, description: Mapping[str, Any]) -> None:
        self.storage = storage
        self.settings: Mapping[str, Any] = description["settings"]
        self.packages: Mapping[str, str] = description["packages"]
        self.fingerprint: str = description["fingerprint"]
        self.created: str = description["created"]

    @classmethod
    def open(cls, storage: Storage) -> "Dataset":
        """Open what is there.

        Raises:
            UsageError: there is no dataset, or one of another format version.
        """
        try:
            description = json.loads(storage.get_bytes(DATASET))
        except NotFoundError:
            raise UsageError(
                f"{storage.root}: no dataset there ({DATASET} is missing); check the path, or build one first"
            ) from None
        except ValueError as error:
            raise CorruptShardError(f"{storage.root}/{DATASET} is not JSON: {error}") from None
        if not isinstance(description, dict):
            raise CorruptShardError(f"{storage.root}/{DATASET} holds no JSON object")
        if description.get("format_version") != FORMAT_VERSION:
            raise UsageError(
                f"{storage.root}: format version {description.get('format_version')!r}, this program reads "
                f"{FORMAT_VERSION}; use the version that wrote it"
            )
        if absent := {"fingerprint", "settings", "packages", "created"} - description.keys():
            raise CorruptShardError(f"{storage.root}/{DATASET} lacks {', '.join(sorted(absent))}")
        if description["fingerprint"] != fingerprint_of(description["settings"]):
            raise CorruptShardError(f"{storage.root}/{DATASET}: the fingerprint is not that of its settings")
        return cls(storage, description)

    @classmethod
    def create_or_open(
        cls, storage: Storage, settings: Mapping[str, Any], packages: Mapping[str, str]
    ) -> "Dataset":
        """Open a dataset for writing, making it where the root is empty.

        Args:
            storage: the root.
            settings: everything that decides the bytes.
            packages: versions, recorded when it is made.

        Raises:
            DatasetMismatchError: it was made with other settings; names each key with both values.
            UsageError: the root holds something else.
        """
        settings = json.loads(json.dumps(settings))  # as it will be read back: tuples are lists
        if is_new(storage):
            description = {
                "format_version": FORMAT_VERSION,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "fingerprint": fingerprint_of(settings),
                "settings": settings,
                "packages": dict(packages),
            }
            # Another builder may have been first; its settings are then checked like any other's.
            with suppress(AlreadyExistsError):
                storage.put_bytes(DATASET, _json(description), create_only=True)
        dataset = cls.open(storage)
        if dataset.fingerprint != fingerprint_of(settings):
            differences = "; ".join(_differences(dataset.settings, settings))
            raise DatasetMismatchError(
                f"{storage.root} was made with other settings: {differences}. Use those, or another root"
            )
        return dataset

    def grow(self, samples: int, *, append: bool) -> tuple[Segment, ...]:
        """Record how many samples are planned.

        Args:
            samples: planned in all.
            append: whether more than before is meant.

        Returns:
            all growth records.

        Raises:
            UsageError: more or fewer than recorded without a word about growing.
        """
        recorded = self.segments()
        total = max((segment for segment in recorded if isinstance(segment, int)), default=0)
        if samples == total:
            return recorded
        if samples < total:
            raise UsageError(
                f"build.samples = {samples}: {self.storage.root} is planned for {total}; "
                f"a dataset only grows, use {total} or more"
            )
        if recorded and not append:
            raise UsageError(
                f"build.samples = {samples}: {self.storage.root} is planned for {total}; "
                "pass --build.append true to grow it"
            )
        if not self.record(len(recorded), {"samples": samples}):
            # Another builder grew it meanwhile: judge again from what is there now.
            return self.grow(samples, append=append)
        return (*recorded, samples)

    def record(self, number: int, content: Mapping[str, Any]) -> bool:
        """Put a growth record, create-only; False when another builder put one of that number."""
        data = {**content, "created": datetime.now(UTC).isoformat(timespec="seconds")}
        try:
            self.storage.put_bytes(f"{GROWTH}{number:06d}.json", _json(data), create_only=True)
        except AlreadyExistsError:
            return False
        return True

    def segments(self) -> tuple[Segment, ...]:
        """The growth records, oldest first; empty before the first build."""
        segments: list[Segment] = []
        total = 0
        for entry in self.storage.list(GROWTH):
            if not GROWTH_NAME.fullmatch(entry.key):
                continue  # foreign: verify names it
            try:
                segment = _segment(json.loads(self.storage.get_bytes(entry.key)))
                if entry.key != f"{GROWTH}{len(segments):06d}.json":
                    raise ValueError(f"record {len(segments)} is missing")
                if isinstance(segment, int):
                    if segment <= total:
                        raise ValueError(f"{segment} samples do not follow {total}")
                    total = segment
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptShardError(
                    f"{self.storage.root}: growth record {entry.key} cannot be believed: {error}"
                ) from None
            segments.append(segment)
        return tuple(segments)

    def committed(self) -> dict[str, Entry]:
        """Names of committed shards, with their commit files; one listing."""
        return {
            match[1]: entry
            for entry in self.storage.list(COMMITS)
            if (match := COMMIT_NAME.fullmatch(entry.key))
        }

    def is_committed(self, name: str) -> bool:
        """Whether a shard is committed by now; one request."""
        return self.storage.stat(f"{COMMITS}{name}.json") is not None

    def missing(self, plan: Plan) -> list[PlannedShard]:
        """Planned shards that are not committed; one listing."""
        there = self.committed()
        return [shard for shard in plan.shards if shard.name not in there]

    def commit(
        self, built: BuiltShard, *, attempt: str, wall_seconds: float, device_seconds: float, device: str
    ) -> Commit:
        """Publish a shard: parquet, tar, then the create-only commit.

        Args:
            built: the shard on local disk.
            attempt: id of this try.
            wall_seconds, device_seconds: what it took.
            device: what it took it on.

        Returns:
            the commit; the other builder's, when one came first with the same content.

        Raises:
            CorruptShardError: a commit of that name stands for other content.
        """
        stem = built.record["tar"].removesuffix(".tar")
        if self.storage.stat(f"{COMMITS}{built.planned.name}.json") is not None:
            return self._other_commit(built.record)
        if self.storage.stat(f"{stem}.tar") is not None:
            adopted = self.adopt(built.planned, attempt=attempt)
            if adopted is not None:
                return adopted
            self.storage.delete(f"{stem}.tar")  # not whole, and no commit names it: debris of a crash
        crash_point("before-parquet")
        if built.failed is not None:
            self.storage.put_file(failed_key(built.planned.name), built.failed)
        self.storage.put_file(f"{stem}.parquet", built.parquet)
        crash_point("after-parquet")
        crash_point("before-tar")
        self._put_tar(built, f"{stem}.tar")
        crash_point("after-tar")
        return self._put_commit(
            built.record,
            {
                "attempt": attempt,
                "wall_seconds": round(wall_seconds, 3),
                "device_seconds": round(device_seconds, 3),
                "device": device,
                "adopted": False,
            },
        )

    def _put_tar(self, built: BuiltShard, key: str) -> None:
        """Put the tar where none is: one that another builder may be about to commit is never replaced.

        Builders on different devices make different bytes; replacing the tar under a commit would lose the shard.
        """
        try:
            self.storage.put_file(key, built.tar, create_only=True)
        except AlreadyExistsError:
            with self.storage.open(key) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            if found != built.record["sha256"]:
                raise StorageError(
                    f"{self.storage.url(key)}: another builder put other content there just now; "
                    "run one build at a time on a root, or run again"
                ) from None

    def _other_commit(self, record: Mapping[str, Any]) -> Commit:
        """The commit that came first; CorruptShardError when it stands for other content."""
        other = self.commit_file(record["name"])
        if (other["sha256"], other["slice_hash"]) != (record["sha256"], record["slice_hash"]):
            raise CorruptShardError(
                f"{record['name']}: attempt {other['attempt']} committed other content (tar {other['sha256'][:12]}) "
                f"while this one wrote {record['sha256'][:12]}; run `python -m shards verify {self.storage.root}`"
            )
        return Commit.from_json(other)

    def adopt(self, planned: PlannedShard, *, attempt: str) -> Commit | None:
        """Commit a shard that lies there whole, left by a run that died just before its commit.

        Args:
            planned: the shard.
            attempt: id of this try.

        Returns:
            the commit, or None where there is nothing to adopt.
        """
        stem = f"{planned.split}/pairs-{planned.index:06d}"
        entry = self.storage.stat(f"{stem}.tar")
        if entry is None or self.storage.stat(f"{stem}.parquet") is None:
            return None
        record = self._record_beside(f"{stem}.parquet")
        if (
            record is None
            or record["fingerprint"] != self.fingerprint
            or record["slice_hash"] != planned.slice_hash
            or record["bytes"] != entry.size
            or (record["failed"] and self.storage.stat(failed_key(planned.name)) is None)
        ):
            return None
        with self.storage.open(f"{stem}.tar") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != record["sha256"]:  # type: ignore[arg-type]
                return None
        # What the lost run spent is not known; zero would be a claim, so the commit says it was adopted.
        return self._put_commit(
            record,
            {"attempt": attempt, "wall_seconds": 0.0, "device_seconds": 0.0, "device": "", "adopted": True},
        )

    def _record_beside(self, key: str) -> dict[str, Any] | None:
        """The commit record that a shard's parquet carries; None when the file is not whole."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            metadata = pq.read_schema(pa.BufferReader(self.storage.get_bytes(key))).metadata or {}
            return dict(json.loads(metadata[COMMIT_KEY]))
        except (pa.ArrowException, KeyError, ValueError, OSError):
            return None

    def _put_commit(self, record: Mapping[str, Any], circumstances: Mapping[str, Any]) -> Commit:
        data = {**record, **circumstances, "created": datetime.now(UTC).isoformat(timespec="seconds")}
        key = f"{COMMITS}{record['name']}.json"
        crash_point("before-commit")
        try:
            self.storage.put_bytes(key, _json(data), create_only=True)
        except AlreadyExistsError:
            return self._other_commit(record)
        crash_point("after-commit")
        return Commit.from_json(data)

    def commits(self) -> list[Commit]:
        """All commits, by name; reads only those that the manifest does not know."""
        return [Commit.from_json(data) for _, data in sorted(self._records(self.committed()).items())]

    def commit_file(self, name: str) -> dict[str, Any]:
        """The commit of a shard as it stands in its file, statistics included."""
        try:
            return dict(json.loads(self.storage.get_bytes(f"{COMMITS}{name}.json")))
        except (ValueError, TypeError) as error:
            raise CorruptShardError(f"{name}: its commit is not a JSON object: {error}") from None

    def statistics(self, split: str) -> dict[str, RunningStatistics]:
        """Statistics of a split, merged over its shards; keys such as `vl.none.-8/image`."""
        merged: dict[str, RunningStatistics] = {}
        for name in sorted(self.committed()):
            if not name.startswith(f"{split}-"):
                continue
            for label, data in self.commit_file(name)["statistics"].items():
                part = RunningStatistics.from_json(data)
                if label in merged:
                    merged[label].merge(part)
                else:
                    merged[label] = part
        return merged

    def write_manifest(self) -> None:
        """Rewrite the manifest from the commits."""
        entries = self.committed()  # one listing: a shard committed after it waits for the next manifest
        shards = [
            {**data, "commit_tag": entries[name].tag} for name, data in sorted(self._records(entries).items())
        ]
        content = {"format_version": FORMAT_VERSION, "fingerprint": self.fingerprint, "shards": shards}
        self.storage.put_bytes(MANIFEST, _json(content))

    def _records(self, entries: Mapping[str, Entry]) -> dict[str, dict[str, Any]]:
        """Commit contents without statistics, by shard name."""
        known = self._manifest()
        records = {}
        for name, entry in entries.items():
            data = known.get(name)
            if data is None or data.get("commit_tag") != entry.tag:
                data = self.commit_file(name)
            try:
                commit = Commit.from_json(data)
                if commit.name != name or commit.fingerprint != self.fingerprint:
                    raise ValueError(f"it is {commit.name} of fingerprint {str(commit.fingerprint)[:16]}")
            except (ValueError, TypeError) as error:
                raise CorruptShardError(
                    f"{name}: its commit cannot be believed: {error}; run `python -m shards verify`"
                ) from None
            records[name] = asdict(commit)
        return records

    def _manifest(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self.storage.get_bytes(MANIFEST))
            return {shard["name"]: shard for shard in content["shards"]}
        except (NotFoundError, ValueError, KeyError, TypeError):
            return {}  # never the truth: without it, or with a broken one, the commits are read


def _segment(record: Mapping[str, Any]) -> Segment:
    """What a growth record says."""
    if "retry" in record:
        identities = tuple(record["retry"])
        if not identities or not all(isinstance(identity, str) for identity in identities):
            raise ValueError(f"retry = {record['retry']!r}")
        return identities
    if not isinstance(record["samples"], int):
        raise ValueError(f"samples = {record['samples']!r}")
    return record["samples"]


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _differences(ours: Any, theirs: Any, path: str = "") -> Iterable[str]:
    """Each key in which two settings differ, with both values."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in sorted(ours.keys() | theirs.keys()):
            inner = f"{path}.{key}" if path else key
            yield from _differences(ours.get(key, "(absent)"), theirs.get(key, "(absent)"), inner)
    elif ours != theirs:
        yield f"{path} is {ours!r} there and {theirs!r} here"
