"""Pairs held for training: in memory and packed on disk they are the same pairs."""

import os
import resource
from pathlib import Path

import pytest
import torch

from projector.data.align import Alignment
from projector.data.packed import Held, Packed, Ragged, room_in_memory, statistics_of
from projector.data.pairs import Pair

WIDTH = 16


def pairs(count):
    random = torch.Generator().manual_seed(5)
    for index in range(count):
        vl = torch.randn(3 + index % 5, WIDTH, generator=random).bfloat16()
        text = torch.randn(2 + index % 3, WIDTH, generator=random).bfloat16()
        yield Pair(f"k{index}", vl, torch.ones(len(vl), dtype=torch.uint8), text, weight=1 + index % 2)


def held(on_disk, kind="soft", dtype=torch.bfloat16, **options):
    alignment = Alignment(kind, 4)
    return Held.load(
        pairs(23), alignment, keeps_positions=True, width=WIDTH, dtype=dtype, on_disk=on_disk, **options
    )


@pytest.mark.parametrize("kind", ["soft", "pool", "mean", "per_token", "guide"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_disk_and_in_memory_are_the_same(kind, dtype):
    memory, disk = held(False, kind, dtype), held(True, kind, dtype)
    assert memory.keys == disk.keys
    parts = [torch.tensor(part) for part in ([3, 0, 22], [7], [1, 2, 3, 4, 5], [9, 9], [22, 21])]
    for ours, theirs in zip(disk.batches(parts), memory.batches(parts), strict=True):
        assert ours.input_mask.equal(theirs.input_mask)
        assert ours.target_mask.equal(theirs.target_mask)
        assert ours.weights.equal(theirs.weights)
        assert ours.inputs[ours.input_mask].equal(theirs.inputs[theirs.input_mask])
        assert ours.targets[ours.target_mask].equal(theirs.targets[theirs.target_mask])
        assert ours.inputs.isfinite().all()
    for side in ("inputs", "targets"):
        one, other = (statistics_of(getattr(pairs, side), WIDTH) for pairs in (memory, disk))
        assert (one.count, one.mean.tolist(), one.m2.tolist()) == (
            other.count,
            other.mean.tolist(),
            other.m2.tolist(),
        )


def test_nothing_is_left_of_the_file(tmp_path):
    kept = held(True, folder=str(tmp_path))
    assert isinstance(kept.inputs, Packed)
    assert list(tmp_path.iterdir()) == []
    assert kept.bytes == 0
    assert isinstance(held(False).inputs, Ragged)
    assert held(False).bytes > 0


def test_a_folder_that_is_not_there():
    with pytest.raises(OSError, match="nowhere"):
        held(True, folder="/nowhere/at/all")


def resident_bytes():
    """Memory of this process now: its high-water mark may stand higher already from tests before."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_does_not_grow_with_what_is_packed():
    """400 MB go by; in memory they would all stay."""
    block = torch.randn(4096, 1024).bfloat16()
    packed = Packed(1024, torch.bfloat16, None)
    packed.append(block)
    before = resident_bytes()
    for _ in range(50):
        packed.append(block)
    rows, mask = packed.closed().gather(torch.tensor([50, 0]))
    assert rows[mask].equal(torch.cat([block, block]))
    assert resident_bytes() - before < 100e6


def test_an_error_while_reading_ahead_arrives(monkeypatch):
    kept = held(True)
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(OSError, match="bytes early"):
        list(kept.batches([torch.tensor([1]), torch.tensor([2])]))


def test_the_room_is_a_number():
    assert room_in_memory() > 1e6
