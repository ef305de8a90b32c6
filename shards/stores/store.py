"""What a store of whole objects does, whichever kind it is; both kinds and all their users know this page."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from shards.errors import CorruptShardError, OversizeError

MAX_WHOLE = 1 << 30  # bytes read into memory at once; a manifest of a million shards takes 600 MB
MAX_RECORD = (
    64 << 20
)  # bytes of any other JSON object or side file; the largest of real datasets have a few MB
MAX_PARSED = 200 << 20  # bytes that a JSON text may take in memory; commits of 36 layers take about 60 MB
TEMPORARY = ".tmp-"  # prefix of names under construction; no reader and no listing shows them


@dataclass(frozen=True)
class Entry:
    """An object: its key relative to the root, its size in bytes, and a tag that changes with its content.

    `written` is when, in seconds since 1970 by the store's clock.
    """

    key: str
    size: int
    tag: str
    written: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Folder:
    """What lies directly in a folder of a store: the names of its objects and those of its folders, in order."""

    objects: tuple[str, ...]
    folders: tuple[str, ...]

    @classmethod
    def of(cls, objects: Iterable[str], folders: Iterable[str]) -> "Folder":
        """Without names under construction, and without foreign names that are no part of a key."""
        return cls(*(tuple(sorted(filter(_is_shown, names))) for names in (objects, folders)))


class Storage(Protocol):
    """What both kinds of store do. Keys are relative and `/`-separated."""

    root: str

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> None:
        """Put a local file as an object; AlreadyExistsError with `create_only` where one is."""

    def put_bytes(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Put bytes as an object; AlreadyExistsError with `create_only` where one is."""

    def get_bytes(self, key: str, most: int = MAX_WHOLE) -> bytes:
        """The object's bytes; NotFoundError where there is none, OversizeError above `most` bytes, unread."""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; StorageError when the object is shorter."""

    def open(self, key: str) -> BinaryIO:
        """A sequential reader; NotFoundError where there is none."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Objects whose key begins with the prefix, in key order."""

    def look(self, folder: str = "") -> Folder:
        """What lies directly in a folder, without what lies deeper; empty where there is none. "" is the root."""

    def stat(self, key: str) -> Entry | None:
        """The object's entry, None where there is none."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""

    def abandoned(self) -> tuple[Entry, ...]:
        """What killed writers left under names that no listing shows, and nobody is writing any more."""

    def honours_create_only(self) -> bool:
        """Whether `create_only` really refuses to overwrite."""

    def clock_ahead(self) -> float | None:
        """Seconds by which this machine's clock is ahead of the store's; None where the store has no clock."""

    def url(self, key: str) -> str:
        """The object's address for stock readers."""


def check_key(key: str) -> str:
    """Refuse keys that could leave the root; returns the key."""
    parts = key.split("/")
    if (
        not key
        or key.startswith("/")
        or "\\" in key
        or "\0" in key
        or any(p in ("", ".", "..") for p in parts)
    ):
        raise ValueError(f"not a relative key: {key!r}")
    return key


def _is_shown(name: str) -> bool:
    try:
        return not check_key(name).startswith(TEMPORARY)
    except ValueError:
        return False


def json_object(content: Mapping[str, Any]) -> bytes:
    """JSON as it lies in a store: sorted, indented, UTF-8, so that a person can read it and bytes can be compared."""
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def parse_json(data: bytes, most: int = MAX_PARSED) -> Any:
    """JSON, whoever wrote it, bounded in the memory that it takes: 64 MB of `[],` would take 1.4 GB.

    Args:
        data: the text, UTF-8.
        most: bytes that it may take, by what a Python object of each kind takes.

    Returns:
        what it says.

    Raises:
        ValueError: no JSON, or larger or deeper than that.
    """
    check_parsed(data, most)
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_parsed(data: bytes, most: int) -> None:
    """ValueError where a JSON text may take more memory than that; see `parse_json`."""
    # The bytes, the text and its strings; one wide letter widens a whole string.
    letters = 3 if data.isascii() else 9
    takes = letters * len(data) + 64 * data.count(b"[") + 240 * data.count(b"{") + 40 * data.count(b",")
    if takes > most:
        raise ValueError(f"it would take {takes / 1e6:,.0f} MB in memory, more than {most / 1e6:,.0f}")


def read_json_object(
    storage: Storage, key: str, most: int = MAX_RECORD, parsed: int = MAX_PARSED
) -> dict[str, Any]:
    """A JSON object from a store, whoever wrote it: bounded in size, memory and depth.

    Raises:
        NotFoundError: there is none.
        CorruptShardError: it is too large, no JSON, nested too deeply, or no object; names it.
    """
    try:
        content = parse_json(storage.get_bytes(key, most), parsed)
    except (ValueError, OversizeError) as error:
        raise CorruptShardError(f"{storage.root}/{key} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CorruptShardError(f"{storage.root}/{key} holds no JSON object")
    return content


def check_size(url: str, size: int, most: int) -> None:
    """OversizeError when an object is larger than what is read into memory."""
    if size > most:
        raise OversizeError(f"{url} has {size:,} bytes, more than the {most:,} that such an object may have")
