"""A builder, without Ray: what goes wrong before its first sample."""

from types import SimpleNamespace

import pytest
import torch

from ray_jobs.building.builder import ShardBuilder
from shards.errors import StorageError


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
