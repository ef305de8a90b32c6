"""The one door to where datasets live: a local folder or an S3-compatible store.

Objects are put whole: nobody ever sees half of one under its final name.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from shards.errors import AlreadyExistsError, NotFoundError, StorageError, UsageError

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


def open_storage(root: str) -> Storage:
    """The store behind a root.

    Args:
        root: a local folder (made on first put) or s3://bucket/prefix.

    Raises:
        UsageError: empty, or a scheme that is neither.
    """
    if not root.strip():
        raise UsageError("the dataset's root is empty; give a local folder or s3://bucket/prefix")
    scheme, separator, _ = root.partition("://")
    if not separator:
        return LocalStorage(root)
    if scheme == "s3":
        from shards.s3 import S3Storage  # boto3 takes time to import and local runs never need it

        return S3Storage(root)
    raise UsageError(f"root {root!r}: unknown scheme {scheme!r}; give a local folder or s3://bucket/prefix")


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


class LocalStorage:
    """A folder. Puts write a temporary name beside the final one, sync it, then link or rename it."""

    def __init__(self, root: str) -> None:
        self._folder = Path(root).expanduser().absolute()
        self.root = str(self._folder)
        if self._folder.exists() and not self._folder.is_dir():
            raise UsageError(f"root {root!r}: is a file; give a folder or s3://bucket/prefix")

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> None:
        """Copy a file in; see `Storage.put_file`."""
        with path.open("rb") as source:
            self._put(key, source, create_only)

    def put_bytes(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write bytes; see `Storage.put_bytes`."""
        self._put(key, data, create_only)

    def _put(self, key: str, source: BinaryIO | bytes, create_only: bool) -> None:
        final = self._path(key)
        draft = final.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("xb") as file:
                if isinstance(source, bytes):
                    file.write(source)
                else:
                    shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            if create_only:
                os.link(draft, final)  # fails where the name exists; rename would replace it
            else:
                draft.replace(final)
            _sync_folder(final.parent)
        except FileExistsError:
            raise AlreadyExistsError(f"{self.url(key)} exists already") from None
        except OSError as error:
            raise StorageError(f"cannot write {self.url(key)}: {_reason(error, final.parent)}") from error
        finally:
            draft.unlink(missing_ok=True)

    def get_bytes(self, key: str) -> bytes:
        """See `Storage.get_bytes`."""
        with self.open(key) as file:
            return file.read()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See `Storage.get_range`."""
        with self.open(key) as file:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise StorageError(
                f"{self.url(key)}: {len(data)} bytes at {start} instead of {length}; it was cut short"
            )
        return data

    def open(self, key: str) -> BinaryIO:
        """See `Storage.open`."""
        try:
            return self._path(key).open("rb")
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"{self.url(key)} does not exist") from None
        except OSError as error:
            raise StorageError(f"cannot read {self.url(key)}: {error.strerror}") from error

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See `Storage.list`; links are not followed."""
        folder = self._folder / prefix.rpartition("/")[0]
        found: list[Entry] = []
        for parent, _, names in os.walk(folder):
            base = Path(parent).relative_to(self._folder)
            for name in names:
                key = (base / name).as_posix()
                if name.startswith(TEMPORARY) or not key.startswith(prefix):
                    continue
                entry = self.stat(key)
                if entry is not None:
                    found.append(entry)
        yield from sorted(found, key=lambda entry: entry.key)

    def stat(self, key: str) -> Entry | None:
        """See `Storage.stat`; a link counts as absent."""
        try:
            facts = self._path(key).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not os.path.isfile(self._path(key)) or self._path(key).is_symlink():
            return None
        return Entry(key, facts.st_size, f"{facts.st_mtime_ns:x}-{facts.st_ino:x}")

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        self._path(key).unlink(missing_ok=True)

    def honours_create_only(self) -> bool:
        """A link never replaces a name."""
        return True

    def url(self, key: str) -> str:
        """An absolute path."""
        return str(self._path(key))

    def _path(self, key: str) -> Path:
        return self._folder / check_key(key)


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        return f"the disk is full ({free / 1e6:,.0f} MB free at {folder}); free some and run again"
    return error.strerror or str(error)
