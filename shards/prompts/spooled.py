"""Prompts of a large file: kept as lines of a temporary file, of which a block is read when it is asked for."""

import hashlib
import json
import tempfile
from array import array
from collections.abc import Sequence
from itertools import islice
from threading import Lock
from typing import Any, overload
from weakref import finalize

from shards.errors import UsageError
from shards.prompts.prompt import Prompt

BLOCK = 64  # prompts read at once
IN_MEMORY = 1 << 25  # bytes; fewer are never written to disk
PIECE = 1 << 20  # bytes hashed at once


class PromptSpool(Sequence[Prompt]):
    """Where prompts are put one after the other; the file has no name and goes with the process."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # open as long as its prompts are read
        finalize(self, self._file.close)
        self._starts = array("Q")  # of each block, in bytes
        self._size = 0
        self._count = 0
        self._lock = Lock()
        self._last: tuple[int, list[Prompt]] = (-1, [])

    def __len__(self) -> int:
        return self._count

    def add(self, prompt: Prompt) -> None:
        """Put one more at the end.

        Raises:
            UsageError: the disk is full.
        """
        line = json.dumps((prompt.caption, prompt.content, prompt.style, prompt.subject)).encode() + b"\n"
        if self._count % BLOCK == 0:
            self._starts.append(self._size)
        try:
            self._file.write(line)
        except OSError as error:
            raise _not_kept(error) from None
        self._size += len(line)
        self._count += 1

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prompt, ...]: ...
    def __getitem__(self, index: int | slice) -> Prompt | tuple[Prompt, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(self._count)))
        number, within = divmod(range(self._count)[index], BLOCK)
        with self._lock:
            if self._last[0] != number:
                self._last = (number, self._block(number))
            return self._last[1][within]

    def _block(self, number: int) -> list[Prompt]:
        self._file.seek(self._starts[number])
        end = self._starts[number + 1] if number + 1 < len(self._starts) else self._size
        lines = self._file.read(end - self._starts[number]).splitlines()
        return [Prompt(*json.loads(line)) for line in lines]

    def sha256(self, places: Sequence[int]) -> str:
        """Over the lines of prompts at ascending places.

        Raises:
            UsageError: the disk is full.
        """
        digest = hashlib.sha256()
        with self._lock:
            try:
                self._file.seek(0)  # writes what is buffered
            except OSError as error:
                raise _not_kept(error) from None
            if len(places) == self._count:
                while piece := self._file.read(PIECE):
                    digest.update(piece)
            else:
                before = 0
                for place in places:
                    digest.update(next(islice(self._file, place - before, None)))
                    before = place + 1
        return digest.hexdigest()


class ChosenPrompts(Sequence[Prompt]):
    """Some of many prompts.

    Args:
        prompts: all of them.
        places: of those that are chosen.
    """

    def __init__(self, prompts: Sequence[Prompt], places: Sequence[int]) -> None:
        self._prompts = prompts
        self._places = places

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)  # in another process there is no file

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prompt, ...]: ...
    def __getitem__(self, index: int | slice) -> Prompt | tuple[Prompt, ...]:
        if isinstance(index, slice):
            return tuple(self._prompts[place] for place in self._places[index])
        return self._prompts[self._places[index]]


class Captions(Sequence[str]):
    """The captions of prompts, without holding them."""

    def __init__(self, prompts: Sequence[Prompt], count: int) -> None:
        self._prompts = prompts
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._prompts[place].caption for place in range(*index.indices(self._count))]
        return self._prompts[index].caption


def _not_kept(error: OSError) -> UsageError:
    return UsageError(
        f"{tempfile.gettempdir()}: prompts cannot be kept there: {error.strerror}; free space, or set TMPDIR to a "
        "folder on another disk"
    )
