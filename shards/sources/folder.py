"""A folder of pictures with their captions beside them, or in metadata.jsonl, .csv or .parquet (Hugging Face)."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from shards.errors import NotFoundError, OptionError, OversizeError
from shards.prompts.text_tables import caption_text, delimiter_of, encoding_of
from shards.sources.item import Place, storable
from shards.sources.picture import NOT_READ
from shards.sources.picture import SUFFIXES as PICTURES
from shards.sources.source import (
    BROKEN_JSON,
    CAPTION_COLUMNS,
    HASH_COLUMNS,
    Found,
    SourceSpec,
    column_list,
    composed,
    each_caption,
    is_hidden,
    is_safe,
    json_facts,
    name_problem,
    named,
    picture_hash,
    relative_path,
    tag_of,
)
from shards.stores.local import open_storage
from shards.stores.store import Entry

TEXTS = (".txt", ".caption")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
NAME_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "path")
MAX_TEXT = 1 << 20  # bytes of a caption's file; more is no caption
LOOKED_AT = 100  # .json files that are looked at for their columns
READ_TOGETHER = 16  # small files, of a store that answers many requests

Facts = Mapping[str, Any]


class FolderSource:
    """A folder, with those in it.

    Args:
        spec: where it is. What metadata files say is held in memory.

    Raises:
        UsageError: it holds no pictures, no captions, or metadata that cannot be read.
    """

    def __init__(self, spec: SourceSpec) -> None:
        if spec.images:
            raise OptionError(
                f"images = {spec.images!r}: the folder in source holds the pictures; leave it out"
            )
        if spec.source.lower().endswith(".zip"):
            raise OptionError(
                f"source = {spec.source!r}: a zip is read beside COCO annotations only, as images; "
                "unpack it (unzip) and give the folder"
            )
        if not spec.source.startswith("s3://") and Path(spec.source).expanduser().is_file():
            raise OptionError(f"source = {spec.source!r}: is a file; give the folder that holds the pictures")
        self._spec, self._storage = spec, open_storage(spec.source)
        entries = [entry for entry in self._storage.list() if not is_hidden(entry.key)]
        self._tag = tag_of(entries)
        self._pictures = {entry.key: entry for entry in entries if _suffix(entry.key) in PICTURES}
        self._unread = [entry.key for entry in entries if _suffix(entry.key) in NOT_READ]
        if not self._pictures:
            raise OptionError(f"source = {spec.source!r}: no pictures there{self._instead(entries)}")
        self._beside, self._orphans = self._side_files(entries)
        self._rows = self._metadata([entry for entry in entries if _base(entry.key) in METADATA])
        if not self._rows and not self._beside:
            raise OptionError(
                f"source = {spec.source!r}: {len(self._pictures):,} pictures and no captions; put NAME.txt, "
                ".caption or .json beside each NAME.png, or a metadata.jsonl with file_name and text"
            )
        self._columns = self._look()
        self._own_column = named(spec.caption_column, (), self._columns, "caption_column")

    def columns(self) -> Sequence[str]:
        """See `Source.columns`: what metadata and the first .json files say."""
        return self._columns

    def tag(self) -> str:
        """See `Source.tag`."""
        return self._tag

    def found(self, columns: Iterable[str]) -> Iterator[Found]:
        """See `Source.found`: pictures in the order of their names, then what belongs to none."""
        wanted = set(columns)
        hashes = [name for name in HASH_COLUMNS if name in self._columns]
        # A picture that metadata name has its place in the order whether it is there or not yet.
        names = iter(sorted(self._pictures.keys() | self._rows.keys()))
        while keys := list(islice(names, 1000)):
            with ThreadPoolExecutor(READ_TOGETHER) as readers:
                read = list(readers.map(self._beside_of, keys))
            for key, (text, facts) in zip(keys, read, strict=True):
                size = self._pictures[key].size if key in self._pictures else -1
                place = Place(file=key, size=size) if is_safe(key) else None
                for caption, told in self._said(self._rows.get(key), text, facts or {}):
                    told_wanted = {name: value for name, value in told.items() if name in wanted}
                    picture = picture_hash(told, hashes) or storable(key)
                    broken = BROKEN_JSON if facts is None and caption is None else ""
                    yield Found(picture, caption, place, told_wanted, name_problem(key) or broken)
        for key in self._orphans:
            yield Found(storable(key), None, None, {}, problem="caption without a picture")
        for key in self._unread:
            yield Found(storable(key), None, None, {}, problem=f"a format that is not read ({_suffix(key)})")

    def _said(self, rows: Sequence[Facts] | None, text: Any, facts: Facts) -> Iterator[tuple[Any, Facts]]:
        """Each caption of a picture with its facts: of its metadata, else of the files beside it."""
        for row in rows or [facts]:
            told = [name for name, value in row.items() if value is not None]
            column = self._own_column or named(None, CAPTION_COLUMNS, told, "caption_column")
            caption = row.get(column or "")
            if self._own_column is None and text is not None and (rows is None or caption is None):
                caption = text
            for one in each_caption(caption):
                yield one, {**facts, **row}

    def _side_files(self, entries: Sequence[Entry]) -> tuple[dict[str, list[str]], list[str]]:
        """Files beside pictures, by picture; and captions beside none."""
        stems = {_stem(key): key for key in reversed(self._pictures)}
        unread = {_stem(key) for key in self._unread}
        beside: dict[str, list[str]] = {}
        orphans = []
        for entry in entries:
            suffix, stem = _suffix(entry.key), _stem(entry.key)
            if suffix not in (*TEXTS, ".json") or _base(entry.key) in METADATA:
                continue
            picture = stem if stem in self._pictures else stems.get(stem)  # NAME.png.txt, or NAME.txt
            if picture is not None:
                beside.setdefault(picture, []).append(entry.key)
            elif suffix != ".json" and stem not in unread:  # a .json of no picture may be anything
                orphans.append(entry.key)
        return beside, orphans

    def _beside_of(self, picture: str) -> tuple[Any, Facts | None]:
        """What the files beside a picture say: a caption's text or None, and facts; None for a broken .json."""
        text: str | None = None
        facts: Facts | None = {}
        for key in sorted(self._beside.get(picture, ()), key=lambda key: _suffix(key) != ".txt"):
            try:
                said = caption_text(self._storage.get_bytes(key, MAX_TEXT))
            except OversizeError:
                said = "x" * MAX_TEXT  # left out as too long
            except NotFoundError:
                continue  # gone since it was listed
            if _suffix(key) != ".json":
                text = said if text is None else text
                continue
            facts = json_facts(said)
        return text, facts

    def _metadata(self, entries: Sequence[Entry]) -> dict[str, list[Facts]]:
        """Rows of metadata files by the key of the picture that they name, from the file's own folder."""
        rows: dict[str, list[Facts]] = {}
        spelled = {composed(key): key for key in self._pictures if not key.isascii()}
        for entry in entries:
            where = f"source: {self._storage.url(entry.key)}"
            folder = entry.key[: -len(_base(entry.key))]
            read = {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}[_suffix(entry.key)]
            try:
                said = list(read(self._storage.get_bytes(entry.key), where))
            except OversizeError as error:
                raise OptionError(f"{where}: {error}; split it") from None
            columns = list(dict.fromkeys(name for row in said[:LOOKED_AT] for name in row))
            column = named(self._spec.image_column, NAME_COLUMNS, columns, "image_column")
            if said and column is None:
                raise OptionError(
                    f"{where}: no column {' or '.join(NAME_COLUMNS)} among {column_list(columns)}; name the one of "
                    "the pictures' names with image_column"
                )
            for row in said:
                name = row.get(column or "")
                key = f"{folder}{relative_path(name) or name}" if isinstance(name, str) and name else ""
                if key not in self._pictures:
                    key = spelled.get(composed(key), key)
                rows.setdefault(key, []).append({each: row[each] for each in row if each != column})
        return rows

    def _look(self) -> Sequence[str]:
        names = dict.fromkeys(
            name for rows in islice(self._rows.values(), LOOKED_AT) for row in rows for name in row
        )
        with_json = (
            key for key, files in self._beside.items() if any(_suffix(one) == ".json" for one in files)
        )
        for key in islice(with_json, LOOKED_AT):
            names |= dict.fromkeys(self._beside_of(key)[1] or ())
        return list(names)

    def _instead(self, entries: Sequence[Entry]) -> str:
        """What there is instead of pictures, and what to do."""
        if not entries:
            return ": it is empty or not there; give the folder that holds them"
        for suffix, kind in ((".tar", "tars"), (".parquet", "parquet")):
            if count := sum(_suffix(entry.key) == suffix for entry in entries):
                return f", but {count:,} {suffix} files; give kind {kind}"
        if zips := [entry.key for entry in entries if _suffix(entry.key) == ".zip"]:
            return f", but {len(zips):,} .zip files, the first {zips[0]!r}; unpack them (unzip)"
        if self._unread:
            return f", but {len(self._unread):,} of formats that are not read, the first {self._unread[0]!r}"
        return f" ({', '.join(PICTURES)}); give the folder that holds them (symbolic links are not followed)"


def _json_rows(data: bytes, where: str) -> Iterator[Facts]:
    for number, line in enumerate(_whole(data, where).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{where}, line {number}: not JSON: {error}; mend it") from None
        if not isinstance(row, dict):
            raise OptionError(f"{where}, line {number}: {type(row).__name__} instead of an object; mend it")
        yield row


def _csv_rows(data: bytes, where: str) -> Iterator[Facts]:
    text = _whole(data, where)
    delimiter = delimiter_of([line for line in text.splitlines()[:20] if line.strip()], NAME_COLUMNS, ",")
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise OptionError(
                    f"{where}, line {reader.line_num}: not the fields of the header; "
                    f"quote those that hold {delimiter!r}"
                )
            yield row
    except csv.Error as error:
        raise OptionError(f"{where}, line {reader.line_num}: {error}; mend it") from None


def _parquet_rows(data: bytes, where: str) -> Iterator[Facts]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield from pq.read_table(io.BytesIO(data)).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise OptionError(f"{where}: cannot be read as parquet: {' '.join(str(error).split())}") from None


def _whole(data: bytes, where: str) -> str:
    try:
        return data.decode(encoding_of(data[:4])).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise OptionError(f"{where}: not UTF-8 at byte {error.start + 1}; convert it to UTF-8") from None


def _base(key: str) -> str:
    return key.rpartition("/")[2]


def _suffix(key: str) -> str:
    return PurePosixPath(_base(key)).suffix.lower()


def _stem(key: str) -> str:
    """A key without its suffix."""
    return key[: len(key) - len(_suffix(key))]
