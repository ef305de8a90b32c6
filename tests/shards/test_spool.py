"""Room for shards under construction: checked, one's own, and cleaned of what the dead left."""

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest

from shards.errors import UsageError
from shards.spool import PREFIX, Spool

HOLD = """
import sys, time
from pathlib import Path
from shards.spool import Spool
with Spool(Path(sys.argv[1])).workspace("train-000000") as folder:
    (folder / "half.tar").write_bytes(bytes(1000))
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A living process with a workspace in the spool."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def workspaces(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(PREFIX)]


def test_a_workspace_is_ones_own_and_goes_in_the_end(tmp_path):
    spool = Spool(tmp_path / "made" / "for it")
    with spool.workspace("train-000000") as one, spool.workspace("train-000000") as two:
        assert one != two
        (one / "file").touch()
        assert list(two.iterdir()) == []
    assert list(spool.folder.iterdir()) == []


def test_it_goes_after_an_exception_too(tmp_path):
    def fail():
        with Spool(tmp_path).workspace("train-000000") as folder:
            (folder / "file").touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert workspaces(tmp_path) == []


def test_what_a_living_process_has_stays(tmp_path, holder):
    Spool(tmp_path)
    assert len(workspaces(tmp_path)) == 1


def test_what_a_killed_process_left_goes_at_the_next_start(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert len(workspaces(tmp_path)) == 1
    Spool(tmp_path)
    assert workspaces(tmp_path) == []


def test_a_pid_given_to_another_process_since_does_not_protect_it(tmp_path):
    left = tmp_path / f"{PREFIX}{os.getpid()}-1-train-000000-abc"
    left.mkdir()
    Spool(tmp_path)
    assert not left.exists()


def test_what_is_not_the_spools_own_stays(tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / f"{PREFIX}by-hand").mkdir()
    Spool(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"holiday", f"{PREFIX}by-hand"}


def test_too_little_room_is_told_before_work_starts(tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 0, 5_000_000))
    spool = Spool(tmp_path)
    spool.check_room(5_000_000)
    with pytest.raises(UsageError, match=rf"build\.spool = '{tmp_path}': 5 MB free, 7 MB needed"):
        spool.check_room(7_000_000)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"build\.spool = '.*/file/below': cannot be made"):
        Spool(tmp_path / "file" / "below")
