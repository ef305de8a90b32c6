"""Seconds in which a device was at work, by its own clock: it may have waited while its process was busy."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

Found = TypeVar("Found")


class DeviceClock:
    """Times the passes of models between events that the GPU records when it gets to them.

    On a CPU the process is the device, and all of its work counts.

    Args:
        modules: whose passes count, none of them inside another.
        event: makes what has `record`, `synchronize`, `query` and `elapsed_time`, in milliseconds; None: CUDA's own,
            where there is a GPU.
        ahead: let the CPU be one call of `timed` ahead of the GPU, and no more; otherwise each is waited for.
    """

    def __init__(
        self, modules: Iterable[nn.Module], event: Callable[[], Any] | None = None, *, ahead: bool = False
    ) -> None:
        if event is None and torch.cuda.is_available():
            event = partial(torch.cuda.Event, enable_timing=True, blocking=True)
        self._event, self._ahead = event, ahead
        self._begun: Any = None  # of the pass under way; of one that fails, until the next begins
        self._passes: deque[tuple[Any, Any]] = deque()  # that are not counted yet
        self._given: Any = None  # the end of the last call's work
        if event is not None:
            for module in modules:
                module.register_forward_pre_hook(self._begin)
                module.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self._begun = self._mark()

    def _end(self, *_: Any) -> None:
        self._passes.append((self._begun, self._mark()))

    def _mark(self) -> Any:
        assert self._event is not None
        mark = self._event()
        mark.record()
        return mark

    def timed(self, work: Callable[[], Found]) -> tuple[Found, float]:
        """Do some work, and wait until the device is done with it; where the CPU is ahead, with that of the last call.

        Args:
            work: whose models run on the current stream; its results need not be there when it returns.

        Returns:
            what it returns, and the seconds of all passes that ended since the last call.
        """
        begun = time.monotonic()
        found = work()
        if self._event is None:
            return found, time.monotonic() - begun
        before, self._given = self._given, self._mark()
        awaited = before if self._ahead else self._given
        if awaited is not None:
            awaited.synchronize()
        milliseconds = 0.0
        while self._passes and self._passes[0][1].query():  # they end in the order in which they were given
            first, last = self._passes.popleft()
            milliseconds += first.elapsed_time(last)
        return found, milliseconds / 1e3
