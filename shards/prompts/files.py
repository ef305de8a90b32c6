"""Prompt files of users: text, tables, JSON lines and parquet, checked line by line."""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from shards.errors import UsageError
from shards.format.plan import normalise_caption
from shards.prompts.categories import AXES, guess
from shards.prompts.near_duplicates import near_duplicates
from shards.prompts.prompt import Prompt, PromptSource
from shards.prompts.text_tables import LOOKED_AT, delimiter_of, encoding_of, no_text
from shards.stores.store import check_parsed

LONGEST_LINE = 20_000  # characters; a caption is cut nowhere, and beyond this a file is not a prompt file
LOOKED_INTO = 1 << 16  # bytes that tell encoding and line ends
MAX_FILE_BYTES = 1 << 30  # of a file, and of the texts in it
MOST_PARSED = 1 << 28  # bytes that a .json may take in memory, which is read whole
PARQUET_ROWS = 1000  # read at a time
CAPTION_COLUMNS = ("prompt", "caption", "text")
CATEGORY_COLUMN = "category"  # one word for it all, as in PartiPrompts


@dataclass(frozen=True)
class _PromptFile:
    """A prompt file and the option that names it; as text, the beginning of an error about it."""

    path: Path
    option: str
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.option} = {str(self.path)!r}"

    @property
    def column_option(self) -> str:
        return f"{self.option.removesuffix('s')}_column"

    @property
    def unit(self) -> str:
        return "item" if self.path.suffix.lower() == ".json" else "line"


def read_prompts(
    path: Path, column: str | None = None, option: str = "build.prompts", *, drop_duplicates: bool = False
) -> PromptSource:
    """Read a user's prompt file.

    Args:
        path: .txt (one per line), .tsv, .csv, .json (a list), .jsonl or .parquet. Texts are UTF-8, or UTF-16 by their
            first bytes; the delimiter of a table is found.
        column: of the captions; absent: `prompt`, `caption` or `text` (in any case), or the only column.
        option: that names the file, for errors.
        drop_duplicates: keep the first of captions that say the same, where they are an error otherwise.

    Returns:
        the prompts, captions exactly as they stand in the file; categories that it does not have are guessed. Blank
        ones are skipped and counted in the notes.

    Raises:
        UsageError: unreadable, empty, not UTF-8, no such column, duplicate prompts; names the place.
    """
    readers = {
        ".txt": _lines,
        ".tsv": _table,
        ".csv": _table,
        ".json": _json,
        ".jsonl": _json_lines,
        ".parquet": _parquet,
    }
    file = _PromptFile(path, option)
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{file}: unknown kind {path.suffix!r}; use {', '.join(readers)}")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror or error}") from None
    if not path.is_file():
        raise UsageError(f"{file}: is not a file; give one of {', '.join(readers)}")
    if size > MAX_FILE_BYTES:
        raise UsageError(f"{file}: {size:,} bytes; at most {MAX_FILE_BYTES:,}, split it")
    if path.suffix.lower() != ".parquet" and (instead := no_text(_beginning(file))):
        raise UsageError(f"{file}: is {instead}")
    if path.suffix.lower() == ".txt" and column is not None:
        raise UsageError(f"{file.column_option} = {column!r}: a .txt file has no columns; leave it out")
    try:
        dropped: list[str] = []
        blank: list[int] = []
        numbered = _not_blank(reader(file, column), blank)
        prompts = tuple(_checked(file, numbered, dropped if drop_duplicates else None))
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UsageError(f"{file}: cannot be read: {reason}") from None
    if not prompts:
        raise UsageError(f"{file}: holds no prompts; put at least one in")
    notes = [*file.notes]
    if blank:
        notes.append(f"{file}: {len(blank):,} blank prompts skipped, the first in {file.unit} {blank[0]}")
    if dropped:
        notes.append(f"{file}: {len(dropped):,} duplicates left out, the first {dropped[0]}")
    return PromptSource(path.name, _hash(prompts), prompts, tuple(notes))


def _beginning(file: _PromptFile) -> bytes:
    try:
        with file.path.open("rb") as opened:
            return opened.read(LOOKED_INTO)
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror or error}") from None


def without_near_duplicates(source: PromptSource, wanted: int) -> PromptSource:
    """Leave out prompts that are like an earlier one.

    Args:
        source: of the prompts.
        wanted: how many are needed; the file is compared only as far as it takes to have them.

    Returns:
        the first prompts that are left, `wanted` where there are so many. More or fewer of them begin alike.
    """
    taken, left, alike = 0, 0, {}
    while left < wanted and taken < len(source.prompts):
        taken = min(len(source.prompts), max(2 * taken, wanted))
        captions = [prompt.caption for prompt in source.prompts[:taken]]
        alike = near_duplicates(captions)
        left = taken - len(alike)
    kept = tuple(prompt for place, prompt in enumerate(source.prompts[:taken]) if place not in alike)[:wanted]
    if not alike:
        return replace(source, prompts=kept)
    place, first = next(iter(alike.items()))
    note = (
        f"{source.name}: {len(alike):,} of the first {taken:,} prompts are near-duplicates of earlier ones and left "
        f"out, the first {captions[place][:80]!r}, which is like {captions[first][:80]!r}"
    )
    return replace(source, prompts=kept, notes=(*source.notes, note))


def _not_blank(numbered: Iterator[tuple[int, Prompt]], blank: list[int]) -> Iterator[tuple[int, Prompt]]:
    for number, prompt in numbered:
        if prompt.caption.strip():
            yield number, prompt
        else:
            blank.append(number)


def _checked(
    file: _PromptFile, numbered: Iterator[tuple[int, Prompt]], dropped: list[str] | None
) -> Iterator[Prompt]:
    """Refuse what cannot be a caption; captions that say the same twice are refused too, or noted in `dropped`."""
    seen: dict[str, int] = {}
    for number, prompt in numbered:
        where = f"{file}, {file.unit} {number}"
        if len(prompt.caption) > LONGEST_LINE:
            raise UsageError(f"{where}: {len(prompt.caption):,} characters; at most {LONGEST_LINE:,}")
        if control := next((c for c in prompt.caption if ord(c) < 32 and c not in "\t\n\r"), None):
            raise UsageError(f"{where}: control character {control!r} in the prompt; remove it")
        if any(0xD800 <= ord(c) <= 0xDFFF for c in prompt.caption):
            raise UsageError(f"{where}: lone surrogate in the prompt, which UTF-8 cannot hold; remove it")
        normal = normalise_caption(prompt.caption)
        if normal in seen:
            if dropped is None:
                or_else = ", or give --build.duplicates drop" if file.option == "build.prompts" else ""
                raise UsageError(
                    f"{where}: duplicate of {file.unit} {seen[normal]}: {prompt.caption[:80]!r}; keep one of them "
                    f"(case and spacing do not tell prompts apart){or_else}"
                )
            dropped.append(f"in {file.unit} {number}, of {file.unit} {seen[normal]}")
            continue
        seen[normal] = number
        yield prompt


def _text_lines(file: _PromptFile) -> Iterator[tuple[int, str]]:
    """Numbered lines without their terminators, decoded one by one so that an error can name its line."""
    with file.path.open("rb") as lines:
        begins = lines.read(LOOKED_INTO)
        lines.seek(0)
        encoding, utf_8 = encoding_of(begins[:4]), ("utf-8", "utf-8-sig")
        end = (
            "\r" if b"\r" in begins and b"\n" not in begins else "\n"
        )  # of lines; the first one is an old Mac's
        if end == "\r" or encoding not in utf_8:
            whole = _decoded(file, lines.read(), encoding).removesuffix(end)
            yield from (
                (number, text.removesuffix("\r")) for number, text in enumerate(whole.split(end), start=1)
            )
            return
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{file}, line {number}: not UTF-8 at byte {error.start + 1}; convert the file to UTF-8"
                ) from None
            yield number, text.removesuffix("\n").removesuffix("\r")


def _decoded(file: _PromptFile, data: bytes, encoding: str) -> str:
    """A whole text; the mark of the byte order, which only some encodings take away, is no part of it."""
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        not_8 = "" if name == "UTF-8" else "not UTF-8, and "
        raise UsageError(
            f"{file}: {not_8}not {name} at byte {error.start + 1}; convert the file to UTF-8"
        ) from None


def _lines(file: _PromptFile, _column: str | None) -> Iterator[tuple[int, Prompt]]:
    for number, text in _text_lines(file):
        if number == 1 and (suffix := _other_format(text)):
            raise UsageError(
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


def _table(file: _PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
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
            raise UsageError(f"{file}: two columns are called {chosen!r}; rename one")
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
                raise UsageError(
                    f"{file}, line {reader.line_num}: {len(row)} fields, the header has {len(header)}; {remedy}"
                )
            yield reader.line_num, _from_mapping(dict(zip(header, row, strict=True)), chosen)
    except csv.Error as error:
        raise UsageError(f"{file}, line {reader.line_num}: {error}") from None


def _delimiter(file: _PromptFile, column: str | None) -> str:
    usual = "\t" if file.path.suffix.lower() == ".tsv" else ","
    lines = [*islice((text for _, text in _text_lines(file) if text.strip()), LOOKED_AT)]
    if lines and len(lines[0]) == 5 and lines[0].startswith("sep="):  # a spreadsheet's own word for it
        return lines[0][4]
    return delimiter_of(lines, {column.lower()} if column is not None else CAPTION_COLUMNS, usual)


def _is_headless(file: _PromptFile, header: Sequence[str], column: str | None) -> bool:
    """Whether the first line is a prompt already; UsageError where it may be either."""
    name = header[0].strip()
    if len(header) > 1 or column is not None or name.lower() in CAPTION_COLUMNS:
        return False
    if len(name.split()) == 1:
        raise UsageError(
            f"{file}: its first line, {name[:80]!r}, may be a header or a prompt; put a line 'prompt' before it, or "
            f"name it with {file.column_option}"
        )
    return True


def _rows(file: _PromptFile, delimiter: str, quoting: Literal[0, 3]) -> Any:
    """A `csv.reader` of the file."""
    lines = (text + "\n" for _, text in _text_lines(file))
    return csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)


def _is_quoted(file: _PromptFile, delimiter: str) -> bool:
    """Whether all rows are well formed where quotes hold fields together."""
    try:
        return len({len(row) for row in _rows(file, delimiter, csv.QUOTE_MINIMAL) if row}) == 1
    except csv.Error:
        return False


def _json(file: _PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
    """A list of texts or of objects, at the top or under the only key that has one."""
    data = file.path.read_bytes()
    try:
        check_parsed(data, MOST_PARSED)
    except ValueError as error:
        raise UsageError(f"{file}: {error}; write one object a line and name it .jsonl") from None
    try:
        content = json.loads(_decoded(file, data, encoding_of(data[:4])))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        lines = "; of one object a line, name it .jsonl" if "Extra data" in str(error) else "; mend it"
        raise UsageError(f"{file}: not JSON: {error}{lines}") from None
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else content
    if not isinstance(content, list):
        raise UsageError(
            f'{file}: {type(content).__name__} instead of a list; give ["a prompt", …] or [{{"prompt": …}}, …]'
        )
    chosen: str | None = None
    for number, item in enumerate(content, start=1):
        chosen = chosen or _chosen(file, item, column)
        yield number, _of_item(file, number, item, chosen)


def _json_lines(file: _PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
    chosen: str | None = None
    for number, text in _text_lines(file):
        if not text.strip():
            yield number, Prompt("")
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file}, line {number}: not JSON: {error}") from None
        chosen = chosen or _chosen(file, row, column)
        yield number, _of_item(file, number, row, chosen)


def _chosen(file: _PromptFile, item: Any, column: str | None) -> str | None:
    """The key of the captions, which the first object decides; None of what is no object."""
    return _caption_column(file, list(item), column) if isinstance(item, dict) else None


def _of_item(file: _PromptFile, number: int, item: Any, chosen: str | None) -> Prompt:
    """A prompt of a text or an object; a blank one of null, and where the object has not the key that is chosen."""
    where = f"{file}, {file.unit} {number}"
    if isinstance(item, str | None):
        return Prompt(item or "", **guess(item or ""))
    if not isinstance(item, dict):
        raise UsageError(f"{where}: {type(item).__name__} instead of a text or an object with a caption")
    assert chosen is not None  # an object has decided it
    item = {chosen: None, **item}
    if not isinstance(item[chosen], str | None):
        raise UsageError(f"{where}: {chosen!r} is {type(item[chosen]).__name__}, not text")
    return _from_mapping(item, chosen)


def _parquet(file: _PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
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
                    raise UsageError(
                        f"{file}, row {number}: more than {MAX_FILE_BYTES:,} bytes of text so far; split it"
                    )
                if isinstance(row[chosen], bytes):
                    row[chosen] = row[chosen].decode()
                if not isinstance(row[chosen], str | None):
                    kind = table.schema_arrow.field(chosen).type
                    raise UsageError(
                        f"{file}, row {number}: {chosen!r} is {kind}, not text; name a column of text"
                    )
                yield number, _from_mapping(row, chosen)
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}, row {number}: not UTF-8 at byte {error.start + 1}; convert it") from None
    except (pa.ArrowException, KeyError) as error:  # KeyError: two columns of one name
        raise UsageError(f"{file}: cannot be read as parquet: {' '.join(str(error).split())}") from None


def _shared_texts(file: _PromptFile) -> Any:
    """A parquet file of which a text that many rows share is in memory once, as it is in the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file.path) as table:
        texts = [each.name for each in table.schema_arrow if pa.types.is_string(each.type)]
    return pq.ParquetFile(file.path, read_dictionary=texts)


def _caption_column(file: _PromptFile, columns: Sequence[str], wanted: str | None) -> str:
    """The column that holds the captions."""
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise UsageError(
            f"{file.column_option} = {wanted!r}: {str(file.path)!r} has no such column; it has {', '.join(columns)}"
        )
    for wanted in CAPTION_COLUMNS:
        for name in columns:
            if name.lower() == wanted:
                return name
    if len(columns) == 1:
        return columns[0]
    is_table = file.path.suffix.lower() in (".csv", ".tsv")
    headless = ", or put a header line before it if that is the first prompt" if is_table else ""
    raise UsageError(
        f"{file}: no column named {' or '.join(CAPTION_COLUMNS)} among "
        f"{', '.join(columns)}; name it with {file.column_option}{headless}"
    )


def _from_mapping(row: Mapping[str, Any], chosen: str) -> Prompt:
    told = {name.lower(): str(value) for name, value in row.items() if value and name != chosen}
    guessed = guess(told.get(CATEGORY_COLUMN, ""), row[chosen] or "")
    return Prompt(row[chosen] or "", **{axis: told.get(axis, guessed[axis]) for axis in AXES})


def _hash(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        fields = (prompt.caption, prompt.content, prompt.style, prompt.subject)
        digest.update(json.dumps(fields, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()
