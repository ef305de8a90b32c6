"""Read committed shards back. What `verify` would refuse is refused here, with the same words."""

import hashlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from shards.dataset.dataset import READERS, Dataset
from shards.errors import CorruptShardError, NotFoundError
from shards.format.commit import Commit
from shards.format.members import members, read_metadata, require_whole
from shards.format.plan import Plan, PlannedShard
from shards.format.sample import IMAGE_FORMATS, Sample, check_image_size, decode_tensors
from shards.format.side_files import planned_sample, read_table
from shards.format.splits import SPLITS
from shards.stores.store import Storage

_intact: set[tuple[str, str, str, str]] = (
    set()
)  # shards whose hash this process has checked: root, tar, tag, sha256


def read_samples(
    dataset: Dataset, *, split: str | None = None, image: bool = True, tensors: Collection[str] | None = None
) -> Iterator[Sample]:
    """All samples of a dataset, shard by shard.

    Args:
        dataset: opened dataset.
        split: `train`, `val` or `test`; None for all.
        image: whether samples carry their picture.
        tensors: names to decode; None for all, () for none.

    Raises:
        CorruptShardError: a shard is not what its commit says; names it and, where known, the sample.
    """
    for commit in dataset.commits():
        if split in (None, commit.split):
            yield from read_shard(
                dataset.storage, commit, image=image, tensors=tensors, image_size=dataset.image_size
            )


def read_shard(
    storage: Storage,
    commit: Commit,
    *,
    image: bool = True,
    tensors: Collection[str] | None = None,
    image_size: tuple[int, int, int] = (0, 0, 0),
) -> Iterator[Sample]:
    """The samples of one shard; see `read_samples`, and `Dataset.image_size` for what pictures are held against.

    The whole tar is hashed the first time this process meets it, which costs little beside reading it; afterwards
    its unchanged tag stands for that.
    """
    check_intact(storage, commit)
    count = 0
    with storage.open(commit.tar) as file:
        for sample in _samples(file, commit, image, tensors):
            if image:
                _check_picture(commit, sample, image_size)
            count += 1
            yield sample
    if count != commit.samples:
        raise CorruptShardError(
            f"{commit.name}: {count} samples, its commit says {commit.samples}; run repair, then build"
        )


def read_plan(dataset: Dataset) -> Plan:
    """The samples that a dataset holds, as the plan of another one: same shards, places, seeds and categories.

    Args:
        dataset: opened dataset; a sample of it that failed is in no plan.

    Returns:
        its committed samples. Only the shards' side files are read, not their tars.

    Raises:
        CorruptShardError: a side file is missing or does not belong to its tar.
    """
    commits = [commit for commit in dataset.commits() if commit.samples]
    with ThreadPoolExecutor(READERS) as pool:
        shards = tuple(pool.map(lambda commit: _planned(dataset.storage, commit), commits))
    return Plan(tuple(sorted(shards, key=lambda shard: (SPLITS.index(shard.split), shard.index))))


def _planned(storage: Storage, commit: Commit) -> PlannedShard:
    table = read_table(storage, commit.parquet, sha256=commit.side_files.get(commit.parquet, ""))
    try:
        samples = tuple(planned_sample(row) for row in table.rows)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CorruptShardError(
            f"{storage.root}: {commit.parquet} is corrupt: {error}; run repair, then build"
        ) from None
    return PlannedShard(commit.split, commit.shard, samples)


def check_intact(storage: Storage, commit: Commit) -> None:
    """Compare a shard's tar with its commit.

    Raises:
        CorruptShardError: missing, of another size, or of another hash.
    """
    entry = storage.stat(commit.tar)
    if entry is None:
        raise CorruptShardError(f"{commit.name}: {commit.tar} is missing; run repair, then build")
    if entry.size != commit.bytes:
        raise CorruptShardError(
            f"{commit.name}: {commit.tar} has {entry.size} bytes, its commit says {commit.bytes}; "
            "run repair, then build"
        )
    mark = (storage.root, commit.tar, entry.tag, commit.sha256)
    if mark in _intact:
        return
    try:
        with storage.open(commit.tar) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except NotFoundError:
        raise CorruptShardError(f"{commit.name}: {commit.tar} is missing; run repair, then build") from None
    if found != commit.sha256:
        raise CorruptShardError(
            f"{commit.name}: {commit.tar} has SHA-256 {found[:12]}…, its commit says {commit.sha256[:12]}…; "
            "run repair, then build"
        )
    _intact.add(mark)


def _check_picture(commit: Commit, sample: Sample, image_size: tuple[int, int, int]) -> None:
    try:
        check_image_size(sample.image, *image_size)
    except ValueError as error:
        raise CorruptShardError(
            f"{commit.name}, sample {sample.key}: {error}; run repair, then build"
        ) from None


def _samples(
    file: IO[bytes], commit: Commit, image: bool, tensors: Collection[str] | None
) -> Iterator[Sample]:
    content: dict[str, bytes] = {}
    key = ""
    try:
        for member in members(file, commit, skip=() if image else IMAGE_FORMATS):
            if member.problem:
                raise ValueError(member.problem)
            if content and member.key != key:
                yield _sample(key, content, tensors)
                content = {}
            key = member.key
            if member.suffix in content:
                raise ValueError(f"member .{member.suffix} stands twice")
            content[member.suffix] = member.content
        if content:
            yield _sample(key, content, tensors)
    except (KeyError, ValueError) as error:
        raise CorruptShardError(f"{commit.name}, sample {key}: {error}; run repair, then build") from error


def _sample(key: str, content: dict[str, bytes], tensors: Collection[str] | None) -> Sample:
    image_format = require_whole(content)
    caption, metadata = content["txt"].decode(), read_metadata(content["json"])
    if metadata["caption"] != caption:
        raise ValueError("the captions of .txt and .json differ")
    decoded = decode_tensors(content["safetensors"], tensors) if tensors is None or tensors else {}
    return Sample(
        key=key,
        caption=caption,
        metadata=metadata,
        image=content[image_format],
        image_format=image_format,
        tensors=decoded,
    )


def decode_safetensors(key: str, data: bytes) -> Any:
    """A decoder for stock WebDataset loaders: `webdataset.WebDataset(urls).decode(decode_safetensors)`.

    Args:
        key: the member's suffix, as webdataset passes it.
        data: its bytes.

    Returns:
        tensors by name for `.safetensors`; None for anything else, which leaves it to the next decoder.
    """
    return decode_tensors(data) if key.endswith("safetensors") else None
