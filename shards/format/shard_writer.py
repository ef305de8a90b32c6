"""Build a shard on local disk: a tar whose bytes depend on its samples alone, and its parquet side files."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from shards.format.plan import PlannedSample, PlannedShard
from shards.format.sample import (
    KIND_NAMES,
    LATENTS,
    Array,
    Expected,
    Failure,
    Sample,
    check_sample,
    encode_tensors,
)
from shards.format.side_files import Row, failure_row, sample_row, write_table
from shards.format.statistics import RunningStatistics
from shards.stores.local import writing


@dataclass(frozen=True)
class BuiltShard:
    """A shard on local disk, ready to be committed.

    Attributes:
        tar, parquet: files; `failed` too where samples failed.
        record: the part of the commit that follows from the content alone.
    """

    tar: Path
    parquet: Path
    failed: Path | None
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the shard: `train-000003`."""
        return str(self.record["name"])


class ShardWriter:
    """Takes the samples of a planned shard, in order, each one either made or failed.

    Args:
        planned: the shard.
        folder: local workspace; the caller removes it.
        fingerprint: of the dataset.
        expected: what every sample must hold.
    """

    def __init__(self, planned: PlannedShard, folder: Path, fingerprint: str, expected: Expected) -> None:
        self._planned, self._folder = planned, folder
        self._fingerprint, self._expected = fingerprint, expected
        self._rows: list[Row] = []
        self._failures: list[Row] = []
        self._statistics: dict[str, RunningStatistics] = {}
        self._hidden_size = 0
        self._path = folder / f"{planned.name}.tar"
        with writing(self._path):
            self._file = self._path.open("xb")
        # Plain ustar: names are short ASCII, sizes far under 8 GB, and no extended header can vary.
        self._tar = tarfile.open(  # noqa: SIM115 - closed with the shard
            fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT
        )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        # What `close` has not finished is thrown away; on a full disk its last bytes cannot even be flushed.
        with suppress(OSError):
            self._file.close()

    @property
    def next(self) -> PlannedSample | None:
        """The sample that the next `add` or `fail` answers for."""
        done = len(self._rows) + len(self._failures)
        return self._planned.samples[done] if done < len(self._planned.samples) else None

    def _take(self) -> PlannedSample:
        planned = self.next
        assert planned is not None, f"{self._planned.name} is full"
        return planned

    def add(self, sample: Sample) -> None:
        """Write the next sample.

        Raises:
            ValueError: the sample is not sound; nothing was written, call `fail` for it.
            StorageError: it cannot be written; the shard is lost.
        """
        planned = self._take()
        size = check_sample(sample, planned, self._expected)
        if self._hidden_size not in (0, size):
            raise ValueError(f"hidden size {size}, the shard's other samples have {self._hidden_size}")
        members = encode_members(sample)
        self._hidden_size = size
        places = {}
        for suffix, data in sorted(members.items()):
            with writing(self._path):
                self._tar.addfile(_header(f"{sample.key}.{suffix}", len(data)), io.BytesIO(data))
            places[suffix] = (self._tar.offset - _padded(len(data)), len(data))
        self._rows.append(sample_row(sample.key, sample.metadata, places))
        self._count(sample.tensors)

    def fail(self, failure: Failure) -> PlannedSample:
        """Write down why the next sample is missing; returns which one that is."""
        planned = self._take()
        self._failures.append(failure_row(planned, failure))
        return planned

    def close(self) -> BuiltShard:
        """Finish the files.

        Returns:
            the shard on disk.

        Raises:
            StorageError: it cannot be written.
        """
        assert self.next is None, f"{self._planned.name}: {self.next} has neither been added nor failed"
        with writing(self._path):
            self._tar.close()
            self._file.close()
        record = {
            "name": self._planned.name,
            "split": self._planned.split,
            "shard": self._planned.index,
            "tar": f"{self._planned.split}/pairs-{self._planned.index:06d}.tar",
            "sha256": sha256_of(self._path),
            "bytes": self._path.stat().st_size,
            "samples": len(self._rows),
            "failed": len(self._failures),
            "causes": Counter(f"{row['stage']}: {row['error_class']}" for row in self._failures),
            "fingerprint": self._fingerprint,
            "slice_hash": self._planned.slice_hash,
            "statistics": {name: stats.to_json() for name, stats in sorted(self._statistics.items())},
        }
        parquet = self._folder / f"{self._planned.name}.parquet"
        with writing(parquet):
            write_table(parquet, self._rows, record)
        failed = None
        if self._failures:
            failed = self._folder / f"{self._planned.name}.failed.parquet"
            with writing(failed):
                write_table(failed, self._failures)
        return BuiltShard(self._path, parquet, failed, record)

    def _count(self, tensors: Mapping[str, Array]) -> None:
        """Running statistics per tensor and token kind."""
        for name, tensor in tensors.items():
            if name.endswith(".kind") or name == LATENTS:
                continue
            kinds = tensors["text.kind" if name == "text" else f"{name.rpartition('.')[0]}.kind"]
            for kind in np.unique(kinds):
                label = f"{name}/{KIND_NAMES[kind]}"
                statistics = self._statistics.setdefault(label, RunningStatistics(tensor.shape[1]))
                statistics.update(tensor[kinds == kind].astype(np.float32))


def encode_members(sample: Sample) -> dict[str, bytes]:
    """The members of a sample by file suffix."""
    return {
        "json": (json.dumps(sample.metadata, ensure_ascii=False, sort_keys=True) + "\n").encode(),
        sample.image_format: sample.image,
        "safetensors": encode_tensors(sample.tensors),
        "txt": sample.caption.encode(),
    }


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size = size
    header.mode = 0o644
    header.mtime = 0
    header.uid = header.gid = 0
    return header


def _padded(size: int) -> int:
    return (size + tarfile.BLOCKSIZE - 1) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
