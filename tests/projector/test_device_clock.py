"""Busy seconds come from the device: they fall behind the wall's when it has nothing to do."""

from contextlib import suppress

import pytest
import torch
from torch import nn

from projector.making import device_clock
from projector.making.device_clock import DeviceClock


class StandInDevice:
    """Takes work while it is still at earlier work, as a GPU does; its seconds pass only here."""

    def __init__(self):
        self.now = self.free_at = 0.0

    def take(self, seconds):
        self.free_at = max(self.now, self.free_at) + seconds

    def wait(self):
        self.now = max(self.now, self.free_at)

    def event(self):
        return StandInEvent(self)


class StandInEvent:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.at = max(self.device.now, self.device.free_at)

    def synchronize(self):
        self.device.now = max(self.device.now, self.at)

    def query(self):
        return self.device.now >= self.at

    def elapsed_time(self, other):
        return 1000 * (other.at - self.at)


class Model(nn.Module):
    def __init__(self, device):
        super().__init__()
        self.device = device

    def forward(self, seconds):
        self.device.take(seconds)


@pytest.fixture
def device():
    return StandInDevice()


@pytest.fixture
def models(device):
    return [Model(device), Model(device)]


@pytest.mark.parametrize(("cpu_seconds", "share"), [(0.0, 1.0), (1.0, 0.8), (4.0, 0.5)])
def test_the_share_falls_when_the_device_waits_for_the_cpu(device, models, cpu_seconds, share):
    def work():
        for model in models:
            model(2.0)
            device.wait()
            device.now += cpu_seconds / 2
        return "made"

    found, busy = DeviceClock(models, device.event).timed(work)
    assert (found, busy) == ("made", pytest.approx(4.0))
    assert busy / device.now == pytest.approx(share)


def test_work_that_was_given_ahead_is_waited_for_and_counts_once(device, models):
    clock = DeviceClock(models, device.event)
    assert clock.timed(lambda: [model(3.0) for model in models])[1] == pytest.approx(6.0)
    assert device.now == pytest.approx(6.0)
    assert clock.timed(lambda: None)[1] == 0.0


def test_the_cpu_is_one_piece_of_work_ahead_and_passes_count_once_they_ended(device, models):
    clock = DeviceClock(models, device.event, ahead=True)

    def work():
        for model in models:
            model(3.0)
        device.now += 1.0

    assert clock.timed(work)[1] == 0.0
    assert device.now == pytest.approx(1.0), "nothing was waited for"
    assert clock.timed(work)[1] == pytest.approx(6.0), "those of the first piece"
    assert (device.now, device.free_at) == (pytest.approx(6.0), pytest.approx(12.0))
    assert clock.timed(lambda: None)[1] == pytest.approx(6.0)
    assert device.now == pytest.approx(12.0)
    assert clock.timed(lambda: None)[1] == 0.0


def test_a_pass_that_failed_is_not_counted(device):
    model = nn.Linear(2, 2)
    clock = DeviceClock([model], device.event)
    with pytest.raises(RuntimeError, match="shapes"):
        clock.timed(lambda: model(torch.ones(1, 3)))
    assert clock.timed(lambda: model(torch.ones(1, 2)))[1] == 0.0


def test_a_batch_that_fails_and_is_made_one_by_one_counts_what_was_made(device):
    class Limited(Model):
        def forward(self, count):
            super().forward(float(count))
            if count > 1:
                raise torch.OutOfMemoryError

    model = Limited(device)

    def work():
        with suppress(torch.OutOfMemoryError):
            model(2)
        device.now += 5.0
        return [model(1), model(1)]

    assert DeviceClock([model], device.event).timed(work)[1] == pytest.approx(2.0)


def test_on_a_cpu_all_work_counts(models, monkeypatch):
    seconds = iter([10.0, 13.0])
    monkeypatch.setattr(device_clock.time, "monotonic", lambda: next(seconds))
    assert DeviceClock(models).timed(lambda: "made") == ("made", 3.0)
