"""Fixtures that several rooms use."""

from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from shards.dataset.dataset import Dataset
from shards.format.plan import Plan
from shards.stores.local import open_storage
from tests_support import SETTINGS, a_plan, commit_shard


class _Parts(LoadScopeScheduling):
    """A file with Ray is one part, whose tests share what its fixtures made; every other test is a part by itself."""

    def _split_scope(self, nodeid):
        path = Path(nodeid.split("::")[0])
        return path.stem if path.parent.name == "ray_jobs" else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """How `make test` divides the tests; xdist's own groups are without effect under pytest 9.2."""
    return _Parts(config, log)


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
