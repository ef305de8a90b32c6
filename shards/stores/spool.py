"""A local folder for shards under construction: checked for room, cleaned of what dead processes left."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import UsageError
from shards.stores.local import writing

PREFIX = "shard-workspace-"


class Spool:
    """Workspaces for this process under a folder that processes and containers of one machine share.

    Who has a workspace holds a lock on its folder, which the kernel gives up with the process: a workspace whose
    lock can be taken is a leftover. Process ids would not do, they mean nothing in another container. Where the file
    system locks no folders (NFS), leftovers are kept.

    Args:
        folder: made when absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"spool folder {str(folder)!r}: cannot be made: {error.strerror}") from None
        self._remove_leftovers()

    @classmethod
    def at(cls, folder: str | None) -> "Spool":
        """The spool in a folder; None for the one that all processes of this user on this machine share.

        Raises:
            UsageError: it cannot be made, or the shared one is somebody else's.
        """
        if folder:
            return cls(Path(folder))
        shared = Path(tempfile.gettempdir(), f"z-image-projector-spool-{os.getuid()}")
        with suppress(OSError):  # said below
            shared.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A link is its maker's, wherever it leads.
        if shared.is_symlink() or (shared.is_dir() and shared.stat().st_uid != os.getuid()):
            raise UsageError(
                f"spool folder {str(shared)!r}: was made by user {shared.lstat().st_uid}, who could replace what is "
                "written there; remove it, or name another folder"
            )
        spool = cls(shared)
        shared.chmod(0o700)
        return spool

    def check_room(self, needed: int) -> None:
        """Make sure that work which takes `needed` bytes can begin.

        Raises:
            UsageError: less is free.
        """
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UsageError(
                f"spool folder {str(self.folder)!r}: {free / 1e6:,.1f} MB free, {needed / 1e6:,.1f} MB needed for a "
                "shard under construction; free some, name another folder, or make smaller shards"
            )

    @contextmanager
    def workspace(self, name: str) -> Iterator[Path]:
        """A folder of one's own, removed at the end whatever happens.

        Raises:
            StorageError: it cannot be made.
        """
        with writing(self.folder / f"{PREFIX}{name}"):
            folder, lock = self._make(name)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def _make(self, name: str) -> tuple[Path, int]:
        """A new folder and its lock; made again where another process took it for a leftover before it was locked."""
        while True:
            folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-", dir=self.folder))
            with suppress(FileNotFoundError):
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                # Where folders cannot be locked, nobody takes this one for a leftover either.
                with suppress(OSError):
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if _is_at(lock, folder):
                    return folder, lock
                os.close(lock)

    def _remove_leftovers(self) -> None:
        """Remove workspaces whose process is gone."""
        for folder in self.folder.glob(f"{PREFIX}*"):
            try:
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except OSError:  # removed meanwhile, another user's, or no folder
                continue
            with suppress(OSError):  # its process has the lock
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(lock, folder):
                    shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open folder is still what a path names."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
