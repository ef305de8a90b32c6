"""Fixtures that several rooms use."""

import pytest

from shards.dataset import Dataset
from shards.plan import Plan
from shards.storage import open_storage
from tests_support import SETTINGS, a_plan, commit_shard


@pytest.fixture
def make_dataset(tmp_path):
    """Make a complete small dataset under a root: `make_dataset(root=…, plan=…)` gives dataset and plan."""

    def make(root: str | None = None, plan: Plan | None = None, settings=SETTINGS, shards=None):
        plan = plan or a_plan()
        dataset = Dataset.create_or_open(
            open_storage(root or str(tmp_path / "data")), settings, {"numpy": "2"}
        )
        dataset.grow(len(plan), append=True)
        for planned in plan.shards if shards is None else shards:
            commit_shard(dataset, planned, tmp_path / "spool")
        dataset.write_manifest()
        return dataset, plan

    return make
