"""What a commit says, and under which keys a shard and its commit lie."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

from shards.format.splits import SPLITS

COMMITS = "_commit/"
MOST = 1e15  # of a count or of seconds: no dataset comes near
COMMIT_NAME = re.compile(rf"_commit/((?:{'|'.join(SPLITS)})-[0-9]{{6}})\.json")
MARK = 12  # hex digits
SHARD_FILE = re.compile(
    rf"(?P<split>{'|'.join(SPLITS)})/pairs-(?P<number>[0-9]{{6}})(\.tar|(\.[0-9a-f]{{12}})?\.parquet)"
    rf"|failed/(?P<of>{'|'.join(SPLITS)})-(?P<place>[0-9]{{6}})(\.[0-9a-f]{{12}})?\.parquet"
)


def commit_key(name: str) -> str:
    """Key of the commit of a shard, say `train-000003`: the shard exists when this object does."""
    return f"{COMMITS}{name}.json"


def tar_key(name: str) -> str:
    """Key of a shard's tar: `train/pairs-000003.tar`."""
    split, _, index = name.rpartition("-")
    return f"{split}/pairs-{index}.tar"


def parquet_key(name: str, attempt: str = "") -> str:
    """Key of a shard's side file; of an attempt that found another's under the usual key, one of its own."""
    return f"{tar_key(name).removesuffix('.tar')}{_mark(attempt)}.parquet"


def failed_key(name: str, attempt: str = "") -> str:
    """Key of the dead-letter file of a shard; see `parquet_key`."""
    return f"failed/{name}{_mark(attempt)}.parquet"


def _mark(attempt: str) -> str:
    """What tells an attempt's side files from those under the usual keys."""
    return f".{hashlib.sha256(attempt.encode()).hexdigest()[:MARK]}" if attempt else ""


def shard_of(key: str) -> str:
    """The shard that a tar, parquet or dead-letter file belongs to by its key; empty where it is none of these."""
    match = SHARD_FILE.fullmatch(key)
    return f"{match['split'] or match['of']}-{match['number'] or match['place']}" if match else ""


@dataclass(frozen=True)
class Maker:
    """The process that worked on a shard, by everything that leads to its log; empty where it was not recorded.

    Attributes:
        run: id of the run it belonged to (`shards.dataset.run_records`).
        node: Ray's id of its node.
        host, address: of that node.
        actor: Ray's id of the actor; it survives a restart of its process.
        pid: of the process.
        job: Ray's id of the job.
        log: its log file on that node, by its name without `.out` or `.err`.
    """

    run: str = ""
    node: str = ""
    host: str = ""
    address: str = ""
    actor: str = ""
    pid: int = 0
    job: str = ""
    log: str = ""

    @classmethod
    def from_json(cls, data: Any) -> "Maker":
        """A maker from a commit, whatever that holds: what is no string, or no pid, counts as not recorded."""
        known = data if isinstance(data, Mapping) else {}
        return cls(
            **{
                each.name: known[each.name]
                for each in fields(cls)
                if type(known.get(each.name)) is type(each.default)
            }
        )


NOBODY = Maker()


@dataclass(frozen=True)
class Try:
    """An earlier try at a shard in the same run, which came to nothing.

    Attributes:
        attempt: its id.
        end: what became of it: `died`, `stopped` and so on.
        seconds: from its begin until it was last heard of.
        made_by: by whom.
    """

    attempt: str
    end: str
    seconds: float
    made_by: Maker

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Try":
        """A try from a commit; ValueError when it says none."""
        return cls(
            str(data.get("attempt", "")),
            str(data.get("end", "")),
            number(data, "seconds"),
            Maker.from_json(data.get("made_by")),
        )


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
    # What commits of earlier versions lack.
    busy_seconds: float = 0.0
    """Of the device seconds; 0 where it was not measured."""
    begun: str = ""
    """When the making began, by its maker's clock; where it was not recorded, as long before the commit as it took."""
    gpus: float = 0.0
    """GPUs that a device stands for: 0 on CPUs, 0.5 where two builders share one."""
    causes: Mapping[str, int] = field(default_factory=dict)
    """Failed samples by `stage: error class`."""
    made_by: Maker = NOBODY
    earlier: tuple[Try, ...] = ()

    @property
    def parquet(self) -> str:
        """Key of the shard's side file."""
        return next((key for key in self.side_files if not key.startswith("failed/")), parquet_key(self.name))

    @property
    def dead_letters(self) -> str:
        """Key of the shard's dead-letter file; there is one where samples failed."""
        return next((key for key in self.side_files if key.startswith("failed/")), failed_key(self.name))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Commit":
        """A commit from its file; ValueError when a field is missing, or a number or time is none."""
        absent = {
            each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING
        } - data.keys()
        if absent:
            raise ValueError(f"commit lacks {', '.join(map(repr, sorted(absent)))}")
        given = {each.name: data[each.name] for each in fields(cls) if each.name in data}
        for name in ("bytes", "samples", "failed", "wall_seconds", "device_seconds"):
            number(data, name)
        given["busy_seconds"] = number(data, "busy_seconds", 0.0)
        given["gpus"] = number(data, "gpus", float(str(data["device"]).startswith("GPU")))
        given["begun"] = data.get("begun") or _before(data["created"], data["wall_seconds"])
        timestamp(given["begun"])
        given["causes"] = _causes(data)
        given["made_by"] = Maker.from_json(data.get("made_by"))
        given["earlier"] = tuple(map(Try.from_json, data.get("earlier", ())))
        commit = cls(**given)
        name = f"{commit.split}-{commit.shard:06d}"
        if any(shard_of(key) != name or key == commit.tar for key in commit.side_files):
            raise ValueError(f"commit names side files {sorted(commit.side_files)}, which are not its own")
        if (commit.name, commit.tar) != (name, tar_key(name)):
            raise ValueError(f"commit names {commit.name!r} and {commit.tar!r}, which do not belong together")
        return commit


def timestamp(text: Any) -> float:
    """Seconds since 1970 of a time as a dataset holds it, ISO 8601 with an offset; ValueError when it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except TypeError:
        raise ValueError(f"{text!r} is no time") from None
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no offset from UTC")
    return moment.timestamp()


def _before(created: Any, seconds: float) -> str:
    timestamp(created)
    try:
        return (datetime.fromisoformat(created) - timedelta(seconds=seconds)).isoformat(timespec="seconds")
    except OverflowError:
        raise ValueError(f"it took {seconds} seconds") from None


def number(data: Mapping[str, Any], name: str, absent: float | None = None) -> float:
    """A count or duration of a record; ValueError when it is none."""
    value = data.get(name, absent)
    if not isinstance(value, int | float) or not 0 <= value < MOST:
        raise ValueError(f"{name} = {value!r}")
    return value


def _causes(data: Mapping[str, Any]) -> dict[str, int]:
    """Failed samples by cause; of an earlier version's commit only how many is known."""
    if "causes" not in data:
        return {"not recorded": data["failed"]} if data["failed"] else {}
    causes = {str(cause): int(number(data["causes"], cause)) for cause in dict(data["causes"])}
    if sum(causes.values()) != data["failed"]:
        raise ValueError(f"causes of {sum(causes.values())} failures, and {data['failed']} failed")
    return causes
