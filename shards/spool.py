"""A local folder for shards under construction: checked for room, cleaned of what dead processes left."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import UsageError

PREFIX = "building-"


def default_spool() -> Path:
    """The folder that stands in where none is named; all processes of a machine share it."""
    return Path(tempfile.gettempdir()) / "z-image-projector-spool"


class Spool:
    """Workspaces for this process under a folder that processes of one machine share.

    Args:
        folder: made when absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"build.spool = {str(folder)!r}: cannot be made: {error.strerror}") from None
        self._remove_leftovers()

    def check_room(self, needed: int) -> None:
        """Make sure that work which takes `needed` bytes can begin.

        Raises:
            UsageError: less is free.
        """
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UsageError(
                f"build.spool = {str(self.folder)!r}: {free / 1e6:,.0f} MB free, {needed / 1e6:,.0f} MB needed for "
                "the shards under construction; free some, lower build.samples_per_shard or name another folder"
            )

    @contextmanager
    def workspace(self, name: str) -> Iterator[Path]:
        """A folder of one's own, removed at the end whatever happens."""
        folder = Path(
            tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-{_started(os.getpid())}-{name}-", dir=self.folder)
        )
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Remove workspaces whose process is gone (a pid alone could have been given to another since)."""
        for folder in self.folder.glob(f"{PREFIX}*"):
            pid, _, rest = folder.name.removeprefix(PREFIX).partition("-")
            started = rest.partition("-")[0]
            if pid.isdigit() and _started(int(pid)) != started:
                shutil.rmtree(folder, ignore_errors=True)


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; `gone` where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return "gone" if Path("/proc").is_dir() else str(int(time.time()))
    except OSError:
        return "gone"
    return stat.rpartition(")")[2].split()[19]
