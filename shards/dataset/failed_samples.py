"""Trying failed samples again: in further shards of the plan, so that nothing committed is ever rewritten."""

from collections import Counter
from collections.abc import Sequence

from shards.dataset.dataset import Dataset
from shards.errors import NotFoundError
from shards.format.commit import shard_of
from shards.format.plan import Segment
from shards.format.side_files import Row, read_table

# A caption that is too long or holds markup, and a picture that is broken where it came from, fail alike every time.
HOPELESS = ("SampleError", "ImageError")


def failures(dataset: Dataset) -> list[Row]:
    """Every row of the dead-letter files, with its shard; of one sample, earlier tries first.

    Found by listing those files and asking their commits alone: a build that resumes pays for its failures only.
    """
    rows: list[Row] = []
    for entry in dataset.storage.list("failed/"):
        name = shard_of(entry.key)
        if name and _counts(dataset, name, entry.key):
            rows += [{"shard": name, **row} for row in read_table(dataset.storage, entry.key).rows]
    return rows


def _counts(dataset: Dataset, name: str, key: str) -> bool:
    """Whether a dead-letter file is its commit's: one that a try left which died before its commit is not."""
    try:
        commit = dataset.commit(name)
    except NotFoundError:
        return False
    return bool(commit.failed) and commit.dead_letters == key


def retryable(dataset: Dataset, max_attempts: int) -> list[Row]:
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
