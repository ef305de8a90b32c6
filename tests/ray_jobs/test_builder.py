"""A builder, without Ray: what goes wrong before its first sample."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ray_jobs.building import builder as module
from ray_jobs.building.builder import ShardBuilder
from ray_jobs.building.monitor import Monitor
from ray_jobs.building.shard_output import Reader
from shards.errors import StorageError
from shards.format.commit import NOBODY
from shards.format.plan import PlannedSample, PlannedShard


def a_shard(index):
    sample = PlannedSample(f"{index}", 0, "", "", "", "", 0, "train", index, 0)
    return PlannedShard("train", index, (sample,))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nTried to"), RuntimeError("no GPU")]
)
def test_models_that_find_no_room_are_one_line_with_the_device(error):
    def maker():
        raise error

    builder = object.__new__(ShardBuilder)
    builder._spec, builder._name, builder._device = SimpleNamespace(maker=maker), "host:7", "GPU 1 (A)"
    with pytest.raises(StorageError) as told:
        _ = builder._maker
    reason = " ".join(str(error).split())
    assert str(told.value) == f"the models cannot be loaded on host:7, GPU 1 (A): {reason}"


class Called:
    """A monitor as builders call it, without Ray."""

    def __init__(self, monitor):
        self._monitor = monitor

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self._monitor, name))


def test_a_builder_that_cannot_load_keeps_its_ticket_until_the_others_are_done(monkeypatch):
    """One that gave it back would take, and waste, all the others within seconds."""
    loads, waits = [], []
    monitor = Monitor([a_shard(0), a_shard(1)], 1.0, 99, builders=2)
    monitor.begin("sound", 7)
    here = SimpleNamespace(current_actor=None)
    monkeypatch.setattr(module, "ray", SimpleNamespace(get=lambda x: x, get_runtime_context=lambda: here))

    def others_go_on(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            monitor.end(7, done=True)
            assert monitor.begin("sound", 8).shard.name == "train-000001"
            monitor.end(8, done=True)

    monkeypatch.setattr(module.time, "sleep", others_go_on)

    def maker():
        loads.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    builder = object.__new__(ShardBuilder)
    builder._spec, builder._name, builder._device = SimpleNamespace(maker=maker), "host:7", "GPU 1 (A)"
    builder._monitor, builder._models, builder._left_out = Called(monitor), threading.Lock(), False
    builder._itself = NOBODY
    monkeypatch.setattr(builder, "_make", lambda *_: builder._maker, raising=False)
    rows = [builder({"ticket": np.array([ticket])}) for ticket in (0, 1)]
    assert rows == [
        {"name": ["train-000001"], "outcome": ["nothing"]},
        {"name": [""], "outcome": ["nothing"]},
    ]
    assert (len(loads), len(waits)) == (1, 2)
    assert monitor.snapshot().stopping == ""


def test_a_reader_that_cannot_load_is_one_line():
    def load():
        raise RuntimeError("CUDA error:\nout of memory")

    reader = object.__new__(Reader)
    reader._load = load
    with pytest.raises(
        StorageError, match=r"a reader's model cannot be loaded on .*: CUDA error: out of memory"
    ):
        _ = reader._reader
