"""Parquet files with captions beside pictures' bytes (also as the hub's {bytes, path}) or their paths."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import UsageError
from shards.sources.item import Place, storable
from shards.sources.source import (
    CAPTION_COLUMNS,
    HASH_COLUMNS,
    Found,
    PictureFiles,
    SourceSpec,
    column_list,
    each_caption,
    files_of,
    named,
    picture_hash,
    tag_of,
)
from shards.stores.local import open_storage
from shards.stores.random_access import open_seekable

# img2dataset calls the bytes after their format; the hub's image folders name files by file_name.
IMAGE_COLUMNS = (
    "image", "jpg", "png", "webp", "image_bytes", "bytes", "image_path", "path", "file_name", "filename",
)  # fmt: skip
ROWS = 1000  # read at a time


class ParquetSource:
    """Parquet files of one schema.

    Args:
        spec: where they are.

    Raises:
        UsageError: there are none, one is broken, or has no column of captions or pictures.
    """

    def __init__(self, spec: SourceSpec) -> None:
        self._storage, self._files = files_of(spec)
        with self._opened(self._files[0].key) as first:
            self._schema: pa.Schema = first.schema_arrow
        self._captions = _column(
            self._schema, spec.caption_column, CAPTION_COLUMNS, "import.caption_column", "captions"
        )
        self._image = image_column(self._schema, spec.image_column)
        self._pictures: PictureFiles | None = None
        if not bytes_column(self._schema, self._image):
            if not _is_text(self._schema.field(self._image).type):
                raise UsageError(
                    f"import.image_column = {self._image!r}: holds {self._schema.field(self._image).type}; pictures "
                    "are bytes, a struct with bytes, or paths; name another column"
                )
            self._pictures = PictureFiles(open_storage(spec.images) if spec.images else self._storage)
        elif spec.images:
            raise UsageError(
                f"import.images = {spec.images!r}: column {self._image!r} holds the pictures themselves; leave it out"
            )

    def columns(self) -> Sequence[str]:
        """See `Source.columns`."""
        return list(self._schema.names)

    def tag(self) -> str:
        """See `Source.tag`."""
        pictures = self._pictures.tag if self._pictures else ""
        return hashlib.sha256(f"{tag_of(self._files)} {pictures} {self._image}".encode()).hexdigest()

    def found(self, columns: Iterable[str]) -> Iterator[Found]:
        """See `Source.found`: files in the order of their names, rows as they stand in them."""
        hashes = [name for name in HASH_COLUMNS if name in self._schema.names]
        names = {*columns, *hashes, self._captions}
        names |= {self._image} if self._pictures else set()
        for entry in self._files:
            with self._opened(entry.key) as file:
                if absent := names - set(file.schema_arrow.names):
                    raise UsageError(
                        f"import.source: {self._storage.url(entry.key)} lacks {column_list(sorted(absent))}, "
                        f"which the first file has; it has {column_list(file.schema_arrow.names)}"
                    )
                row = 0
                for batch in file.iter_batches(ROWS, columns=sorted(names)):
                    for facts in batch.to_pylist():
                        yield from self._of_row(entry.key, row, facts, hashes)
                        row += 1

    def _of_row(self, file: str, row: int, facts: dict[str, Any], hashes: Sequence[str]) -> Iterator[Found]:
        if self._pictures:
            place, name = self._pictures.place(facts[self._image]), storable(facts[self._image])
        else:
            place, name = Place(file=file, row=row), storable(f"{file}:{row}")
        picture = picture_hash(facts, hashes) or name
        for caption in each_caption(facts[self._captions]):
            yield Found(picture, caption, place, facts)

    @contextmanager
    def _opened(self, key: str) -> Iterator[pq.ParquetFile]:
        try:
            with open_seekable(self._storage, key) as raw, pq.ParquetFile(raw, pre_buffer=False) as file:
                yield file
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise UsageError(
                f"import.source: {self._storage.url(key)} cannot be read as parquet: {' '.join(str(error).split())}; "
                "download it again, or name the others only"
            ) from None


def image_column(schema: pa.Schema, wanted: str | None) -> str:
    """The column of pictures: the named one, or the first usual one; UsageError where there is none."""
    return _column(schema, wanted, IMAGE_COLUMNS, "import.image_column", "pictures")


def _column(schema: pa.Schema, wanted: str | None, usual: Sequence[str], option: str, what: str) -> str:
    column = named(wanted, usual, schema.names, option)
    if column is None:
        raise UsageError(
            f"import.source: no column of {what} named {' or '.join(usual)} among {column_list(schema.names)}; "
            f"name it with {option}"
        )
    return column


def bytes_column(schema: pa.Schema, column: str) -> str:
    """Where a column of pictures has their bytes: itself, or a field of it with a dot; empty where it has none."""
    kind = schema.field(column).type
    if _is_bytes(kind):
        return column
    if (
        pa.types.is_struct(kind)
        and kind.get_field_index("bytes") >= 0
        and _is_bytes(kind.field("bytes").type)
    ):
        return f"{column}.bytes"
    return ""


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
