"""Parquet files with captions beside pictures' bytes (also as the hub's {bytes, path}) or their paths."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.errors import OptionError
from shards.sources.item import Place, storable
from shards.sources.selection import LONGEST_CAPTION
from shards.sources.source import (
    CAPTION_COLUMNS,
    HASH_COLUMNS,
    Found,
    PictureFiles,
    SourceSpec,
    column_list,
    each_caption,
    files_of,
    name_problem,
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
STATUS = "status"  # of a download, as img2dataset writes it
ROWS = 1000  # read at a time, at most
FEW_ROWS = 16  # with their pictures
BATCH_BYTES = 64 << 20  # that the rows read at once may have by the file's own account
LONGEST_TEXT = 4 * (LONGEST_CAPTION + 1)  # bytes of a value that is looked at: of more, the beginning
MOST_CAPTIONS = 1000  # of a picture; further ones are not looked at
LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


class ParquetSource:
    """Parquet files of one schema.

    Args:
        spec: where they are.

    Raises:
        UsageError: there are none, one is broken, or has no column of captions or pictures.
    """

    def __init__(self, spec: SourceSpec) -> None:
        self._spec = spec
        self._storage, self._files = files_of(spec)
        with self._opened(self._files[0].key) as first:
            self._schema: pa.Schema = first.schema.to_arrow_schema()
        _check_names(self._schema, self._storage.url(self._files[0].key))
        self._captions, self._field = caption_column(self._schema, spec.caption_column)
        self._image = image_column(self._schema, spec.image_column)
        if "." in self._image:
            raise OptionError(
                f"image_column = {self._image!r}: it has a dot, as fields of structs have; rename it"
            )
        self._pictures: PictureFiles | None = None
        self._bytes = bytes_column(self._schema, self._image)
        if not self._bytes:
            if not _is_text(self._schema.field(self._image).type):
                raise OptionError(
                    f"image_column = {self._image!r}: holds {self._schema.field(self._image).type}; pictures "
                    "are bytes, a struct with bytes, or paths; name another column"
                )
            self._pictures = PictureFiles(open_storage(spec.images) if spec.images else self._storage)
        elif spec.images:
            raise OptionError(
                f"images = {spec.images!r}: column {self._image!r} holds the pictures themselves; leave it out"
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
        names |= {STATUS} & set(self._schema.names)
        for entry in self._files:
            with self._opened(entry.key) as file:
                if absent := names - set(file.schema_arrow.names):
                    raise OptionError(
                        f"source: {self._storage.url(entry.key)} lacks {column_list(sorted(absent))}, "
                        f"which the first file has; it has {column_list(file.schema_arrow.names)}"
                    )
                self._check_alike(entry.key, file.schema.to_arrow_schema())
                row = 0
                for group in range(file.num_row_groups):
                    empty = self._without_bytes(file, group)
                    first = row
                    rows = rows_at_once(file, group, names)
                    for batch in file.iter_batches(rows, row_groups=[group], columns=sorted(names)):
                        for facts in _bounded(batch).to_pylist():
                            problem = _why_empty(facts) if row - first in empty else ""
                            yield from self._of_row(entry.key, row, facts, hashes, problem)
                            row += 1

    def _check_alike(self, key: str, schema: pa.Schema) -> None:
        """Refuse a file whose captions or pictures stand elsewhere than the first one's: they would be mixed up."""
        _check_names(schema, self._storage.url(key))
        image = image_column(schema, self._spec.image_column)
        captions, field = caption_column(schema, self._spec.caption_column)
        found = captions, field, image, bytes_column(schema, image)
        if found != (self._captions, self._field, self._image, self._bytes):
            raise OptionError(
                f"source: {self._storage.url(key)} holds captions in {'.'.join(filter(None, found[:2]))!r} and "
                f"pictures in {found[3] or image!r}, the first file in "
                f"{'.'.join(filter(None, (self._captions, self._field)))!r} and {self._bytes or self._image!r}; import "
                "them apart, or name columns that all have"
            )

    def _without_bytes(self, file: pq.ParquetFile, group: int) -> Collection[int]:
        """Rows of a group, counted from its first, without a picture: those of failed downloads, for one.

        The pictures themselves are read only in a group that lacks some, or does not say.
        """
        if not self._bytes:
            return ()
        columns = file.metadata.row_group(group)
        leaf = next(i for i in range(columns.num_columns) if columns.column(i).path_in_schema == self._bytes)
        statistics = columns.column(leaf).statistics
        if statistics is not None and statistics.has_null_count and not statistics.null_count:
            return ()
        name, _, inner = self._bytes.partition(".")
        empty: set[int] = set()
        row = 0
        rows = rows_at_once(file, group, [name], FEW_ROWS)
        for batch in file.iter_batches(rows, row_groups=[group], columns=[self._bytes]):
            column = batch.column(name)
            for there in (column.field(inner) if inner else column).is_valid().to_pylist():
                if not there:
                    empty.add(row)
                row += 1
        return empty

    def _of_row(
        self, file: str, row: int, facts: dict[str, Any], hashes: Sequence[str], problem: str
    ) -> Iterator[Found]:
        if self._pictures:
            place, name = self._pictures.place(facts[self._image]), storable(facts[self._image])
            problem = name_problem(facts[self._image])
        else:
            place, name = Place(file=file, row=row), storable(f"{file}:{row}")
        picture = picture_hash(facts, hashes) or name
        said = facts[self._captions]
        if self._field:
            said = [one.get(self._field) if isinstance(one, dict) else None for one in each_caption(said)]
            said = said[0] if len(said) == 1 else said
        for caption in each_caption(said):
            yield Found(picture, caption, place, facts, problem)

    @contextmanager
    def _opened(self, key: str) -> Iterator[pq.ParquetFile]:
        try:
            with open_seekable(self._storage, key) as raw, opened(raw) as file:
                yield file
        except (
            pa.ArrowException,
            OSError,
            UnicodeDecodeError,
        ) as error:  # Arrow raises OSError for damage, too
            raise OptionError(
                f"source: {self._storage.url(key)} cannot be read as parquet: {' '.join(str(error).split())}; "
                "download it again, or name the others only"
            ) from None


def opened(raw: Any, buffer_size: int = 0) -> pq.ParquetFile:
    """A parquet file of which a value that many rows share is in memory once, as it is in the file.

    Not so in lists and structs, for which Arrow has no such reading; `rows_at_once` bounds those.
    """
    with pq.ParquetFile(raw, pre_buffer=False) as file:
        leaves = [file.schema.column(place) for place in range(len(file.schema))]
    return pq.ParquetFile(
        raw,
        pre_buffer=False,
        buffer_size=buffer_size,
        read_dictionary=[
            leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and not _is_nested(leaf.path)
        ],
    )


def _is_nested(path: str) -> bool:
    return "." in path


def rows_at_once(file: pq.ParquetFile, group: int, names: Collection[str], most: int = ROWS) -> int:
    """How many rows of a group are read together, so that they take about BATCH_BYTES at most.

    Args:
        file: opened.
        group: number of the row group.
        names: of the columns that are read.
        most: rows in any case.

    Returns:
        by what the columns take unpacked, of lists and structs as if all rows shared one value of that size.
    """
    facts = file.metadata.row_group(group)
    rows = most
    for column in map(facts.column, range(facts.num_columns)):
        path, unpacked = column.path_in_schema, max(1, column.total_uncompressed_size)
        if path.partition(".")[0] in names:
            share = BATCH_BYTES if _is_nested(path) else BATCH_BYTES * facts.num_rows
            rows = min(rows, share // unpacked)
    return max(1, rows)


def _bounded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows in which texts and bytes are cut at LONGEST_TEXT, which is more than a caption or path may have."""
    return pa.RecordBatch.from_arrays([_cut(column) for column in batch.columns], names=batch.schema.names)


def _cut(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(column.indices, _cut(column.dictionary))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        few = pc.list_slice(column, 0, MOST_CAPTIONS, return_fixed_size_list=False)
        of_kind = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
        return of_kind.from_arrays(few.offsets, _cut(few.values), mask=few.is_null())
    if pa.types.is_struct(kind):
        inner = [_cut(each) for each in column.flatten()]
        return pa.StructArray.from_arrays(inner, names=[each.name for each in kind], mask=column.is_null())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.utf8_slice_codeunits(column, 0, LONGEST_TEXT)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.binary_slice(column, 0, LONGEST_TEXT)
    return column


def _why_empty(facts: dict[str, Any]) -> str:
    status = facts.get(STATUS)
    failed = isinstance(status, str) and status != "success"
    return "failed download" if failed else "no picture in the row"


def caption_column(schema: pa.Schema, wanted: str | None) -> tuple[str, str]:
    """The column of captions, and which field of it where it holds structs.

    Args:
        schema: of the files.
        wanted: the column, or `column.field`; None for the usual ones.

    Raises:
        UsageError: there is none, or it holds something else; names the type.
    """
    field = ""
    if wanted is not None and wanted not in schema.names and wanted.partition(".")[0] in schema.names:
        wanted, _, field = wanted.partition(".")
    column = _column(schema, wanted, CAPTION_COLUMNS, "caption_column", "captions")
    kind = schema.field(column).type
    inner = _value_type(kind)
    if pa.types.is_struct(inner):
        texts = [each.name for each in inner if _is_caption(_value_type(each.type))]
        usual = [name for name in texts if name.lower() in CAPTION_COLUMNS]
        choice = [field] if field else usual[:1] or texts
        if len(choice) == 1 and choice[0] in texts:
            return column, choice[0]
        field_list = f"; name one: {', '.join(f'{column}.{name}' for name in texts)}" if texts else ""
    else:
        field_list = ""
        # A column of nothing but nulls has a type of its own; it is counted row by row.
        if not field and (_is_caption(inner) or pa.types.is_null(inner)):
            return column, ""
    raise OptionError(
        f"caption_column = {column if not field else f'{column}.{field}'!r}: the column holds {kind}; captions "
        f"are text, UTF-8 bytes, lists of them, or one field of a struct{field_list or '; name another column'}"
    )


def _value_type(kind: pa.DataType) -> pa.DataType:
    """What stands in a column, without the lists and dictionaries around it."""
    while pa.types.is_dictionary(kind) or any(is_list(kind) for is_list in LISTS):
        kind = kind.value_type
    return kind


def _is_caption(kind: pa.DataType) -> bool:
    return _is_text(kind) or _is_bytes(kind)


def image_column(schema: pa.Schema, wanted: str | None) -> str:
    """The column of pictures: the named one, or the first usual one; UsageError where there is none."""
    return _column(schema, wanted, IMAGE_COLUMNS, "image_column", "pictures")


def _column(schema: pa.Schema, wanted: str | None, usual: Sequence[str], option: str, what: str) -> str:
    column = named(wanted, usual, schema.names, option)
    if column is None:
        if what == "pictures" and {"key", "url"} <= set(schema.names):
            raise OptionError(
                "source: these parquet files hold no pictures, only what img2dataset says of them; give the "
                "tars beside them with kind tars, or the files with kind folder"
            )
        raise OptionError(
            f"source: no column of {what} named {' or '.join(usual)} among {column_list(schema.names)}; "
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
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _check_names(schema: pa.Schema, url: str) -> None:
    """Refuse two columns of one name, of which nobody could say which is meant."""
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise OptionError(f"source: {url} has two columns called {twice[0]!r}; rename one")


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
