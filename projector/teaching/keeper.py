"""What is made once for each pair before training: where it is kept, and how far it has come."""

import time

import torch
from torch import Tensor

from projector.data.packed import Packed, Ragged, Rows, room_in_memory
from projector.data.pair_storage import RESIDENT_SHARE

REPORT_SECONDS = 10.0


class Keeper:
    """Takes in one (n, width) tensor a pair: in memory, or in a nameless local file where that has no room.

    Args:
        count: pairs to come.
        rows: n, of each.
        width: of a row.
        dtype: that they are kept in.
        folder: local folder for what does not fit into memory; None for the system's temporary one.
        label: what progress lines call the pairs; "" for none.
    """

    def __init__(
        self, count: int, rows: int, width: int, dtype: torch.dtype, folder: str | None, label: str
    ) -> None:
        size = count * rows * width * torch.empty(0, dtype=dtype).element_size()
        on_disk = size > RESIDENT_SHARE * room_in_memory()
        self._kept: list[Tensor] | Packed = Packed(width, dtype, folder) if on_disk else []
        self._count, self._width, self._dtype, self._label = count, width, dtype, label
        self._begun = self._said = time.monotonic()

    def append(self, rows: Tensor) -> None:
        """Take in one more."""
        self._kept.append(rows.to("cpu", self._dtype))

    def closed(self) -> Rows:
        """All of them, once no more is coming."""
        return self._kept.closed() if isinstance(self._kept, Packed) else Ragged.of(self._kept, self._width)

    def report(self, done: int) -> None:
        """Say how many are done, how fast it goes and how long it will take, every now and then."""
        now = time.monotonic()
        if not self._label or now - self._said < REPORT_SECONDS:
            return
        self._said = now
        rate = done / (now - self._begun)
        left = (self._count - done) / rate
        print(
            f"{self._label}: {done} of {self._count} pictures, {rate:.1f} a second, {left:.0f} s left",
            flush=True,
        )
