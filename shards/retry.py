"""Trying failed samples again: in further shards of the plan, so that nothing committed is ever rewritten."""

import io
from collections import Counter
from collections.abc import Sequence

from shards.dataset import Dataset, failed_key
from shards.plan import Segment

HOPELESS = ("SampleError",)  # a caption that is too long or holds markup fails alike every time


def failures(dataset: Dataset) -> list[dict[str, object]]:
    """Every row of the dead-letter files, with its shard, oldest first."""
    import pyarrow.parquet as pq

    rows: list[dict[str, object]] = []
    for commit in sorted(dataset.commits(), key=lambda commit: commit.created):
        if commit.failed:
            table = pq.read_table(io.BytesIO(dataset.storage.get_bytes(failed_key(commit.name))))
            rows += [{"shard": commit.name, **row} for row in table.to_pylist()]
    return rows


def retryable(dataset: Dataset, max_attempts: int) -> list[dict[str, object]]:
    """The failed samples that a build would try again.

    Args:
        dataset: opened dataset.
        max_attempts: tries a sample gets, the first one counted.

    Returns:
        the latest dead-letter row of each, in the order of the files. A sample whose retry is planned and not yet
        committed is left out, and so is one that can never be made.
    """
    segments = dataset.segments()
    planned = Counter(
        identity for segment in segments if not isinstance(segment, int) for identity in segment
    )
    rows = failures(dataset)
    failed = Counter(str(row["id"]) for row in rows)
    latest = {str(row["id"]): row for row in rows}
    return [
        {**row, "attempts": failed[identity]}
        for identity, row in latest.items()
        if failed[identity] == 1 + planned[identity]
        and failed[identity] < max_attempts
        and row["error_class"] not in HOPELESS
    ]


def plan_retries(dataset: Dataset, max_attempts: int) -> Sequence[Segment]:
    """Record that failed samples are to be tried again.

    Args:
        dataset: opened for writing.
        max_attempts: tries a sample gets, the first one counted.

    Returns:
        all growth records.
    """
    segments = dataset.segments()
    identities = [str(row["id"]) for row in retryable(dataset, max_attempts)]
    # Where another builder put a record first, its plan stands; what is left is for the next run.
    if identities and dataset.record(len(segments), {"retry": identities}):
        return (*segments, tuple(identities))
    return dataset.segments()
