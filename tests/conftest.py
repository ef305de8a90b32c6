"""Fixtures that several rooms use."""

import os
from collections import Counter
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from s3_support import fault_proxy, given, moto, rclone, strict, strict_tls
from shards.dataset.dataset import Dataset
from shards.format.plan import Plan
from shards.stores.local import open_storage
from tests_support import SETTINGS, a_plan, commit_shard

# Each server is started once, whichever rooms use it.
__all__ = ["fault_proxy", "given", "make_dataset", "moto", "rclone", "strict", "strict_tls"]

# Jobs that run in this process join a head that wants a token, and Ray reads this when it is imported.
os.environ.setdefault("RAY_AUTH_MODE", "token")


# Files whose tests share a Ray head and what was built on it.
ON_ONE_HEAD = (
    "test_build",
    "test_compare",
    "test_compare_inputs",
    "test_evaluate",
    "test_extract",
    "test_import",
    "test_train",
)


def _on_one_head(path):
    return path.parent.name == "ray_jobs" and path.stem in ON_ONE_HEAD


class _Parts(LoadScopeScheduling):
    """A file is one part, whose tests share what its fixtures made.

    So are all files on one Ray head, but where the slow tests run too: they take longer than everything else.
    """

    def _split_scope(self, nodeid):
        path = Path(nodeid.split("::")[0])
        together = "not slow" in self.config.option.markexpr and _on_one_head(path)
        return "on one head" if together else str(path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """How `make test` divides the tests; xdist's own groups are without effect under pytest 9.2."""
    config.option.loadscopereorder = False
    return _Parts(config, log)


def pytest_collection_modifyitems(items):
    """What takes longest goes first, so that no worker begins it when the other one is done; then the longest files."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (not _on_one_head(item.path), -tests[item.path]))


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory):
    """A folder that all processes of this run have in common, for what is made in it whole or not at all."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "common"
    folder.mkdir(exist_ok=True)
    return folder


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
