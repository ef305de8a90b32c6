"""Prompt files of users: text, tables, JSON lines and parquet, checked line by line."""

import hashlib
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.errors import OptionError
from shards.prompts.file_readers import LONGEST_LINE, LOOKED_INTO, MAX_FILE_BYTES, READERS, PromptFile
from shards.prompts.near_duplicates import alike
from shards.prompts.prompt import Prompt, PromptSource
from shards.prompts.spooled import Captions, ChosenPrompts, PromptSpool
from shards.prompts.text_tables import no_text

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
SURROGATE = re.compile(r"[\ud800-\udfff]")
COMPARED = 1 << 20  # hashes at once


def read_prompts(
    path: Path, column: str | None = None, *, drop_duplicates: bool | None = None
) -> PromptSource:
    """Read a user's prompt file.

    Args:
        path: .txt (one per line), .tsv, .csv, .json (a list), .jsonl or .parquet. Texts are UTF-8, or UTF-16 by their
            first bytes; the delimiter of a table is found.
        column: of the captions; absent: `prompt`, `caption` or `text` (in any case), or the only column.
        drop_duplicates: keep the first of captions that say the same; False: they are an error; None: they are, and
            who calls has no option `duplicates` to drop them, so the error names none.

    Returns:
        the prompts, captions exactly as they stand in the file; categories that it does not have are guessed. Blank
        ones are skipped and counted in the notes.

    Raises:
        UsageError: unreadable, empty, not UTF-8, no such column, duplicate prompts; names the place.
    """
    file = PromptFile(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise OptionError(f"{file}: unknown kind {path.suffix!r}; use {', '.join(READERS)}")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise OptionError(f"{file}: cannot be read: {error.strerror or error}") from None
    if not path.is_file():
        raise OptionError(f"{file}: is not a file; give one of {', '.join(READERS)}")
    if size > MAX_FILE_BYTES:
        raise OptionError(f"{file}: {size:,} bytes; at most {MAX_FILE_BYTES:,}, split it")
    if path.suffix.lower() != ".parquet" and (instead := no_text(_beginning(file))):
        raise OptionError(f"{file}: is {instead}")
    if path.suffix.lower() == ".txt" and column is not None:
        raise OptionError(f"prompt_column = {column!r}: a .txt file has no columns; leave it out")
    try:
        return _spooled(file, reader(file, column), drop_duplicates=drop_duplicates)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise OptionError(f"{file}: cannot be read: {reason}") from None


def _spooled(
    file: PromptFile, numbered: Iterator[tuple[int, Prompt]], *, drop_duplicates: bool | None
) -> PromptSource:
    """What a file holds, checked; of a prompt only its number and a hash stay in memory."""
    spool, numbers, hashes = PromptSpool(), array("I"), array("Q")
    blank, first_blank = 0, 0
    for number, prompt in numbered:
        if not prompt.caption.strip():
            blank, first_blank = blank + 1, first_blank or number
            continue
        if wrong := _wrong_with(prompt.caption):
            raise OptionError(f"{file.place(number)}: {wrong}")
        spool.add(prompt)
        numbers.append(number)
        hashes.append(_hash(prompt.group))
    if not numbers:
        raise OptionError(f"{file}: holds no prompts; put at least one in")
    notes = [*file.notes]
    if blank:
        notes.append(f"{file}: {blank:,} blank prompts skipped, the first in {file.unit} {first_blank}")
    places: Sequence[int] = range(len(spool))
    repeated = _repeated(np.frombuffer(hashes, np.uint64))
    if repeated.any():
        later = int(repeated.argmax())
        first = numbers[hashes.index(hashes[later])]
        if not drop_duplicates:
            or_else = "" if drop_duplicates is None else ", or give duplicates drop"
            raise OptionError(
                f"{file.place(numbers[later])}: duplicate of {file.unit} {first}: {spool[later].caption[:80]!r}; "
                f"keep one of them (case and spacing do not tell prompts apart){or_else}"
            )
        places = array("I", np.flatnonzero(~repeated).astype(np.uint32).tobytes())
        notes.append(
            f"{file}: {int(repeated.sum()):,} duplicates left out, the first in {file.unit} {numbers[later]}, "
            f"of {file.unit} {first}"
        )
    return PromptSource(file.path.name, spool.sha256(places), ChosenPrompts(spool, places), tuple(notes))


def _wrong_with(caption: str) -> str:
    """Why a text cannot be a caption; empty where it can."""
    if len(caption) > LONGEST_LINE:
        return f"{len(caption):,} characters; at most {LONGEST_LINE:,}"
    if control := CONTROL.search(caption):
        return f"control character {control[0]!r} in the prompt; remove it"
    if not caption.isascii() and SURROGATE.search(caption):
        return "lone surrogate in the prompt, which UTF-8 cannot hold; remove it"
    return ""


def _hash(group: str) -> int:
    """64 bits of SHA-256, as many as a sample's id has."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")


def _repeated(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which hashes were there before."""
    order = np.argsort(hashes, kind="stable")
    repeated = np.zeros(len(hashes), dtype=bool)
    for start in range(1, len(order), COMPARED):
        here = order[start : start + COMPARED]
        before = order[start - 1 : start - 1 + len(here)]
        repeated[here[hashes[here] == hashes[before]]] = True
    return repeated


def _beginning(file: PromptFile) -> bytes:
    try:
        with file.path.open("rb") as opened:
            return opened.read(LOOKED_INTO)
    except OSError as error:
        raise OptionError(f"{file}: cannot be read: {error.strerror or error}") from None


def without_near_duplicates(source: PromptSource, wanted: int) -> PromptSource:
    """Leave out prompts that are like an earlier one.

    Args:
        source: of the prompts.
        wanted: how many are needed; the file is compared only as far as it takes to have them.

    Returns:
        the first prompts that are left, `wanted` where there are so many. More or fewer of them begin alike.
    """
    taken, left, first = 0, 0, (0, 0)
    dropped = bytearray()
    while left < wanted and taken < len(source.prompts):
        taken = min(len(source.prompts), max(2 * taken, wanted))
        captions = Captions(source.prompts, taken)
        dropped = bytearray(taken)
        for place, earlier in alike(captions):
            first = first if any(first) else (place, earlier)
            dropped[place] = 1
        left = taken - sum(dropped)
    places = np.flatnonzero(np.frombuffer(dropped, np.uint8) == 0)[:wanted].astype(np.uint32)
    kept = ChosenPrompts(source.prompts, array("I", places.tobytes()))
    if left == taken:
        return replace(source, prompts=kept)
    told, like = (source.prompts[place].caption[:80] for place in first)
    note = (
        f"{source.name}: {taken - left:,} of the first {taken:,} prompts are near-duplicates of earlier ones and left "
        f"out, the first {told!r}, which is like {like!r}"
    )
    return replace(source, prompts=kept, notes=(*source.notes, note))
