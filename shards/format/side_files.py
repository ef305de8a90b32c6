"""The parquet beside a shard: what its rows say, how they are written, and how they are read whoever wrote them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.errors import CorruptShardError, NotFoundError, OversizeError
from shards.format.plan import MAX_PER_SHARD, PlannedSample
from shards.format.sample import IMAGE_FORMATS, Failure
from shards.stores.store import MAX_RECORD, Storage

COMMIT_KEY = b"commit"  # schema metadata of the parquet: the part of the commit that needs no clock
MAX_UNPACKED = (
    MAX_RECORD  # bytes of a table once decompressed, and of its rows' texts; a caption has a few hundred
)
ROWS = 64  # taken out of a table at once
Row = dict[str, Any]


@dataclass(frozen=True)
class SideTable:
    """A side file.

    Attributes:
        rows: its rows, with the columns that were asked for.
        commit: the commit record that it carries; empty in a dead-letter file.
    """

    rows: Sequence[Row]
    commit: Mapping[str, Any]


def sample_row(key: str, metadata: Mapping[str, Any], places: Mapping[str, tuple[int, int]]) -> Row:
    """The row of a sample: everything of its `.json` member, and where its members lie in the tar.

    Args:
        key: of the sample.
        metadata: its `.json` member; nested names are joined by underscores, lists and spans become JSON text.
        places: offset and size of each member in bytes, by file suffix.
    """
    row: Row = {"key": key}
    for name, value in metadata.items():
        if name == "categories":
            row |= value
        elif name == "tokens":
            row |= {f"tokens_{side}": count for side, count in value.items()}
        else:
            row[name] = json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value
    for suffix, (offset, size) in sorted(places.items()):
        column = "image" if suffix in IMAGE_FORMATS else suffix
        row |= {f"{column}_offset": offset, f"{column}_size": size}
    row["image_format"] = next(suffix for suffix in places if suffix in IMAGE_FORMATS)
    return row


def failure_row(planned: PlannedSample, failure: Failure) -> Row:
    """The row of a sample that could not be made: what was planned, and why it is not there."""
    return {
        "id": planned.id,
        "key": planned.key,
        "caption": planned.caption,
        "content": planned.content,
        "style": planned.style,
        "subject": planned.subject,
        "seed": planned.seed,
        "plan_index": planned.index,
        **asdict(failure),
    }


def planned_sample(row: Mapping[str, Any]) -> PlannedSample:
    """What was planned for the sample of a row, made or failed; KeyError or ValueError when the row does not say."""
    split, shard, position = row["key"].split("-")
    return PlannedSample(
        id=row["id"],
        index=row["plan_index"],
        caption=row["caption"],
        content=row["content"],
        style=row["style"],
        subject=row["subject"],
        seed=row["seed"],
        split=split,
        shard=int(shard),
        position=int(position),
    )


def write_table(path: Path, rows: list[Row], commit: Mapping[str, Any] | None = None) -> None:
    """Rows as a parquet file; the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {COMMIT_KEY: json.dumps(commit, sort_keys=True).encode()} if commit else {}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), path, compression="zstd")


def read_table(
    storage: Storage, key: str, columns: Sequence[str] | None = None, *, sha256: str | None = None
) -> SideTable:
    """Read a side file, bounded in size whatever it claims.

    Args:
        storage: where the dataset lies.
        key: of the file.
        columns: which to read; None for all, () for none.
        sha256: what its commit says; None where there is no commit yet.

    Returns:
        its rows and its commit record.

    Raises:
        CorruptShardError: missing, of another hash, no parquet, too large, or without a column that was asked for;
            names the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = storage.get_bytes(key, MAX_RECORD)
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("it has another SHA-256 than its commit says")
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            facts = file.metadata
            unpacked = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
            if facts.num_rows > MAX_PER_SHARD or unpacked > MAX_UNPACKED:
                raise ValueError(f"it claims {facts.num_rows:,} rows of {unpacked:,} bytes in all")
            commit = json.loads((file.schema_arrow.metadata or {}).get(COMMIT_KEY, b"{}"))
            if not isinstance(commit, dict):
                raise ValueError("its commit record is no JSON object")
            rows = [] if columns == () else _rows(data, columns)
    except NotFoundError:
        raise CorruptShardError(f"{key} is missing; run repair, then build") from None
    except (pa.ArrowException, KeyError, ValueError, OSError, RecursionError, OversizeError) as error:
        reason = " ".join(str(error).split())  # Arrow breaks its lines
        raise CorruptShardError(
            f"{storage.root}: {key} is corrupt: {reason}; run repair, then build"
        ) from None
    # pyarrow passes over columns that are not there
    if rows and columns and (absent := set(columns) - rows[0].keys()):
        raise CorruptShardError(
            f"{storage.root}: {key} lacks {', '.join(sorted(absent))}; run repair, then build"
        )
    return SideTable(rows, commit)


def _rows(data: bytes, columns: Sequence[str] | None) -> list[Row]:
    """The rows of a table, as long as their texts stay within bounds: thousands may share one of many megabytes.

    Raises:
        ValueError: they do not, or a column holds something that no side file does.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(data)) as file:
        schema = file.schema_arrow
    odd = [each.name for each in schema if not _is_plain(each.type)]
    if odd:
        raise ValueError(f"column {odd[0]!r} is {schema.field(odd[0]).type}, neither text nor a number")
    texts = [each.name for each in schema if pa.types.is_string(each.type)]
    rows: list[Row] = []
    left = MAX_UNPACKED
    with pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts) as file:
        for batch in file.iter_batches(ROWS, columns=columns, use_threads=False):
            for column in batch.columns:
                if pa.types.is_dictionary(column.type):
                    left -= pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0
            if left < 0:
                raise ValueError(f"its rows hold more than {MAX_UNPACKED:,} bytes of text")
            rows += batch.to_pylist()
    return rows


def _is_plain(kind: Any) -> bool:
    """Whether a column's type is one that a side file has."""
    import pyarrow as pa

    plain = (
        pa.types.is_string,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_boolean,
        pa.types.is_null,
    )
    return any(is_of(kind) for is_of in plain)
