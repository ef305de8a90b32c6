"""Copies from a device begin at once and are waited for where a value is needed; a CPU has nothing to wait for."""

import ml_dtypes
import numpy as np
import pytest
import torch

from projector.inference import copies
from projector.inference.copies import Arriving, as_array, onto
from projector.making.batching import BatchMaker
from projector.making.device_clock import DeviceClock
from projector.making.shard_maker import InOneStage
from shards.format.plan import make_plan
from shards.prompts.prompt import Prompt


class FakeEvent:
    """Counts how often it is waited for."""

    def __init__(self):
        self.waited = 0

    def synchronize(self):
        self.waited += 1


@pytest.fixture
def event(monkeypatch):
    """What a device would be waited for with."""
    fake = FakeEvent()
    monkeypatch.setattr(copies, "_event", lambda device: fake)
    return fake


def test_only_what_comes_from_the_device_is_waited_for(event):
    here = np.arange(3, dtype=np.uint8)
    arrays = Arriving({"kind": here}, {"states": torch.tensor([[1.0, 2.0]])})
    assert (list(arrays), len(arrays), "states" in arrays) == (["kind", "states"], 2, True)
    assert arrays["kind"] is here
    with pytest.raises(KeyError):
        arrays["others"]
    assert event.waited == 0
    assert arrays["states"].dtype == ml_dtypes.bfloat16
    assert event.waited == 1


def test_what_arrives_is_what_was_there_when_the_copy_began(event):
    states = torch.randn(5, 7)
    arrays = Arriving(
        {}, {"float32": states, "bfloat16": states.bfloat16(), "levels": states.to(torch.uint8)}
    )
    for name, expected in (("float32", states), ("bfloat16", states), ("levels", states.to(torch.uint8))):
        assert arrays[name].tobytes() == as_array(expected).tobytes()
    assert as_array(states).tobytes() == states.bfloat16().view(torch.uint16).numpy().tobytes()
    assert np.array_equal(arrays["levels"], states.to(torch.uint8).numpy())


def test_on_a_cpu_nothing_is_waited_for_and_copied():
    values = torch.arange(4)
    assert onto(torch.device("cpu"), values) is values
    assert Arriving({}, {"states": torch.ones(2, 2)})._arrived is None
    assert len(Arriving({"kind": np.ones(1, np.uint8)}, {})) == 1


class FakeDevice:
    """Remembers what it was given and what was waited for."""

    def __init__(self):
        self.given, self.log = 0, []

    def event(self):
        return FakeMark(self)


class FakeMark:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.at = self.device.given

    def synchronize(self):
        self.device.log.append(f"wait for {self.at}")

    def query(self):
        return True

    def elapsed_time(self, other):
        return 0.0


class FakeMaker(BatchMaker):
    def __init__(self, device):
        super().__init__(1)
        self.device = device

    def _make(self, batch):
        self.device.given += 1
        self.device.log.append(f"give {self.device.given}")
        return list(batch)


@pytest.mark.parametrize(
    ("suspects", "expected"),
    [
        (0, "give 1, give 2, wait for 1, give 3, wait for 2, wait for 3"),
        # Where it matters which one kills, the device is never at more than one.
        (1, "give 1, wait for 1, give 2, wait for 1, wait for 2, give 3, wait for 2, wait for 3"),
    ],
)
def test_the_cpu_is_one_step_ahead_unless_it_matters_which_one_kills(suspects, expected):
    device = FakeDevice()
    maker = InOneStage(FakeMaker(device))
    maker._clock = DeviceClock((), device.event, ahead=True)
    prompts = [Prompt(f"caption {number}") for number in range(3)]
    planned = (
        make_plan(prompts, seed=1, val_fraction=0, samples_per_shard=50, segments=(3,)).shards[0].samples
    )
    made: list[object] = []
    for step in maker.steps(planned, {sample.id for sample in planned[:suspects]}, {}):
        assert len(step.samples) <= (1 if suspects else 2)
        made += maker.timed(step.run)[0]
    assert made == list(planned)
    assert ", ".join(device.log) == expected
