"""Pictures out of parquet files, row by row: a whole row group of them may not fit in memory."""

import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import StorageError
from shards.sources.item import Place
from shards.sources.parquet import bytes_column, image_column, opened, rows_at_once
from shards.sources.picture import MAX_BYTES, ImageError
from shards.stores.random_access import open_seekable
from shards.stores.store import Storage

ROWS = 16  # decoded at a time, at most
PASSED_OVER = 256  # rows that are read on to reach one; farther ahead a stream is begun anew


class ParquetRows:
    """A place in one file after the other, since shards ask for rows in their order.

    Args:
        storage: under whose root the files lie.
        image_column: of the pictures; None for the usual ones.
    """

    def __init__(self, storage: Storage, image_column: str | None) -> None:
        self._storage, self._column = storage, image_column
        self._lock = threading.Lock()
        self._at = ("", 0)  # the next row of the stream
        self._stream: Iterator[Any] = iter(())
        self._open = ExitStack()

    def read(self, place: Place) -> bytes:
        """The bytes in a row; see `Originals.read`."""
        try:
            with self._lock:
                value = self._value(place)
        except (pa.ArrowException, OSError, UnicodeDecodeError, LookupError, StopIteration) as error:
            raise StorageError(
                f"{self._storage.url(place.file)}, row {place.row}: cannot be read as parquet: "
                f"{' '.join(str(error).split()) or 'it ends early'}"
            ) from None
        if isinstance(value, _Oversize):
            raise ImageError(f"{place}: picture has {value.bytes:,} bytes; at most {MAX_BYTES:,}")
        if not isinstance(value, bytes):
            raise ImageError(f"{place}: there are no bytes in it")
        return value

    def close(self) -> None:
        """See `Originals.close`."""
        self._open.close()

    def _value(self, place: Place) -> Any:
        file, at = self._at
        self._at = ("", 0)  # until it is reached: a stream that fails is over
        if file != place.file or not at <= place.row < at + PASSED_OVER:
            at = self._begin(place)
        for _ in range(at, place.row):
            next(self._stream)
        value = next(self._stream)
        self._at = (place.file, place.row + 1)
        return value

    def _begin(self, place: Place) -> int:
        """Begin a stream at the row group of a row; returns the stream's first row."""
        self._open.close()
        raw = self._open.enter_context(open_seekable(self._storage, place.file))
        # Without pre_buffer and with a buffer the group comes in pieces, not at once.
        file = self._open.enter_context(opened(raw, buffer_size=1 << 20))
        ends = list(
            accumulate(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
        )
        group = bisect_right(ends, place.row)
        if group == len(ends):
            raise IndexError(f"it has {file.metadata.num_rows} rows")
        schema = file.schema.to_arrow_schema()
        path = bytes_column(schema, image_column(schema, self._column))
        self._stream = _values(file, range(group, len(ends)), path)
        return ends[group - 1] if group else 0


def _values(file: pq.ParquetFile, groups: range, path: str) -> Iterator[Any]:
    """What stands in a column, or in a field of a struct, row by row from some row groups on."""
    name, _, inner = path.partition(".")
    for group in groups:
        rows = rows_at_once(file, group, [name], ROWS)
        for batch in file.iter_batches(rows, row_groups=[group], columns=[path]):
            column = batch.column(name)
            for value in column.field(inner) if inner else column:
                # One at a time, its size known: rows may share a value that is in memory once.
                yield _Oversize(size) if (size := _size(value)) > MAX_BYTES else value.as_py()


@dataclass(frozen=True)
class _Oversize:
    """What is there instead of a picture of more bytes than one may have."""

    bytes: int


def _size(value: pa.Scalar) -> int:
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    buffer = value.as_buffer() if value is not None and value.is_valid else None
    return buffer.size if buffer is not None else 0
