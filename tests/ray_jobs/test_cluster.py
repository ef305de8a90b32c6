"""Clusters that come and go beside and under a running build."""

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from ray_support import ROOT, build_command, bytes_of
from shards.verify import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def assert_same(output, undisturbed):
    assert bytes_of(output) == bytes_of(undisturbed)
    findings = verify(str(output))
    assert (findings.problems, findings.samples, findings.complete) == ([], 24, True)


def processes_of(session):
    """Pids of every process in a session: of a job started in one, with its workers and its cluster."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                found.append(int(folder.name))
        except ProcessLookupError:
            continue
    return found


def kill(leader):
    """SIGKILL to a whole session, as a power cut would."""
    for pid in processes_of(leader.pid):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def session(command, environment):
    """A job in a session of its own, all of which is killed in the end."""
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, start_new_session=True, **quiet) as leader:
        try:
            yield leader
        finally:
            kill(leader)


def wait_until(condition, process, seconds=120):
    """Wait for something that a running process is to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "ended before"
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def test_two_local_builds_have_a_cluster_each(environment, undisturbed, tmp_path):
    hanging = tmp_path / "hanging"
    hook = {"SHARDS_CRASH_AT": "mid-shard", "SHARDS_CRASH_HOW": "hang", "SHARDS_CRASH_ONCE": str(hanging)}
    with session(build_command(tmp_path / "first", actors=1), environment | hook) as first:
        wait_until(hanging.exists, first)
        with session(build_command(tmp_path / "second"), environment) as second:
            wait_until(lambda: list((tmp_path / "second").glob("_commit/*.json")), second)
            names = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_of(first.pid))
            assert "gcs_server" in names
            assert "raylet" in names
            kill(first)
            assert second.wait(timeout=120) == 0
    assert_same(tmp_path / "second", undisturbed)
