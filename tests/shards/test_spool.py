"""Room for shards under construction: checked, one's own, and cleaned of what the dead left."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import namedtuple

import pytest

from shards.errors import StorageError, UsageError
from shards.stores.spool import PREFIX, Spool

HOLD = """
import sys, time
from pathlib import Path
from shards.stores.spool import Spool
with Spool(Path(sys.argv[1])).workspace("train-000000") as folder:
    (folder / "half.tar").write_bytes(bytes(1000))
    print("ready", flush=True)
    time.sleep(600)
"""

CROWD = """
import sys
from pathlib import Path
from shards.stores.spool import Spool
for turn in range(300):
    with Spool(Path(sys.argv[1])).workspace("train-000000") as folder:
        (folder / "half.tar").touch()
        Spool(Path(sys.argv[1]))
        assert (folder / "half.tar").exists(), turn
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
    # Nothing but the lock speaks for it: in a container of its own, its process id would be unknown here.
    Spool(tmp_path)
    (left,) = workspaces(tmp_path)
    assert (tmp_path / left / "half.tar").stat().st_size == 1000
    assert str(holder.pid) not in left


def test_what_this_process_has_stays(tmp_path):
    with Spool(tmp_path).workspace("train-000000") as folder:
        Spool(tmp_path)
        assert folder.is_dir()


def test_what_a_killed_process_left_goes_at_the_next_start(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert len(workspaces(tmp_path)) == 1
    Spool(tmp_path)
    assert workspaces(tmp_path) == []


def test_many_that_clean_and_begin_at_once_take_nothing_from_each_other(tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(4)
    ]
    said = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, said
    assert workspaces(tmp_path) == []


def test_a_workspace_taken_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    spool, lock = Spool(tmp_path), fcntl.flock
    taken = []

    def lock_too_late(handle, how):
        monkeypatch.setattr(fcntl, "flock", lock)
        taken.extend(tmp_path.iterdir())
        Spool(tmp_path)
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", lock_too_late)
    with spool.workspace("train-000000") as folder:
        assert [folder] == list(tmp_path.iterdir())
        assert len(taken) == 1
        assert taken != [folder]


def test_without_locks_nothing_is_taken_for_a_leftover(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Spool(tmp_path).workspace("train-000000") as folder:
        Spool(tmp_path)
        assert folder.is_dir()
    assert workspaces(tmp_path) == []


def test_no_lock_stays_open(tmp_path):
    before = os.listdir("/proc/self/fd")
    (tmp_path / f"{PREFIX}left").mkdir()
    with Spool(tmp_path).workspace("train-000000"):
        Spool(tmp_path)
    assert os.listdir("/proc/self/fd") == before


def test_what_is_not_the_spools_own_stays(tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "holiday")
    (tmp_path / f"{PREFIX}left").mkdir()
    Spool(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"holiday", f"{PREFIX}file", f"{PREFIX}link"}


def test_too_little_room_is_told_before_work_starts(tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 0, 5_000_000))
    spool = Spool(tmp_path)
    spool.check_room(5_000_000)
    with pytest.raises(UsageError, match=rf"spool folder '{tmp_path}': 5\.0 MB free, 7\.0 MB needed"):
        spool.check_room(7_000_000)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"spool folder '.*/file/below': cannot be made: Not a directory"):
        Spool(tmp_path / "file" / "below")


def test_a_workspace_that_cannot_be_made_is_named(tmp_path):
    spool = Spool(tmp_path / "spool")
    spool.folder.rmdir()
    with pytest.raises(
        StorageError, match=r"cannot write .*/spool/shard-workspace-train-000000: No such file"
    ):
        spool.workspace("train-000000").__enter__()


def test_the_shared_spool_is_this_users_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    mine = tmp_path / f"z-image-projector-spool-{os.getuid()}"
    assert Spool.at(None).folder == mine
    assert mine.stat().st_mode & 0o777 == 0o700
    mine.chmod(0o777)
    Spool.at(None)
    assert mine.stat().st_mode & 0o777 == 0o700


def test_a_shared_spool_that_somebody_else_made_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / f"z-image-projector-spool-{os.getuid()}"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="who could replace what is written there"):
        Spool.at(None)
    link.unlink()
    Spool.at(None)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (tmp_path / "z-image-projector-spool-12345").mkdir()
    with pytest.raises(UsageError, match=f"made by user {link.stat().st_uid}"):
        Spool.at(None)
