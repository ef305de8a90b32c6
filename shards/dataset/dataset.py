"""A dataset under its root: what it is, what is planned, what is committed.

The listing of `_commit/` is the only truth about what exists. `manifest.json` is a cache of the commits' contents
that spares readers one request per shard; it is believed only where its entry's tag is the listing's.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from shards.errors import (
    AlreadyExistsError,
    CorruptShardError,
    DatasetMismatchError,
    NotFoundError,
    OptionError,
    StorageError,
    UsageError,
)
from shards.format.commit import COMMIT_NAME, COMMITS, Commit, commit_key
from shards.format.plan import Plan, PlannedShard, Segment
from shards.format.statistics import RunningStatistics
from shards.stores.store import (
    MAX_PARSED,
    MAX_RECORD,
    MAX_WHOLE,
    Entry,
    Storage,
    json_object,
    read_json_object,
)

FORMAT_VERSION = 2
READ_VERSIONS = (1, 2)  # version 1 has no `test`
DATASET = "dataset.json"
MANIFEST = "manifest.json"
GROWTH = "_plan/"
BESIDE = ("_lease.json", "_probe/", "_run/")  # what is no part of a dataset
MANIFEST_BYTES = 4096  # of a shard in it, at most; 1,200 where each had a maker on record
READERS = 8  # requests under way at once: a store answers many, and one after the other each waits for its round trip
Seen = Mapping[str, tuple[str, Commit]]  # commits by shard name, each with the tag of its file
GROWTH_NAME = re.compile(r"_plan/[0-9]{6}\.json")


def fingerprint_of(settings: Mapping[str, Any]) -> str:
    """SHA-256 over the settings as canonical JSON."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_new(storage: Storage) -> bool:
    """Whether a root is empty, so that a dataset can be made there.

    Raises:
        UsageError: it holds something that is no dataset.
    """
    if storage.stat(DATASET) is not None:
        return False
    # A writer's lease and probe may stand in a root before the dataset does, a run's record after it was removed.
    foreign = next((entry for entry in storage.list() if not entry.key.startswith(BESIDE)), None)
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
        self.version: int = description["format_version"]

    @classmethod
    def open(cls, storage: Storage) -> "Dataset":
        """Open what is there.

        Raises:
            UsageError: there is no dataset, or one of another format version.
        """
        try:
            description = read_json_object(storage, DATASET)
        except NotFoundError:
            raise UsageError(
                f"{storage.root}: no dataset there ({DATASET} is missing); check the path, or build one first"
            ) from None
        if description.get("format_version") not in READ_VERSIONS:
            raise UsageError(
                f"{storage.root}: format version {description.get('format_version')!r}, this program reads "
                f"{' and '.join(map(str, READ_VERSIONS))}; use the version that wrote it"
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
            UsageError: the root holds something else, or a dataset of an earlier format.
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
                storage.put_bytes(DATASET, json_object(description), create_only=True)
        dataset = cls.open(storage)
        dataset.require_writable()
        if dataset.fingerprint != fingerprint_of(settings):
            differences = "; ".join(setting_differences(dataset.settings, settings))
            raise DatasetMismatchError(
                f"{storage.root} was made with other settings: {differences}. Use those, or another root"
            )
        return dataset

    @property
    def image_size(self) -> tuple[int, int, int]:
        """Width and height of every picture, and what its longer side has at most; 0 where the settings leave it open.

        Raises:
            CorruptShardError: the settings do not say it in numbers.
        """
        imported = self.settings.get("import", {})
        longest = imported.get("max_side", 0) if isinstance(imported, Mapping) else -1
        width, height = self.settings.get("width", 0), self.settings.get("height", 0)
        if not all(type(size) is int and size >= 0 for size in (width, height, longest)):
            raise CorruptShardError(
                f"{self.storage.root}/{DATASET}: its settings give no size of pictures in pixels; build into a new root"
            )
        return width, height, longest

    def require_writable(self) -> None:
        """Raise UsageError for a dataset of an earlier format: it is read, and never changed."""
        if self.version != FORMAT_VERSION:
            raise UsageError(
                f"{self.storage.root}: format version {self.version} is only read, this program writes "
                f"{FORMAT_VERSION}; build or import into a new root"
            )

    def require_present(self) -> None:
        """Raise StorageError where the dataset was removed since it was opened: shards without it are of no use."""
        if self.storage.stat(DATASET) is None:
            raise StorageError(
                f"{self.storage.url(DATASET)} is gone: the dataset was removed while it was written to, and nothing "
                "more is put there; see that nothing removes it, and run it again to begin anew"
            )

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
            raise OptionError(
                f"samples = {samples}: {self.storage.root} is planned for {total}; "
                f"a dataset only grows, use {total} or more"
            )
        if recorded and not append:
            raise OptionError(
                f"samples = {samples}: {self.storage.root} is planned for {total}; "
                f"pass --append true to grow it"
            )
        if not self.record(len(recorded), {"samples": samples}):
            # Another builder grew it meanwhile: judge again from what is there now.
            return self.grow(samples, append=append)
        return (*recorded, samples)

    def record(self, number: int, content: Mapping[str, Any]) -> bool:
        """Put a growth record, create-only; False when another builder put one of that number."""
        data = {**content, "created": datetime.now(UTC).isoformat(timespec="seconds")}
        try:
            self.storage.put_bytes(f"{GROWTH}{number:06d}.json", json_object(data), create_only=True)
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
                segment = _segment(read_json_object(self.storage, entry.key))
                if entry.key != f"{GROWTH}{len(segments):06d}.json":
                    raise ValueError(f"record {len(segments)} is missing")
                if isinstance(segment, int):
                    if segment <= total:
                        raise ValueError(f"{segment} samples do not follow {total}")
                    total = segment
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptShardError(
                    f"{self.storage.root}: growth record {entry.key} is corrupt: {error}"
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
        return self.storage.stat(commit_key(name)) is not None

    def missing(self, plan: Plan) -> list[PlannedShard]:
        """Planned shards that are not committed; one listing."""
        there = self.committed()
        return [shard for shard in plan.shards if shard.name not in there]

    def commits(self) -> list[Commit]:
        """All commits, by name; reads only those that the manifest does not know."""
        return [commit for _, (_, commit) in sorted(self.look().items())]

    def commit(self, name: str) -> Commit:
        """The commit of a shard; NotFoundError where there is none, CorruptShardError where it is not its own."""
        return self._believed(name, self.commit_file(name))

    def look(self, seen: Seen | None = None) -> dict[str, tuple[str, Commit]]:
        """Tags and commits by name: one listing, and a request for each commit that was not seen before.

        Args:
            seen: what an earlier look gave; without, what the manifest knows.
        """
        entries = self.committed()
        before = self._manifest(len(entries)) if seen is None else seen
        found = {
            name: before[name] for name in entries if name in before and before[name][0] == entries[name].tag
        }
        for name, data in self.commit_files([name for name in entries if name not in found]):
            found[name] = entries[name].tag, self._believed(name, data)
        return found

    def commit_file(self, name: str) -> dict[str, Any]:
        """The commit of a shard as it stands in its file, statistics included; CorruptShardError where it is none."""
        return read_json_object(self.storage, commit_key(name))

    def commit_files(self, names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Names of shards and their commits as they stand in their files; a request each, several under way at once.

        Few are held at a time: with their statistics, those of the 4B models have a megabyte each.
        """
        rest = iter(names)
        with ThreadPoolExecutor(READERS) as pool:
            while some := list(islice(rest, 2 * READERS)):
                yield from zip(some, pool.map(self.commit_file, some), strict=True)

    def statistics(self, split: str) -> dict[str, RunningStatistics]:
        """Statistics of a split, merged over its shards; keys such as `vl.none.-8/image`."""
        merged: dict[str, RunningStatistics] = {}
        names = [name for name in sorted(self.committed()) if name.startswith(f"{split}-")]
        for name, commit in self.commit_files(names):
            try:
                for label, data in commit["statistics"].items():
                    part = RunningStatistics.from_json(data)
                    if label in merged:
                        merged[label].merge(part)
                    else:
                        merged[label] = part
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CorruptShardError(
                    f"{name}: the statistics in its commit are corrupt: {error!r:.200}; run repair, then build"
                ) from None
        return merged

    def write_manifest(self) -> None:
        """Rewrite the manifest from the commits; a shard committed meanwhile waits for the next one."""
        self.require_present()
        shards = [{**asdict(commit), "commit_tag": tag} for _, (tag, commit) in sorted(self.look().items())]
        content = {"format_version": FORMAT_VERSION, "fingerprint": self.fingerprint, "shards": shards}
        self.storage.put_bytes(MANIFEST, json_object(content))

    def _believed(self, name: str, data: Mapping[str, Any]) -> Commit:
        """The commit that a file or the manifest holds; CorruptShardError where it is not this shard's."""
        try:
            commit = Commit.from_json(data)
            if commit.name != name or commit.fingerprint != self.fingerprint:
                raise ValueError(f"it is {commit.name} of fingerprint {str(commit.fingerprint)[:16]}")
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptShardError(
                f"{name}: its commit is corrupt: {error}; run `python -m shards verify`"
            ) from None
        return commit

    def _manifest(self, shards: int) -> Seen:
        """What the manifest says of so many shards; it may take memory in proportion to them alone."""
        size = shards * MANIFEST_BYTES
        try:
            content = read_json_object(
                self.storage, MANIFEST, min(MAX_RECORD + size, MAX_WHOLE), MAX_PARSED + 8 * size
            )
            return {
                shard["name"]: (shard["commit_tag"], self._believed(shard["name"], shard))
                for shard in content["shards"]
            }
        except (NotFoundError, CorruptShardError, KeyError, TypeError, AttributeError):
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


def setting_differences(ours: Any, theirs: Any, path: str = "") -> Iterable[str]:
    """Each key in which two settings differ, with both values."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in sorted(ours.keys() | theirs.keys()):
            inner = f"{path}.{key}" if path else key
            yield from setting_differences(ours.get(key, "(absent)"), theirs.get(key, "(absent)"), inner)
    elif ours != theirs:
        yield f"{path} is {ours!r} there and {theirs!r} here"
