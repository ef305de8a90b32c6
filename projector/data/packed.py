"""Pairs as training holds them: aligned once, then in memory or packed on local disk, ready for any order of batches.

B batch, S input positions, L aligned positions, N pairs, D hidden.
"""

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from projector.data.align import Alignment, position_mask
from projector.data.pairs import Pair
from shards.errors import UsageError
from shards.format.statistics import RunningStatistics

ROWS_AT_A_TIME = 8192  # rows turned to float64 together: 168 MB at width 2560
BATCHES_AHEAD = 2  # read while the step before them computes


class Rows(Protocol):
    """Sequences of different length over one width, wherever they lie."""

    @property
    def lengths(self) -> Tensor:
        """(N,) int64."""

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Some sequences: (B, longest, D), padded with anything finite, and their mask (B, longest) bool."""

    def blocks(self) -> Iterator[Tensor]:
        """All rows in order, some thousand (n, D) at a time."""


@dataclass(frozen=True)
class Ragged:
    """Sequences end to end in one tensor."""

    values: Tensor
    """(all positions, D)."""
    lengths: Tensor
    """(N,) int64, on the CPU wherever the values are: a look at the longest must not wait for the device."""

    @cached_property
    def _starts(self) -> Tensor:
        return self.lengths.cumsum(0) - self.lengths

    @classmethod
    def of(cls, sequences: list[Tensor], width: int) -> "Ragged":
        """Concatenate (n, D) sequences, emptying the list so that memory never holds everything twice."""
        lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
        dtype = sequences[0].dtype if sequences else torch.bfloat16
        values = torch.empty(int(lengths.sum()), width, dtype=dtype)
        end = len(values)
        while sequences:
            last = sequences.pop()
            values[end - len(last) : end] = last
            end -= len(last)
        return cls(values, lengths)

    def to(self, device: torch.device) -> "Ragged":
        """The same on a device."""
        return Ragged(self.values.to(device), self.lengths)

    @property
    def bytes(self) -> int:
        """Size of the values in bytes."""
        return self.values.numel() * self.values.element_size()

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Rows.gather`; padding repeats real rows."""
        lengths = self.lengths[indices]
        longest = int(lengths.max()) if len(indices) else 0
        mask = position_mask(lengths, longest)
        offsets = torch.arange(longest).expand_as(mask)
        rows = self._starts[indices][:, None] + torch.minimum(offsets, (lengths - 1).clamp(min=0)[:, None])
        device = self.values.device
        # Whole rows are copied; `values[rows]` goes through them number by number and takes three times as long.
        taken = self.values.index_select(0, rows.flatten().to(device, non_blocking=True))
        return taken.view(len(indices), longest, -1), mask.to(device, non_blocking=True)

    def blocks(self) -> Iterator[Tensor]:
        """See `Rows.blocks`."""
        yield from torch.split(self.values, ROWS_AT_A_TIME)


class Packed:
    """Sequences end to end in a nameless local file: memory does not grow with their number.

    The file has no name from the beginning, so nothing is left of it however the process ends.

    Args:
        width: D.
        dtype: of what is kept.
        folder: local folder for the file; None for the system's temporary one.
    """

    def __init__(self, width: int, dtype: torch.dtype, folder: str | None) -> None:
        self._width, self._dtype = width, dtype
        self._row = width * torch.empty(0, dtype=dtype).element_size()
        self._file = tempfile.TemporaryFile(dir=folder, buffering=1 << 20)  # noqa: SIM115 - lives as long as this
        weakref.finalize(self, self._file.close)
        self._lengths: list[int] = []

    def append(self, sequence: Tensor) -> None:
        """Take in one more (n, D) sequence."""
        self._file.write(_bytes_of(sequence.to(self._dtype).contiguous()))
        self._lengths.append(len(sequence))

    def closed(self) -> "Packed":
        """Itself, once no more is coming."""
        self._file.flush()
        self.lengths = torch.tensor(self._lengths, dtype=torch.int64)
        self._starts = (self.lengths.cumsum(0) - self.lengths).tolist()
        return self

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Rows.gather`; padding is zero."""
        wanted = indices.tolist()
        lengths = self.lengths[indices]
        longest = int(lengths.max()) if wanted else 0
        rows = torch.empty(len(wanted), longest, self._width, dtype=self._dtype)
        memory, stride = _bytes_of(rows), longest * self._row
        for place, index in enumerate(wanted):
            count, first = self._lengths[index], place * stride
            self._read(memory[first : first + count * self._row], self._starts[index])
            if count < longest:
                rows[place, count:] = 0
        return rows, position_mask(lengths, longest)

    def blocks(self) -> Iterator[Tensor]:
        """See `Rows.blocks`."""
        total = int(self.lengths.sum())
        for start in range(0, total, ROWS_AT_A_TIME):
            block = torch.empty(min(ROWS_AT_A_TIME, total - start), self._width, dtype=self._dtype)
            self._read(_bytes_of(block), start)
            yield block

    def _read(self, target: memoryview, start: int) -> None:
        """Fill memory with rows from row `start` on."""
        done = 0
        while done < len(target):
            got = os.preadv(self._file.fileno(), [target[done:]], start * self._row + done)
            if not got:
                raise OSError(f"the packed pairs end {len(target) - done} bytes early")
            done += got


def _bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class Batch:
    """What one training step takes; masks are True where a position exists."""

    inputs: Tensor
    """(B, S, D) raw VL embeddings, or their aligned positions."""
    input_mask: Tensor
    """(B, S) bool."""
    targets: Tensor
    """(B, L, D) raw text embeddings at the aligned positions."""
    target_mask: Tensor
    """(B, L) bool."""
    weights: Tensor
    """(B,) float32: what each pair counts."""

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        if self.inputs.device == device:
            return self
        tensors = (self.inputs, self.input_mask, self.targets, self.target_mask, self.weights)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


@dataclass(frozen=True)
class Held:
    """Aligned pairs."""

    keys: tuple[str, ...]
    """Keys of the pairs."""
    inputs: Rows
    """VL sides."""
    targets: Rows
    """Text sides at the aligned positions."""
    weights: Tensor
    """(N,) float32: what each pair counts."""

    @classmethod
    def load(
        cls,
        pairs: Iterable[Pair],
        alignment: Alignment,
        *,
        keeps_positions: bool,
        width: int,
        dtype: torch.dtype = torch.bfloat16,
        on_disk: bool = False,
        folder: str | None = None,
    ) -> "Held":
        """Read, align and pack pairs.

        Args:
            pairs: to read to the end; one is held at a time beside what is packed.
            alignment: of the two sides.
            keeps_positions: whether the network's output i belongs to input i.
            width: D.
            dtype: of what is held; bfloat16 as on disk, float32 in exact tests.
            on_disk: pack into a local file instead of memory.
            folder: for that file.

        Raises:
            UsageError: a pair with NaN or infinite values, which would poison all statistics; names it.
        """
        keys: list[str] = []
        weights: list[float] = []
        stores: list[list[Tensor] | Packed] = [
            Packed(width, dtype, folder) if on_disk else [] for _ in range(2)
        ]
        for pair in pairs:
            _check_finite(pair)
            keys.append(pair.key)
            weights.append(pair.weight)
            sides = alignment.training_sides(pair.vl, pair.text, keeps_positions=keeps_positions)
            for side, store in zip(sides, stores, strict=True):
                store.append(side.to(dtype))
        rows: list[Rows] = [
            store.closed() if isinstance(store, Packed) else Ragged.of(store, width) for store in stores
        ]
        inputs, targets = rows
        return cls(tuple(keys), inputs, targets, torch.tensor(weights))

    def to(self, device: torch.device) -> "Held":
        """The same on a device, where it is in memory; what lies on disk stays there."""
        if not isinstance(self.inputs, Ragged) or not isinstance(self.targets, Ragged):
            return self
        return Held(self.keys, self.inputs.to(device), self.targets.to(device), self.weights.to(device))

    @property
    def bytes(self) -> int:
        """Bytes of memory that both sides take."""
        return sum(side.bytes for side in (self.inputs, self.targets) if isinstance(side, Ragged))

    def batch(self, indices: Tensor) -> Batch:
        """The batch of these pairs; (B,) int64 indices, on the CPU."""
        weights = self.weights[indices.to(self.weights.device, non_blocking=True)]
        return Batch(*self.inputs.gather(indices), *self.targets.gather(indices), weights)

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        """The batches of these parts in order; what lies on disk is read ahead by a thread."""
        if not isinstance(self.inputs, Packed):
            yield from map(self.batch, parts)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="pairs") as reader:
            coming = [reader.submit(self.batch, part) for part in parts[:BATCHES_AHEAD]]
            for part in parts[BATCHES_AHEAD:]:
                batch = coming.pop(0).result()
                coming.append(reader.submit(self.batch, part))
                yield batch
            yield from (batch.result() for batch in coming)


def statistics_of(rows: Rows, width: int) -> RunningStatistics:
    """Per-dimension statistics over all positions, in float64, added up where the rows are."""
    statistics = RunningStatistics(width)
    for block in rows.blocks():
        values = block.double()
        mean = values.mean(0)
        part = RunningStatistics(width)
        part.count, part.mean = len(values), mean.cpu().numpy()
        part.m2 = (values - mean).square_().sum(0).cpu().numpy()
        statistics.merge(part)
    return statistics


def _check_finite(pair: Pair) -> None:
    for side, tokens in (("VL", pair.vl), ("text", pair.text)):
        if not tokens.isfinite().all():
            raise UsageError(
                f"pair {pair.key}: NaN or infinite values on the {side} side; run verify on the data"
            )


def room_in_memory() -> float:
    """Bytes of memory that are free for this machine's or container's processes; infinite where nothing tells."""
    room = [float("inf")]
    with suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        room.append(1024 * float(lines["MemAvailable"].split()[0]))
    with suppress(OSError, ValueError):  # a container's own limit; "max" where there is none
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current"))
        room.append(float(limit) - float(used))
    return min(room)
