"""Text as people save it: its encoding, and what separates the fields of a table."""

import codecs
import csv
from collections.abc import Collection, Sequence

DELIMITERS = (",", ";", "\t", "|")
LOOKED_AT = 20  # lines that a delimiter is found from
# UTF-32's mark begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


# How files begin that are no text, though a decoder may take some of them for it.
NO_TEXTS = (
    (b"version https://git-lfs", "a Git LFS pointer; git lfs pull fetches the file"),
    (b"PK\x03\x04", "a zip, as spreadsheets are; save it as .csv"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet of old; save it as .csv"),
    (b"\x1f\x8b", "compressed (gzip); unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd); unpack it with unzstd"),
    (b"PAR1", "parquet; name it .parquet"),
    (b"%PDF", "a PDF; save its text"),
    (b"<!doctype html", "a web page; download the file itself"),
    (b"<html", "a web page; download the file itself"),
)


def no_text(start: bytes) -> str:
    """What a file is instead of a text, and what to do; empty where it may be one."""
    begins = start.lstrip().lower()
    return next((told for mark, told in NO_TEXTS if begins.startswith(mark.lower())), "")


def encoding_of(start: bytes) -> str:
    """The encoding of a text by its first bytes: by its mark, or UTF-16 by its zeros; else UTF-8.

    Args:
        start: at least four bytes where there are so many.
    """
    for mark, encoding in MARKS:
        if start.startswith(mark):
            return encoding
    if len(start) >= 4 and start[1] == start[3] == 0 and start[0] and start[2]:
        return "utf-16-le"
    if len(start) >= 4 and start[0] == start[2] == 0 and start[1] and start[3]:
        return "utf-16-be"
    return "utf-8"


def caption_text(data: bytes) -> str:
    """A caption's file without its mark and last line end; what does not decode comes as lone surrogates."""
    try:
        text = data.decode(encoding_of(data[:4]))
    except UnicodeDecodeError:
        text = data.decode(errors="surrogateescape")
    return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")


def delimiter_of(lines: Sequence[str], names: Collection[str], usual: str) -> str:
    """What separates the fields of a table.

    Args:
        lines: its first ones, the header first.
        names: of columns of which its header should have one, in lower case.
        usual: taken where the lines do not tell.
    """
    if not lines:
        return usual
    order = [usual, *(each for each in DELIMITERS if each != usual)]
    for delimiter in order:
        if any(name.strip().lower() in names for name in _fields(lines[0], delimiter)):
            return delimiter
    for delimiter in order:
        counts = {len(_fields(line, delimiter)) for line in lines[:LOOKED_AT] if line.strip()}
        if len(counts) == 1 and counts != {1}:
            return delimiter
    return usual


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:  # a field longer than any caption; the reader of the rows will say so
        return []
