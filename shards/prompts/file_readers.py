"""How each kind of prompt file is read: text, tables, JSON, JSON lines and parquet, as numbered prompts."""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from shards.errors import OptionError
from shards.prompts.categories import AXES, guess
from shards.prompts.prompt import Prompt
from shards.prompts.text_tables import LOOKED_AT, delimiter_of, encoding_of
from shards.stores.store import check_parsed

LONGEST_LINE = 20_000  # characters; a caption is cut nowhere, and beyond this a file is not a prompt file
MOST_OF_LINE = 1 << 24  # bytes of a line with all its columns
LOOKED_INTO = 1 << 16  # bytes that tell encoding and line ends
MAX_FILE_BYTES = 1 << 30  # of a file, and of the texts in it
MOST_PARSED = 1 << 28  # bytes that a .json may take in memory, which is read whole
PARQUET_ROWS = 1000  # read at a time
CAPTION_COLUMNS = ("prompt", "caption", "text")
CATEGORY_COLUMN = "category"  # one word for it all, as in PartiPrompts


@dataclass(frozen=True)
class PromptFile:
    """A prompt file; as text, the beginning of an error about the option `prompts` that names it."""

    path: Path
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"prompts = {str(self.path)!r}"

    @property
    def unit(self) -> str:
        return "item" if self.path.suffix.lower() == ".json" else "line"

    def place(self, number: int) -> str:
        """The beginning of an error about one of its lines."""
        return f"{self}, {self.unit} {number}"


def _text_lines(file: PromptFile) -> Iterator[tuple[int, str]]:
    """Numbered lines without their terminators, decoded one by one so that an error can name its line."""
    with file.path.open("rb") as opened:
        begins = opened.read(LOOKED_INTO)
        opened.seek(0)
        encoding, utf_8 = encoding_of(begins[:4]), ("utf-8", "utf-8-sig")
        end = (
            "\r" if b"\r" in begins and b"\n" not in begins else "\n"
        )  # of lines; the first one is an old Mac's
        if end == "\r" or encoding not in utf_8:
            texts = _split(file, _decoded(file, opened, encoding), end)
            yield from ((number, text.removesuffix("\r")) for number, text in enumerate(texts, start=1))
            return
        lines = iter(partial(opened.readline, MOST_OF_LINE + 1), b"")
        for number, line in enumerate(lines, start=1):
            if len(line) > MOST_OF_LINE:
                raise OptionError(
                    f"{file}, line {number}: more than {MOST_OF_LINE:,} bytes; break it into lines"
                )
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise OptionError(
                    f"{file}, line {number}: not UTF-8 at byte {error.start + 1}; convert the file to UTF-8"
                ) from None
            yield number, text.removesuffix("\n").removesuffix("\r")


def _split(file: PromptFile, texts: Iterator[str], end: str) -> Iterator[str]:
    """The lines of a text that comes in pieces."""
    rest = ""
    for text in texts:
        *lines, rest = (rest + text).split(end)
        yield from lines
        if len(rest) > MOST_OF_LINE:
            raise OptionError(f"{file}: a line of more than {MOST_OF_LINE:,} characters; break it into lines")
    if rest:
        yield rest


def _decoded(file: PromptFile, opened: IO[bytes], encoding: str) -> Iterator[str]:
    """A text in pieces; the mark of the byte order is no part of it."""
    decoder = codecs.getincrementaldecoder(encoding)()
    read = 0
    while True:
        data = opened.read(LOOKED_INTO)
        start = read - len(decoder.getstate()[0])  # of what is decoded now: half a character may be left over
        try:
            yield decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            name = encoding.removesuffix("-sig").upper()
            not_8 = "" if name == "UTF-8" else "not UTF-8, and "
            raise OptionError(
                f"{file}: {not_8}not {name} at byte {start + error.start + 1}; convert the file to UTF-8"
            ) from None
        if not data:
            return
        read += len(data)


def _lines(file: PromptFile, _column: str | None) -> Iterator[tuple[int, Prompt]]:
    for number, text in _text_lines(file):
        if number == 1 and (suffix := _other_format(text)):
            raise OptionError(
                f"{file}: its first line, {text[:60]!r}, is one of a {suffix} file; name it {suffix}"
            )
        yield number, Prompt(text, **guess(text))


def _other_format(line: str) -> str:
    """The suffix that a text's first line calls for: of a table's header, JSON lines, a JSON list; "" for a prompt."""
    for delimiter, suffix in (("\t", ".tsv"), (",", ".csv"), (";", ".csv"), ("|", ".csv")):
        names = [name.strip().strip('"').lower() for name in line.split(delimiter)]
        if (
            len(names) > 1
            and any(name in CAPTION_COLUMNS for name in names)
            and all(map(str.isidentifier, names))
        ):
            return suffix
    if line.lstrip().startswith(("{", "[{", '["')):
        with suppress(ValueError, RecursionError):
            return ".jsonl" if isinstance(json.loads(line), dict) else ".json"
    return ""


def _table(file: PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
    csv.field_size_limit(LONGEST_LINE * 4)
    delimiter = _delimiter(file, column)
    # Two kinds of .tsv are about: with quotes as in a .csv, and with quotes that are but characters (PartiPrompts).
    plain = file.path.suffix.lower() == ".tsv" and not _is_quoted(file, delimiter)
    reader = _rows(file, delimiter, csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
    try:
        header = next((row for row in reader if any(map(str.strip, row)) and row != ["sep=", ""]), None)
        if header is None:
            return
        if _is_headless(file, header, column):
            file.notes.append(f"{file}: no header; line {reader.line_num} is taken as the first prompt")
            yield reader.line_num, _from_mapping({"prompt": header[0]}, "prompt")
            header = ["prompt"]
        header = [name.strip() for name in header]
        chosen = _caption_column(file, header, column)
        if header.count(chosen) > 1:
            raise OptionError(f"{file}: two columns are called {chosen!r}; rename one")
        for row in reader:
            if not any(map(str.strip, row)):
                yield reader.line_num, Prompt("")
                continue
            if len(row) != len(header):
                remedy = (
                    f"quote fields that hold the delimiter {delimiter!r}"
                    if len(row) > len(header)
                    else "give it as many"
                )
                raise OptionError(
                    f"{file}, line {reader.line_num}: {len(row)} fields, the header has {len(header)}; {remedy}"
                )
            yield reader.line_num, _from_mapping(dict(zip(header, row, strict=True)), chosen)
    except csv.Error as error:
        raise OptionError(f"{file}, line {reader.line_num}: {error}") from None


def _delimiter(file: PromptFile, column: str | None) -> str:
    usual = "\t" if file.path.suffix.lower() == ".tsv" else ","
    lines = [*islice((text for _, text in _text_lines(file) if text.strip()), LOOKED_AT)]
    if lines and len(lines[0]) == 5 and lines[0].startswith("sep="):  # a spreadsheet's own word for it
        return lines[0][4]
    return delimiter_of(lines, {column.lower()} if column is not None else CAPTION_COLUMNS, usual)


def _is_headless(file: PromptFile, header: Sequence[str], column: str | None) -> bool:
    """Whether the first line is a prompt already; UsageError where it may be either."""
    name = header[0].strip()
    if len(header) > 1 or column is not None or name.lower() in CAPTION_COLUMNS:
        return False
    if len(name.split()) == 1:
        raise OptionError(
            f"{file}: its first line, {name[:80]!r}, may be a header or a prompt; put a line 'prompt' before it, or "
            f"name it with prompt_column"
        )
    return True


def _rows(file: PromptFile, delimiter: str, quoting: Literal[0, 3]) -> Any:
    """A `csv.reader` of the file."""
    lines = (text + "\n" for _, text in _text_lines(file))
    return csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)


def _is_quoted(file: PromptFile, delimiter: str) -> bool:
    """Whether all rows are well formed where quotes hold fields together."""
    try:
        return len({len(row) for row in _rows(file, delimiter, csv.QUOTE_MINIMAL) if row}) == 1
    except csv.Error:
        return False


def _json(file: PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
    """A list of texts or of objects, at the top or under the only key that has one."""
    with file.path.open("rb") as opened:
        data = opened.read(MOST_PARSED)  # more is refused in any case
    try:
        check_parsed(data, MOST_PARSED)
    except ValueError as error:
        raise OptionError(f"{file}: {error}; write one object a line and name it .jsonl") from None
    try:
        content = json.loads("".join(_decoded(file, io.BytesIO(data), encoding_of(data[:4]))))
    except (ValueError, RecursionError) as error:
        if isinstance(error, OptionError):
            raise
        lines = "; of one object a line, name it .jsonl" if "Extra data" in str(error) else "; mend it"
        raise OptionError(f"{file}: not JSON: {error}{lines}") from None
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else content
    if not isinstance(content, list):
        raise OptionError(
            f'{file}: {type(content).__name__} instead of a list; give ["a prompt", …] or [{{"prompt": …}}, …]'
        )
    chosen: str | None = None
    for number, item in enumerate(content, start=1):
        chosen = chosen or _chosen(file, item, column)
        yield number, _of_item(file, number, item, chosen)


def _json_lines(file: PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
    chosen: str | None = None
    for number, text in _text_lines(file):
        if not text.strip():
            yield number, Prompt("")
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{file}, line {number}: not JSON: {error}") from None
        chosen = chosen or _chosen(file, row, column)
        yield number, _of_item(file, number, row, chosen)


def _chosen(file: PromptFile, item: Any, column: str | None) -> str | None:
    """The key of the captions, which the first object decides; None of what is no object."""
    return _caption_column(file, list(item), column) if isinstance(item, dict) else None


def _of_item(file: PromptFile, number: int, item: Any, chosen: str | None) -> Prompt:
    """A prompt of a text or an object; a blank one of null, and where the object has not the key that is chosen."""
    if isinstance(item, str | None):
        return Prompt(item or "", **guess(item or ""))
    if not isinstance(item, dict):
        kind = type(item).__name__
        raise OptionError(f"{file.place(number)}: {kind} instead of a text or an object with a caption")
    assert chosen is not None  # an object has decided it
    item = {chosen: None, **item}
    if not isinstance(item[chosen], str | None):
        raise OptionError(f"{file.place(number)}: {chosen!r} is {type(item[chosen]).__name__}, not text")
    return _from_mapping(item, chosen)


def _parquet(file: PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
    import pyarrow as pa

    number = size = 0
    try:
        table = _shared_texts(file)
        chosen = _caption_column(file, table.schema_arrow.names, column)
        kept = [
            name
            for name in table.schema_arrow.names
            if name == chosen or name.lower() in (*AXES, CATEGORY_COLUMN)
        ]
        for batch in table.iter_batches(PARQUET_ROWS, columns=kept):
            for index in range(len(batch)):
                number += 1
                row = {name: batch.column(name)[index].as_py() for name in kept}
                size += sum(len(value) for value in row.values() if isinstance(value, str | bytes))
                if size > MAX_FILE_BYTES:
                    raise OptionError(
                        f"{file}, row {number}: more than {MAX_FILE_BYTES:,} bytes of text so far; split it"
                    )
                if isinstance(row[chosen], bytes):
                    row[chosen] = row[chosen].decode()
                if not isinstance(row[chosen], str | None):
                    kind = table.schema_arrow.field(chosen).type
                    raise OptionError(
                        f"{file}, row {number}: {chosen!r} is {kind}, not text; name a column of text"
                    )
                yield number, _from_mapping(row, chosen)
    except UnicodeDecodeError as error:
        raise OptionError(f"{file}, row {number}: not UTF-8 at byte {error.start + 1}; convert it") from None
    except (pa.ArrowException, KeyError) as error:  # KeyError: two columns of one name
        raise OptionError(f"{file}: cannot be read as parquet: {' '.join(str(error).split())}") from None


def _shared_texts(file: PromptFile) -> Any:
    """A parquet file of which a text that many rows share is in memory once, as it is in the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file.path, pre_buffer=False) as table:
        texts = [each.name for each in table.schema_arrow if pa.types.is_string(each.type)]
    # Without pre_buffer and with a buffer a row group comes in pieces, not at once.
    return pq.ParquetFile(file.path, read_dictionary=texts, pre_buffer=False, buffer_size=1 << 20)


def _caption_column(file: PromptFile, columns: Sequence[str], wanted: str | None) -> str:
    """The column that holds the captions."""
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise OptionError(
            f"prompt_column = {wanted!r}: {str(file.path)!r} has no such column; it has {', '.join(columns)}"
        )
    for wanted in CAPTION_COLUMNS:
        for name in columns:
            if name.lower() == wanted:
                return name
    if len(columns) == 1:
        return columns[0]
    is_table = file.path.suffix.lower() in (".csv", ".tsv")
    headless = ", or put a header line before it if that is the first prompt" if is_table else ""
    raise OptionError(
        f"{file}: no column named {' or '.join(CAPTION_COLUMNS)} among "
        f"{', '.join(columns)}; name it with prompt_column{headless}"
    )


def _from_mapping(row: Mapping[str, Any], chosen: str) -> Prompt:
    told = {name.lower(): str(value) for name, value in row.items() if value and name != chosen}
    guessed = guess(told.get(CATEGORY_COLUMN, ""), row[chosen] or "")
    return Prompt(row[chosen] or "", **{axis: told.get(axis, guessed[axis]) for axis in AXES})


READERS: Mapping[str, Callable[[PromptFile, str | None], Iterator[tuple[int, Prompt]]]] = {
    ".txt": _lines,
    ".tsv": _table,
    ".csv": _table,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
