"""Which cluster a job is going to join, and a token for the one that it starts itself; all before Ray is imported."""

import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Address:
    """Where a cluster should be.

    Attributes:
        text: host:port.
        source: who says so.
        remedy: how to do without it.
    """

    text: str
    source: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.text} ({self.source})"


def cluster_to_join() -> Address | None:
    """The cluster that `ray.init` is going to join; None where it starts one."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named == "local":
        return None
    if named:
        return Address(named, "from RAY_ADDRESS", "unset RAY_ADDRESS to use a local one")
    record = ray_folder() / "ray_current_cluster"
    try:
        address = record.read_text().strip()
    except OSError:
        return None
    return Address(address, f"from {record}", f"remove {record} to use a local one")


def ray_folder() -> Path:
    """Where a Ray that starts here keeps its sessions, and the address of one that `ray start` started."""
    return Path(os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp")), "ray")  # noqa: S108


def protect_local_ray() -> None:
    """Give a Ray that this job starts a token of the job's own.

    Its servers listen on all interfaces, whatever address they are given, and without a token whoever reaches them
    can run code. Ray reads the mode when it is imported, so this comes first.
    """
    if "ray" in sys.modules or "RAY_AUTH_MODE" in os.environ or cluster_to_join() is not None:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
