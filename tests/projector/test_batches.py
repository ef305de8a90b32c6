"""A GPU that is broken for good blames no sample; a sample that fails alone still does."""

import pytest

from projector.making import batching as batches
from projector.making.batching import BatchMaker
from projector.making.broken_device import DeviceBrokenError
from shards.format.sample import Failure


class FailsAt(BatchMaker[int, int]):
    """Makes numbers, and fails at one of them."""

    def __init__(self, poison):
        super().__init__(4)
        self.poison = poison

    def _make(self, batch):
        if self.poison in batch:
            raise RuntimeError("CUDA error:\nan illegal memory access was encountered")
        return list(batch)


def test_a_broken_device_is_raised_and_no_item_is_blamed(monkeypatch):
    monkeypatch.setattr(batches, "device_is_broken", lambda: True)
    with pytest.raises(DeviceBrokenError, match="CUDA error: an illegal memory access was encountered"):
        FailsAt(2).make([1, 2, 3])


def test_on_a_sound_device_the_item_fails_alone():
    made = FailsAt(2).make([1, 2, 3])
    assert [made[0], made[2]] == [1, 3]
    assert isinstance(made[1], Failure)
