"""The one door to where datasets live: a local folder or an S3-compatible store.

Objects are put whole: nobody ever sees half of one under its final name.
"""

import errno
import fcntl
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from shards.errors import AlreadyExistsError, NotFoundError, StorageError, UsageError
from shards.stores.store import MAX_WHOLE, TEMPORARY, Entry, Folder, Storage, check_key, check_size

HUB_REPOSITORY = re.compile("(models|datasets|spaces)--")
LOCK = f"{TEMPORARY}lock"  # serialises create-only puts where the file system has no hard links


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
        from shards.stores.s3 import S3Storage  # boto3 takes time to import and local runs never need it

        return S3Storage(root)
    # The rest of the root is not repeated: in other schemes it may hold a password.
    raise UsageError(
        f"root {scheme}://…: unknown scheme {scheme!r}; give a local folder or s3://bucket/prefix"
    )


class LocalStorage:
    """A folder. Puts write a temporary name beside the final one, sync it, then link or rename it."""

    def __init__(self, root: str) -> None:
        self._folder = Path(root).expanduser().absolute()
        self.root = str(self._folder)
        if self._folder.exists() and not self._folder.is_dir():
            raise UsageError(f"root {root!r}: is a file; give a folder or s3://bucket/prefix")
        self._reach = _reach_of(self._folder)

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
            _make_folder(final.parent)
            with draft.open("xb") as file:
                with suppress(
                    OSError
                ):  # where files cannot be locked, nobody takes this one for abandoned either
                    fcntl.flock(file, fcntl.LOCK_EX)
                if isinstance(source, bytes):
                    file.write(source)
                else:
                    shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
                if create_only:
                    _name_once(draft, final)
                else:
                    draft.replace(final)
            _sync_folder(final.parent)
        except FileExistsError as error:
            raise StorageError(f"cannot write {final}: {error.filename} is no folder") from error
        except OSError as error:
            raise StorageError(f"cannot write {final}: {_reason(error, final.parent)}") from error
        finally:
            with suppress(NotADirectoryError):
                draft.unlink(missing_ok=True)

    def get_bytes(self, key: str, most: int = MAX_WHOLE) -> bytes:
        """See `Storage.get_bytes`."""
        with self.open(key) as file, _reading(self.url(key)):
            check_size(self.url(key), file.seek(0, os.SEEK_END), most)
            file.seek(0)
            return file.read()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See `Storage.get_range`."""
        if start < 0 or length < 0:
            raise ValueError(f"not a range of bytes: {length} from {start}; neither may be negative")
        with self.open(key) as file, _reading(self.url(key)):
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise StorageError(
                f"{self.url(key)}: {len(data)} bytes at {start} instead of {length}; it was cut short"
            )
        return data

    def open(self, key: str) -> BinaryIO:
        """See `Storage.open`; a link that leads out is refused, since `stat` calls it absent."""
        path = self._path(key)
        try:
            target = _followed(path, self._reach) or path
            # A pipe would be waited for until somebody writes to it.
            handle = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            file = open(handle, "rb")  # noqa: SIM115 - the caller closes it
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFoundError(f"{path} does not exist") from None
        except OSError as error:
            leads_out = f"it is a symbolic link that leads to no file in {self._reach}"
            reason = leads_out if error.errno == errno.ELOOP else error.strerror
            raise StorageError(f"cannot read {path}: {reason}") from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            file.close()
            raise StorageError(f"cannot read {path}: it is no plain file")
        return file

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See `Storage.list`; links to folders are not followed."""
        folder = self._folder / prefix.rpartition("/")[0]
        found: list[Entry] = []
        for parent, _, names in os.walk(folder, onerror=_unreadable):
            base = Path(parent).relative_to(self._folder)
            for name in names:
                key = (base / name).as_posix()
                if name.startswith(TEMPORARY) or not key.startswith(prefix):
                    continue
                entry = _entry(
                    self._folder / key, key, self._reach
                )  # not stat(): foreign names need not be keys of ours
                if entry is not None:
                    found.append(entry)
        yield from sorted(found, key=lambda entry: entry.key)

    def look(self, folder: str = "") -> Folder:
        """See `Storage.look`; links to folders are not followed."""
        path = self._path(f"{folder}/{TEMPORARY}").parent if folder else self._folder
        try:
            with os.scandir(path) as found:
                entries = list(found)
        except (FileNotFoundError, NotADirectoryError):
            entries = []
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        return Folder.of(
            (
                entry.name
                for entry in entries
                if entry.is_file(follow_symlinks=False) or _followed(Path(entry.path), self._reach)
            ),
            (entry.name for entry in entries if entry.is_dir(follow_symlinks=False)),
        )

    def stat(self, key: str) -> Entry | None:
        """See `Storage.stat`; a link that leads out counts as absent."""
        return _entry(self._path(key), key, self._reach)

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        path = self._path(key)
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise StorageError(f"cannot delete {path}: {error.strerror}") from error

    def abandoned(self) -> tuple[Entry, ...]:
        """See `Storage.abandoned`."""
        found = []
        for parent, _, names in os.walk(self._folder, onerror=_unreadable):
            for name in names:
                path = Path(parent, name)
                if name.startswith(TEMPORARY) and path.name != LOCK:
                    entry = _entry(path, path.relative_to(self._folder).as_posix(), self._reach)
                    if entry is not None and not _is_held(path):
                        found.append(entry)
        return tuple(sorted(found, key=lambda entry: entry.key))

    def honours_create_only(self) -> bool:
        """A link never replaces a name."""
        return True

    def clock_ahead(self) -> None:
        """A folder has no clock that anything is signed against."""
        return

    def url(self, key: str) -> str:
        """An absolute path."""
        return str(self._folder / check_key(key))

    def _path(self, key: str) -> Path:
        """Where a key lies; StorageError where a link on the way leads out of the root."""
        path = self._folder / check_key(key)
        if not path.parent.resolve().is_relative_to(self._folder.resolve()):
            raise StorageError(f"{path}: a symbolic link on the way leads out of {self._folder}; remove it")
        return path


def _unreadable(error: OSError) -> None:
    """Raise what `os.walk` would pass over: a folder that cannot be read must not look empty."""
    if not isinstance(error, FileNotFoundError):  # gone since, or never there: nothing to list
        raise StorageError(f"cannot read {error.filename}: {error.strerror}") from error


def _reach_of(folder: Path) -> Path:
    """The folder that links of a root may lead into: the root itself, or the repository that holds a hub snapshot.

    The hub's cache has files under `datasets--org--name/blobs`, and links to them in `snapshots/REVISION` beside it.
    """
    real = folder.resolve()
    for path in (real, *real.parents):
        repository = path.parent.parent
        if path.parent.name == "snapshots" and HUB_REPOSITORY.match(repository.name):
            return repository
    return real


def _followed(path: Path, reach: Path) -> Path | None:
    """The file that a link leads to; None for what is no link, or leads to no file within reach."""
    try:
        if path.is_symlink():
            target = path.resolve(strict=True)
            return target if target.is_relative_to(reach) and target.is_file() else None
    except (OSError, RuntimeError):  # broken, in a circle, or unreadable
        pass
    return None


def _entry(path: Path, key: str, reach: Path) -> Entry | None:
    try:
        facts = (_followed(path, reach) or path).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # no file has such a name
            return None
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(facts.st_mode):
        return None
    return Entry(key, facts.st_size, f"{facts.st_mtime_ns:x}-{facts.st_ino:x}", facts.st_mtime)


def _is_held(path: Path) -> bool:
    """Whether a process is writing a file, as far as can be told: it then holds a lock on it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # done meanwhile, or another user's
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot read {name}: {error.strerror}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system has against writing a local file into a StorageError that says what and why."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {_reason(error, path.parent)}") from error


def _name_once(draft: Path, final: Path) -> None:
    """Give a finished draft its name, unless that is taken; a rename would replace what is there."""
    try:
        os.link(draft, final)
    except FileExistsError:
        if draft.stat().st_nlink > 1:  # NFS: the link was made, its answer lost, and the request sent again
            return
        raise AlreadyExistsError(f"{final} exists already") from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # No hard links (FAT, some FUSE mounts): look and rename under the folder's lock, which dies with its holder.
        with (final.parent / LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.lexists(final):
                raise AlreadyExistsError(f"{final} exists already") from None
            draft.replace(final)


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, each new name synced: a power cut must not take a committed shard's folder."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        _sync_folder(path.parent)


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
