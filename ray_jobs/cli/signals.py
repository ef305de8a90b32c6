"""SIGTERM and Ctrl-C: what they do to a job, from its first second on."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def signals_exit() -> Iterator[None]:
    """SIGTERM and Ctrl-C leave through SystemExit(128 + number), so that `finally` blocks run."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with handling(leave):
        yield


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Take over SIGTERM and SIGINT for a while."""
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def noting_signals() -> Iterator[Callable[[], int]]:
    """Leave on SIGTERM and Ctrl-C, and know it whoever handled them: Ray puts handlers with other codes in place.

    Returns:
        a context; gives a function that returns the number of the signal that arrived, 0 where none did.
    """
    if current_thread() is not main_thread():  # no other thread may handle signals
        yield lambda: 0
        return
    out, into = os.pipe()
    os.set_blocking(out, False)
    os.set_blocking(into, False)
    before = signal.set_wakeup_fd(into, warn_on_full_buffer=False)

    def arrived() -> int:
        try:
            return next((number for number in os.read(out, 4096) if number in STOPPING), 0)
        except BlockingIOError:
            return 0

    try:
        with signals_exit():
            yield arrived
    finally:
        signal.set_wakeup_fd(before)
        os.close(out)
        os.close(into)
