"""What each run of a job left on record while it worked: `_run/ID.json`, rewritten about once a minute.

A shard's commit says what the shard took. What came to nothing, such as a try whose machine died, is in no commit;
it stands here. Nothing else depends on these records: without them a dataset is as whole.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

from shards.errors import CorruptShardError, NotFoundError
from shards.format.commit import number, timestamp
from shards.stores.store import Entry, Storage, json_object, read_json_object

RUNS = "_run/"
RUN_NAME = re.compile(r"_run/([0-9a-f]{32})\.json")
SILENT = (
    300.0  # seconds after which a run that did not end is taken for dead; five records, and room for clocks
)


@dataclass(frozen=True)
class RunRecord:
    """A run of a job.

    Attributes:
        run: its id, 32 hex digits.
        job: `build` and so on.
        ray_job: Ray's id of the job.
        begun, seen: when it began and when this was written, by its driver's clock.
        ended: how it ended, in a word; empty while it works, and for ever where it was killed.
        builders: at work when this was written.
        gpus: that a device stands for; 0 on CPUs.
        lost: device seconds of tries that came to nothing, by what became of them.
        under_way: device seconds of the tries that were at work when this was written.
        packages: versions of what computes.
    """

    run: str
    job: str
    ray_job: str
    begun: str
    seen: str
    ended: str
    builders: int
    gpus: float
    lost: Mapping[str, float]
    under_way: float
    packages: Mapping[str, str]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunRecord":
        """A run from its record; ValueError when it says none."""
        if absent := {each.name for each in fields(cls)} - data.keys():
            raise ValueError(f"it lacks {', '.join(sorted(absent))}")
        for name in ("builders", "gpus", "under_way"):
            number(data, name)
        lost, packages = dict(data["lost"]), dict(data["packages"])
        run = cls(
            **{each.name: str(data[each.name]) for each in fields(cls) if each.type is str},
            builders=int(data["builders"]),
            gpus=data["gpus"],
            lost={str(end): number(lost, end) for end in lost},
            under_way=data["under_way"],
            packages={str(name): str(version) for name, version in packages.items()},
        )
        timestamp(run.begun)
        timestamp(run.seen)
        return run

    def is_at_work(self, now: float) -> bool:
        """Whether it goes on, as far as can be told at a time in seconds since 1970."""
        return not self.ended and now - timestamp(self.seen) < SILENT


def put_run(storage: Storage, run: RunRecord) -> None:
    """Write a run's record over its last one; only the run itself does."""
    storage.put_bytes(f"{RUNS}{run.run}.json", json_object(asdict(run)))


def run_entries(storage: Storage) -> dict[str, Entry]:
    """Ids of the runs on record, with their files; one listing."""
    return {match[1]: entry for entry in storage.list(RUNS) if (match := RUN_NAME.fullmatch(entry.key))}


def read_run(storage: Storage, run: str) -> RunRecord:
    """A run by its id.

    Raises:
        NotFoundError: it has no record.
        CorruptShardError: the record says nothing; names it.
    """
    key = f"{RUNS}{run}.json"
    try:
        return RunRecord.from_json(read_json_object(storage, key))
    except (ValueError, TypeError) as error:
        raise CorruptShardError(
            f"{storage.url(key)} is corrupt: {error}; remove it, nothing depends on it"
        ) from None


def runs_on_record(storage: Storage) -> list[RunRecord]:
    """Those whose records can be read: nothing depends on the others."""
    found = []
    for name in run_entries(storage):
        with suppress(NotFoundError, CorruptShardError):
            found.append(read_run(storage, name))
    return found
