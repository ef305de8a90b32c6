"""Pictures out of parquet files, row by row: a whole row group of them may not fit in memory."""

import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import StorageError
from shards.sources.item import Place
from shards.sources.parquet import bytes_column, image_column
from shards.sources.picture import ImageError
from shards.stores.random_access import open_seekable
from shards.stores.store import Storage

ROWS = 16  # decoded at a time
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
        file = self._open.enter_context(pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20))
        ends = list(
            accumulate(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
        )
        group = bisect_right(ends, place.row)
        if group == len(ends):
            raise IndexError(f"it has {file.metadata.num_rows} rows")
        schema = file.schema_arrow
        path = bytes_column(schema, image_column(schema, self._column))
        self._stream = _values(file, range(group, len(ends)), path)
        return ends[group - 1] if group else 0


def _values(file: pq.ParquetFile, groups: range, path: str) -> Iterator[Any]:
    """What stands in a column, or in a field of a struct, row by row from some row groups on."""
    name, _, inner = path.partition(".")
    for batch in file.iter_batches(ROWS, row_groups=list(groups), columns=[path]):
        for row in batch.to_pylist():
            value = row[name]
            yield value.get(inner) if inner and isinstance(value, dict) else value
