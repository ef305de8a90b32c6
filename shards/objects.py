"""What a store of whole objects does, whichever kind it is; both kinds and all their users know this page."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

TEMPORARY = ".tmp-"  # prefix of names under construction; no reader and no listing shows them


@dataclass(frozen=True)
class Entry:
    """An object: its key relative to the root, its size in bytes, and a tag that changes with its content."""

    key: str
    size: int
    tag: str


class Storage(Protocol):
    """What both kinds of store do. Keys are relative and `/`-separated."""

    root: str

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> None:
        """Put a local file as an object; AlreadyExistsError with `create_only` where one is."""

    def put_bytes(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Put bytes as an object; AlreadyExistsError with `create_only` where one is."""

    def get_bytes(self, key: str) -> bytes:
        """The object's bytes; NotFoundError where there is none."""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; StorageError when the object is shorter."""

    def open(self, key: str) -> BinaryIO:
        """A sequential reader; NotFoundError where there is none."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Objects whose key begins with the prefix, in key order."""

    def stat(self, key: str) -> Entry | None:
        """The object's entry, None where there is none."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""

    def honours_create_only(self) -> bool:
        """Whether `create_only` really refuses to overwrite."""

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
