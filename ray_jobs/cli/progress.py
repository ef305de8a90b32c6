"""One line that tells how far a job is: counts, rate and time left."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from ray_jobs.cli.log import tell
from shards.dataset.progress_figures import duration

INTERVAL = 5.0  # seconds between lines where the output is a file or a job log


@contextmanager
def repeated(act: Callable[[], None], seconds: float) -> Iterator[None]:
    """Do something every so many seconds, from a thread beside the block that is entered.

    What goes wrong is told, and tried again: whoever passes on stop requests must not end in silence over a store
    that was away for a while.
    """
    over = threading.Event()

    def again() -> None:
        told = ""
        while not over.wait(seconds):
            try:
                act()
                told = ""
            except Exception as error:
                if str(error) != told:
                    told = str(error)
                    reason = " ".join(told.split())[:500]
                    tell("watch", f"watching failed, and goes on: {type(error).__name__}: {reason}")

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Progress:
    """Prints progress: rewrites one line on a terminal, prints a line now and then elsewhere.

    Args:
        label: what is being done.
        total: units in all.
        done: units that were there before this run; they count as progress but not towards the rate.
        unit: name of a unit.
        stream: where to print.
    """

    def __init__(
        self, label: str, total: int, *, done: int = 0, unit: str = "samples", stream: TextIO | None = None
    ) -> None:
        self._label, self._total, self._before, self._unit = label, total, done, unit
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._start = time.monotonic()
        self._printed_at = 0.0
        self._last = ""

    def line(self, made: int, note: str = "") -> str:
        """The line for `made` units finished in this run."""
        elapsed = time.monotonic() - self._start
        done = self._before + made
        share = done / self._total if self._total else 1.0
        parts = [f"{self._label}: {done}/{self._total} {self._unit} ({share:.0%})"]
        if made and elapsed > 0:
            rate = made / elapsed
            parts.append(f"{rate * 3600:,.0f}/h" if rate < 1 else f"{rate:.1f}/s")
            if done < self._total:
                parts.append(f"{duration((self._total - done) / rate)} left")
        if note:
            parts.append(note)
        return ", ".join(parts)

    def show(self, made: int, note: str = "", *, final: bool = False) -> None:
        """Print the line if something changed and it is time to."""
        now = time.monotonic()
        if not (final or self._live) and now - self._printed_at < INTERVAL:
            return
        text = self.line(made, note)
        if text == self._last and not final:
            return
        width = len(self._last)
        self._last, self._printed_at = text, now
        if self._live:
            self._stream.write("\r" + text.ljust(width) + ("\n" if final else ""))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
