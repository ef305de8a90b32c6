"""The judge of the chaos campaign sees what the campaign must never find; `benchmarks/chaos.py` is the campaign."""

from collections import Counter

import chaos
import pytest

from shards.stores.local import LocalStorage
from tests_support import a_plan


@pytest.fixture
def written(tmp_path):
    """A finished dataset: its plan, its root, its tars as they should be, and how to list all its files."""
    plan, root = a_plan(8, 4), tmp_path / "data"
    storage = LocalStorage(str(root))
    chaos.write_all(lambda: storage, plan, tmp_path / "spool", 0)

    def files():
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}

    return plan, root, chaos.contents(storage, plan), files


def judge(written):
    plan, root, sound, files = written
    return +chaos.judged(LocalStorage(str(root)), plan, sound, files)


def test_a_sound_dataset_has_nothing_wrong(written):
    assert judge(written) == Counter()


def test_a_lost_tar_a_hidden_file_and_a_stranger_are_seen(written):
    plan, root, _, _ = written
    first = plan.shards[0]
    (root / f"{first.split}/pairs-{first.index:06d}.tar").unlink()
    (root / "stray").write_bytes(b"x")
    found = judge(written)
    assert found["lost"] == len(first.samples)
    assert found["other bytes"] == 1
    assert found["invisible files"] == 1
    assert found["problems of verify"] >= 2


def test_other_bytes_are_seen(written):
    plan, root, _, _ = written
    first = plan.shards[0]
    tar = root / f"{first.split}/pairs-{first.index:06d}.tar"
    tar.write_bytes(tar.read_bytes() + bytes(512))
    assert judge(written)["other bytes"] == 1
