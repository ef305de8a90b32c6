"""What a commit says, and under which keys a shard and its commit lie."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

COMMITS = "_commit/"
COMMIT_NAME = re.compile(r"_commit/((?:train|val)-[0-9]{6})\.json")


def commit_key(name: str) -> str:
    """Key of the commit of a shard, say `train-000003`: the shard exists when this object does."""
    return f"{COMMITS}{name}.json"


def tar_key(name: str) -> str:
    """Key of a shard's tar: `train/pairs-000003.tar`."""
    split, _, index = name.rpartition("-")
    return f"{split}/pairs-{index}.tar"


def parquet_key(name: str) -> str:
    """Key of a shard's side file."""
    return tar_key(name).removesuffix(".tar") + ".parquet"


def failed_key(name: str) -> str:
    """Key of the dead-letter file of a shard."""
    return f"failed/{name}.parquet"


@dataclass(frozen=True)
class Commit:
    """What makes a shard exist. `statistics` stays in the file: it is large and few ask for it.

    `side_files` has the SHA-256 of the parquet and, where samples failed, of the dead-letter file, by key.
    """

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
    side_files: Mapping[str, str]
    busy_seconds: float = 0.0
    """Of the device seconds; 0 where it was not measured."""

    @property
    def parquet(self) -> str:
        """Key of the shard's side file."""
        return parquet_key(self.name)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Commit":
        """A commit from its file; ValueError when a field is missing."""
        try:
            needed = [field.name for field in fields(cls) if field.default is MISSING]
            commit = cls(**{name: data[name] for name in needed}, busy_seconds=data.get("busy_seconds", 0.0))
        except KeyError as error:
            raise ValueError(f"commit lacks {error}") from None
        name = f"{commit.split}-{commit.shard:06d}"
        if (commit.name, commit.tar) != (name, tar_key(name)):
            raise ValueError(f"commit names {commit.name!r} and {commit.tar!r}, which do not belong together")
        return commit
