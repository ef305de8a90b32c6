"""What is printed: names, captions and messages from outside are text there, and never orders to a terminal."""

import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from shards.dataset.progress_figures import plain
from shards.errors import CorruptShardError, StorageError, UsageError

UNSEEN = (
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
)  # control, format (bidirectional overrides), surrogates, line separators
HARMLESS = "\n\t\u200c\u200d"  # joiners are part of words and of emoji


def visible(text: str) -> str:
    """A text with every character that moves the cursor or hides others as `\\uXXXX`, which JSON reads back."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign in HARMLESS or unicodedata.category(sign) not in UNSEEN else _escaped(sign)
        for sign in text
    )


def _escaped(sign: str) -> str:
    units = sign.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


class _Visible:
    """A stream that prints `visible` text, and is otherwise the one behind it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # What shows progress begins its line anew.
        start = "\r" if text.startswith("\r") else ""
        return self._stream.write(start + visible(text.removeprefix("\r")))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def behind(stream: TextIO) -> TextIO:
    """The stream itself, for what moves the cursor on purpose and escapes its texts."""
    return stream._stream if isinstance(stream, _Visible) else stream


def exit_code(run: Callable[[], int]) -> int:
    """Run a command: its own exit code, or 2 after a usage error and 1 after a failure, told in one line."""
    try:
        return run()
    except UsageError as error:
        print(f"error: {plain(error)}", file=sys.stderr)
        return 2
    except (StorageError, CorruptShardError) as error:
        print(f"failed: {plain(error)}", file=sys.stderr)
        return 1


@contextmanager
def visible_output() -> Iterator[None]:
    """Print on standard output and standard error what can be seen only."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Visible(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
