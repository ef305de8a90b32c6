"""Prompt files of users: text, tables, JSON lines and parquet, checked line by line."""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from shards.errors import UsageError
from shards.format.plan import normalise_caption
from shards.prompts.categories import AXES, guess
from shards.prompts.near_duplicates import near_duplicates
from shards.prompts.prompt import Prompt, PromptSource

LONGEST_LINE = 20_000  # characters; a caption is cut nowhere, and beyond this a file is not a prompt file
MAX_FILE_BYTES = 1 << 30
CAPTION_COLUMNS = ("prompt", "caption", "text")
CATEGORY_COLUMN = "category"  # one word for it all, as in PartiPrompts


@dataclass(frozen=True)
class _PromptFile:
    """A prompt file and the option that names it; as text, the beginning of an error about it."""

    path: Path
    option: str

    def __str__(self) -> str:
        return f"{self.option} = {str(self.path)!r}"

    @property
    def column_option(self) -> str:
        return f"{self.option.removesuffix('s')}_column"


def read_prompts(
    path: Path, column: str | None = None, option: str = "build.prompts", *, drop_duplicates: bool = False
) -> PromptSource:
    """Read a user's prompt file.

    Args:
        path: .txt (one per line), .tsv, .csv, .jsonl or .parquet.
        column: of the captions; absent: `prompt`, `caption` or `text` (in any case), or the only column.
        option: that names the file, for errors.
        drop_duplicates: keep the first of captions that say the same, where they are an error otherwise.

    Returns:
        the prompts, captions exactly as they stand in the file; categories that it does not have are guessed.

    Raises:
        UsageError: unreadable, empty, not UTF-8, no such column, blank or duplicate prompts; names the place.
    """
    readers = {".txt": _lines, ".tsv": _table, ".csv": _table, ".jsonl": _json_lines, ".parquet": _parquet}
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
    if path.suffix.lower() == ".txt" and column is not None:
        raise UsageError(f"{file.column_option} = {column!r}: a .txt file has no columns; leave it out")
    try:
        dropped: list[str] = []
        prompts = tuple(_checked(file, reader(file, column), dropped if drop_duplicates else None))
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror or error}") from None
    if not prompts:
        raise UsageError(f"{file}: holds no prompts; put at least one in")
    notes = (f"{file}: {len(dropped):,} duplicates left out, the first {dropped[0]}",) if dropped else ()
    return PromptSource(path.name, _hash(prompts), prompts, notes)


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


def _checked(
    file: _PromptFile, numbered: Iterator[tuple[int, Prompt]], dropped: list[str] | None
) -> Iterator[Prompt]:
    """Refuse what cannot be a caption; captions that say the same twice are refused too, or noted in `dropped`."""
    seen: dict[str, int] = {}
    for number, prompt in numbered:
        where = f"{file}, line {number}"
        if not prompt.caption.strip():
            raise UsageError(f"{where}: blank prompt; remove it")
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
                    f"{where}: duplicate of line {seen[normal]}: {prompt.caption[:80]!r}; keep one of them "
                    f"(case and spacing do not tell prompts apart){or_else}"
                )
            dropped.append(f"in line {number}, of line {seen[normal]}")
            continue
        seen[normal] = number
        yield prompt


def _text_lines(file: _PromptFile) -> Iterator[tuple[int, str]]:
    """Numbered lines without their terminators, decoded one by one so that an error can name its line."""
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{file}, line {number}: not UTF-8 at byte {error.start + 1}; convert the file to UTF-8"
                ) from None
            yield number, text.removesuffix("\n").removesuffix("\r")


def _lines(file: _PromptFile, _column: str | None) -> Iterator[tuple[int, Prompt]]:
    for number, text in _text_lines(file):
        yield number, Prompt(text, **guess(text))


def _table(file: _PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
    csv.field_size_limit(LONGEST_LINE * 4)
    # Two kinds of .tsv are about: with quotes as in a .csv, and with quotes that are but characters (PartiPrompts).
    plain = file.path.suffix.lower() == ".tsv" and not _is_quoted(file)
    reader = _rows(file, csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
    try:
        header = next(reader, None)
        if header is None:
            return
        chosen = _caption_column(file, header, column)
        for row in reader:
            if len(row) != len(header):
                raise UsageError(
                    f"{file}, line {reader.line_num}: {len(row)} fields, "
                    f"the header has {len(header)}; quote fields that hold the delimiter"
                )
            yield reader.line_num, _from_mapping(dict(zip(header, row, strict=True)), chosen)
    except csv.Error as error:
        raise UsageError(f"{file}, line {reader.line_num}: {error}") from None


def _rows(file: _PromptFile, quoting: Literal[0, 3]) -> Any:
    """A `csv.reader` of the file."""
    delimiter = "\t" if file.path.suffix.lower() == ".tsv" else ","
    lines = (text + "\n" for _, text in _text_lines(file))
    return csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)


def _is_quoted(file: _PromptFile) -> bool:
    """Whether all rows are well formed where quotes hold fields together."""
    try:
        return len({len(row) for row in _rows(file, csv.QUOTE_MINIMAL)}) == 1
    except csv.Error:
        return False


def _json_lines(file: _PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
    for number, text in _text_lines(file):
        where = f"{file}, line {number}"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UsageError(f"{where}: {type(row).__name__} instead of an object with a caption")
        chosen = _caption_column(file, list(row), column)
        if not isinstance(row[chosen], str):
            raise UsageError(f"{where}: {chosen!r} is {type(row[chosen]).__name__}, not text")
        yield number, _from_mapping(row, chosen)


def _parquet(file: _PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file.path)
        chosen = _caption_column(file, table.schema_arrow.names, column)
        kept = [
            name
            for name in table.schema_arrow.names
            if name == chosen or name.lower() in (*AXES, CATEGORY_COLUMN)
        ]
        number = 0
        for batch in table.iter_batches(columns=kept):
            for row in batch.to_pylist():
                number += 1
                if not isinstance(row[chosen], str):
                    raise UsageError(f"{file}, row {number}: {chosen!r} is {row[chosen]!r}, not text")
                yield number, _from_mapping(row, chosen)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as parquet: {error}") from None


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
    raise UsageError(
        f"{file}: no column named {' or '.join(CAPTION_COLUMNS)} among "
        f"{', '.join(columns)}; name it with {file.column_option}"
    )


def _from_mapping(row: Mapping[str, Any], chosen: str) -> Prompt:
    told = {name.lower(): str(value) for name, value in row.items() if value and name != chosen}
    guessed = guess(told.get(CATEGORY_COLUMN, ""), row[chosen])
    return Prompt(row[chosen], **{axis: told.get(axis, guessed[axis]) for axis in AXES})


def _hash(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        fields = (prompt.caption, prompt.content, prompt.style, prompt.subject)
        digest.update(json.dumps(fields, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()
