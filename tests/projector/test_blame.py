"""Whatever the device may be at while a builder waits is named at work: a death is blamed on no other sample."""

import pytest

from projector.making.batching import BatchMaker
from projector.making.device_clock import DeviceClock
from projector.making.shard_maker import FusedMaker, InOneStage, StagedMaker
from shards.format.plan import make_plan
from shards.prompts.prompt import Prompt

COUNT, TOGETHER = 24, 4


class FakeDevice:
    """A queue of what it was given, and how much of it is surely done."""

    def __init__(self):
        self.given, self.done = [], 0

    def event(self):
        return FakeMark(self)


class FakeMark:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.at = len(self.device.given)

    def synchronize(self):
        self.device.done = max(self.device.done, self.at)

    def query(self):
        return self.device.done >= self.at

    def elapsed_time(self, other):
        return 0.0


class FakeMaker(BatchMaker):
    has_lengths, notes = True, ()

    def __init__(self, device):
        super().__init__(TOGETHER)
        self.device = device

    def length(self, planned):
        return int(planned.caption.split()[-1])

    def encode_ahead(self, planned):
        self.device.given.append({sample.id for sample in planned})

    def _make(self, batch):
        self.device.given.append({sample.id for sample in batch})
        return list(batch)


MAKERS = {
    "fused": lambda device: FusedMaker(FakeMaker(device), FakeMaker(device)),
    "fused, in turn": lambda device: FusedMaker(FakeMaker(device), FakeMaker(device), in_turn=True),
    "staged": lambda device: StagedMaker(FakeMaker(device), TOGETHER),
    "in one stage": lambda device: InOneStage(FakeMaker(device)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("suspects", [0, 1])
def test_what_the_device_is_at_is_named(make, suspects):
    device = FakeDevice()
    maker = make(device)
    maker._clock = DeviceClock((), device.event, ahead=True)
    prompts = [Prompt(f"caption {number} {number * 7 % 3}") for number in range(COUNT)]
    plan = make_plan(prompts, seed=1, val_fraction=0, samples_per_shard=50, segments=(COUNT,))
    planned = plan.shards[0].samples
    finished = []
    for step in maker.steps(planned, {sample.id for sample in planned[:suspects]}, {}):
        under_way = device.done
        finished += maker.timed(step.run)[0]
        waited_for = set().union(*device.given[under_way:])
        assert waited_for <= {sample.id for sample in step.samples}
    assert finished == list(planned)
    assert device.done == len(device.given)
