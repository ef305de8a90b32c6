"""Publishing a shard: parquet, tar, then the create-only commit that makes it exist; or adopting one that lies there.

The order is the whole safety (FORMAT.md, the commit): whatever dies in between leaves nothing that counts.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shards.dataset.crash_points import crash_point
from shards.dataset.dataset import Dataset
from shards.errors import AlreadyExistsError, CorruptShardError, NotFoundError, StorageError
from shards.format.commit import NOBODY, Commit, Maker, Try, commit_key, failed_key, parquet_key, tar_key
from shards.format.shard_writer import BuiltShard, sha256_of
from shards.format.side_files import read_table
from shards.stores.store import Storage, json_object


@dataclass(frozen=True)
class Circumstances:
    """How a shard came about; recorded in its commit, and no part of its content.

    Attributes:
        attempt: id of this try.
        wall_seconds, device_seconds: what it took, and for how long a device was held for it.
        device: what it took it on.
        adopted: whether a run that died had made it; what that spent is not known, so it counts as nothing.
        busy_seconds: of the device seconds, those in which the device had work to do.
        begun: when the making began, by its maker's clock; empty where that is not known.
        gpus: that a device stands for; 0 on CPUs.
        made_by: the process that made it; of an adopted one, the process that found it.
        earlier: tries at the same shard in the same run that came to nothing.
    """

    attempt: str
    wall_seconds: float = 0.0
    device_seconds: float = 0.0
    device: str = ""
    adopted: bool = False
    busy_seconds: float = 0.0
    begun: str = ""
    gpus: float = 0.0
    made_by: Maker = NOBODY
    earlier: tuple[Try, ...] = ()


def publish(dataset: Dataset, built: BuiltShard, circumstances: Circumstances) -> Commit:
    """Make a shard on local disk part of a dataset.

    Args:
        dataset: opened for writing.
        built: the shard.
        circumstances: how it was made.

    Returns:
        the commit; the other builder's, when one came first with the same samples.

    Raises:
        CorruptShardError: a commit of that name stands for other samples.
        StorageError: the store failed for good, the dataset was removed, or another builder put a tar of other content
            just now.
    """
    name, storage = built.name, dataset.storage
    dataset.require_present()
    if dataset.is_committed(name):
        # Its bytes may be others: another kind of device rounds otherwise. It is there, whole, and stays.
        return _other_commit(dataset, built.record, ("slice_hash",))
    if storage.stat(tar_key(name)) is not None:
        adopted = adopt(dataset, name, built.record["slice_hash"], circumstances)
        if adopted is not None:
            return adopted
        storage.delete(tar_key(name))  # not whole, and no commit names it: debris of a crash
    crash_point("before-parquet")
    hashes = _put_side_files(storage, built, circumstances.attempt)
    crash_point("after-parquet")
    crash_point("before-tar")
    try:
        _put_tar(storage, built)
    except AlreadyExistsError:
        # Of another builder, whose device rounds otherwise, and who may be about to commit it: it is never replaced.
        adopted = adopt(dataset, name, built.record["slice_hash"], circumstances)
        if adopted is not None:
            return adopted
        raise StorageError(
            f"{storage.url(tar_key(name))}: another builder put other content there just now; "
            "run one build at a time on a root, or run again"
        ) from None
    crash_point("after-tar")
    _check_arrived(storage, tar_key(name), built.record["bytes"])
    return _put_commit(dataset, built.record, circumstances, hashes)


def adopt(dataset: Dataset, name: str, slice_hash: str, circumstances: Circumstances) -> Commit | None:
    """Commit a shard that lies there whole, left by a run that died just before its commit.

    Args:
        dataset: opened for writing.
        name: of the shard.
        slice_hash: of what is planned for it.
        circumstances: of the try that finds it; what it spent itself is no part of the shard's cost.

    Returns:
        the commit, or None where there is nothing to adopt.
    """
    storage = dataset.storage
    entry = storage.stat(tar_key(name))
    if entry is None:
        return None
    found = Circumstances(
        circumstances.attempt, adopted=True, made_by=circumstances.made_by, earlier=circumstances.earlier
    )
    sha256 = ""
    for parquet in [each.key for each in storage.list(parquet_key(name).removesuffix("parquet"))]:
        record = _record_in(storage, parquet) if parquet.endswith(".parquet") else None
        if (
            record is None
            or record["fingerprint"] != dataset.fingerprint
            or record["slice_hash"] != slice_hash
            or record["bytes"] != entry.size
        ):
            continue
        sha256 = sha256 or _sha256(storage, tar_key(name))
        if record["sha256"] != sha256:
            continue
        # Those of one attempt bear one mark.
        failed = failed_key(name).replace(
            ".parquet", parquet.removeprefix(parquet_key(name)[: -len(".parquet")])
        )
        try:
            side_files = [parquet, failed] if record["failed"] else [parquet]
            hashes = {key: _sha256(storage, key) for key in side_files}
        except NotFoundError:
            continue
        return _put_commit(dataset, record, found, hashes)
    return None


def _put_side_files(storage: Storage, built: BuiltShard, attempt: str) -> dict[str, str]:
    """Put the side files where none are, and nothing over another attempt's, whose tar may be on its way.

    Returns:
        their SHA-256 by key; the usual keys, or those of this attempt where others' files have the usual ones.
    """
    usual, own = _side_files(built), _side_files(built, attempt)
    if all(_put_once(storage, key, path) for key, path in usual.items()):
        own = usual
    else:
        for key, path in own.items():
            storage.put_file(key, path)
    return {key: sha256_of(path) for key, path in own.items()}


def _side_files(built: BuiltShard, attempt: str = "") -> dict[str, Path]:
    files = {parquet_key(built.name, attempt): built.parquet}
    if built.failed is not None:
        files[failed_key(built.name, attempt)] = built.failed
    return files


def _put_once(storage: Storage, key: str, path: Path) -> bool:
    """Whether an object is this file's content now; another content that is there stays."""
    try:
        storage.put_file(key, path, create_only=True)
    except AlreadyExistsError:
        return _sha256(storage, key) == sha256_of(path)
    return True


def _put_tar(storage: Storage, built: BuiltShard) -> None:
    """Put the tar where none is; AlreadyExistsError where one of other content is."""
    key = tar_key(built.name)
    try:
        storage.put_file(key, built.tar, create_only=True)
    except AlreadyExistsError:
        if _sha256(storage, key) != built.record["sha256"]:
            raise


def _check_arrived(storage: Storage, key: str, size: int) -> None:
    """Ask the store for the size of what was put, before a commit promises it; StorageError where it has another."""
    entry = storage.stat(key)
    if entry is None or entry.size != size:
        there = "is not there" if entry is None else f"has {entry.size:,} bytes"
        raise StorageError(
            f"{storage.url(key)} {there} after {size:,} bytes were put without an error; nothing was committed: "
            "check the store, then run again"
        )


def _sha256(storage: Storage, key: str) -> str:
    with storage.open(key) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _put_commit(
    dataset: Dataset, record: Mapping[str, Any], circumstances: Circumstances, side_files: Mapping[str, str]
) -> Commit:
    data = {
        **record,
        "side_files": side_files,
        **asdict(circumstances),
        "wall_seconds": round(circumstances.wall_seconds, 3),
        "device_seconds": round(circumstances.device_seconds, 3),
        "busy_seconds": round(circumstances.busy_seconds, 3),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    crash_point("before-commit")
    try:
        dataset.storage.put_bytes(commit_key(record["name"]), json_object(data), create_only=True)
    except AlreadyExistsError:
        return _other_commit(dataset, record)
    crash_point("after-commit")
    return Commit.from_json(data)


def _other_commit(
    dataset: Dataset, record: Mapping[str, Any], alike: Sequence[str] = ("slice_hash", "sha256")
) -> Commit:
    """The commit that came first; CorruptShardError where it differs in what must be alike."""
    other = dataset.commit_file(record["name"])
    if any(other[field] != record[field] for field in alike):
        raise CorruptShardError(
            f"{record['name']}: attempt {other['attempt']} committed other content (tar {other['sha256'][:12]}) "
            f"while this one wrote {record['sha256'][:12]}; run `python -m shards verify {dataset.storage.root}`"
        )
    return Commit.from_json(other)


def _record_in(storage: Storage, parquet: str) -> Mapping[str, Any] | None:
    """The commit record that a shard's parquet carries; None when the file is not whole."""
    try:
        return read_table(storage, parquet, columns=()).commit or None
    except CorruptShardError:
        return None
