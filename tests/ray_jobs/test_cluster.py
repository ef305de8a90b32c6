"""Clusters that come and go beside and under a running build."""

import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError, UserCodeException

from ray_jobs.cluster.connect import plain_error
from ray_support import RAY, ROOT, build_command, bytes_of, kill, processes_of, stand_in_command
from shards.errors import OptionError, StorageError
from shards.tools.verify import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def assert_same(output, undisturbed):
    assert bytes_of(output) == bytes_of(undisturbed)
    findings = verify(str(output))
    assert (findings.problems, findings.samples, findings.complete) == ([], 24, True)


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


def test_two_local_builds_have_a_cluster_each(environment, undisturbed_stand_in, tmp_path):
    hanging = tmp_path / "hanging"
    hook = {"SHARDS_CRASH_AT": "mid-shard", "SHARDS_CRASH_HOW": "hang", "SHARDS_CRASH_ONCE": str(hanging)}
    with session(stand_in_command(tmp_path / "first", actors=1), environment | hook) as first:
        wait_until(hanging.exists, first)
        with session(stand_in_command(tmp_path / "second"), environment) as second:
            wait_until(lambda: list((tmp_path / "second").glob("_commit/*.json")), second)
            names = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_of(first.pid))
            assert "gcs_server" in names
            assert "raylet" in names
            kill(first)
            assert second.wait(timeout=120) == 0
    assert_same(tmp_path / "second", undisturbed_stand_in)


# A driver on a head without a GPU; the hook is in the environment of one node alone, so only a builder there hangs
# mid-shard, and what is committed while it does was made on the node that joined.
NODES_COME_AND_GO = """
import os, subprocess, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from ray_jobs.__main__ import main
from ray_jobs.building.run import start_monitor
from ray_jobs.cli.run_options import BuildOptions

cluster, joined = Cluster(), []
ray_command, hanging, commits = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
cluster.add_node(num_cpus=1, include_dashboard=False)
lost = [cluster.add_node(num_cpus=1) for _ in range(2)]
hook = {"SHARDS_CRASH_AT": "mid-shard", "SHARDS_CRASH_HOW": "hang", "SHARDS_CRASH_ONCE": str(hanging)}
os.environ |= hook
lost.append(cluster.add_node(num_cpus=1, num_gpus=1))
for name in hook:
    del os.environ[name]
ray.init(cluster.address, log_to_driver=False)

# Ray places an actor that needs nothing anywhere; several, so that chance cannot put all in the right place.
monitors = [start_monitor([], BuildOptions(), "build") for _ in range(4)]
ray.get([monitor.snapshot.remote() for monitor in monitors])
places = {actor["Address"]["NodeID"] for actor in ray._private.state.actors().values()}
assert places == {ray.get_runtime_context().get_node_id()}, "a lost node would end the run"
del monitors

def change():
    while not hanging.exists():
        time.sleep(0.05)
    start = [ray_command, "start", "--block", f"--address={cluster.address}", "--num-cpus=1", "--num-gpus=1"]
    joined.append(subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    while len(list(commits.glob("*.json"))) < 3:
        time.sleep(0.05)
    print("built by the new node", flush=True)
    for node in lost:
        cluster.remove_node(node, allow_graceful=False)
    print("lost", flush=True)

thread = threading.Thread(target=change, daemon=True)
thread.start()
code = main(sys.argv[4:])
thread.join(timeout=30)
ray.shutdown()
for process in joined:
    process.kill()
cluster.shutdown()
raise SystemExit(code)
"""


def test_nodes_that_join_are_used_and_lost_ones_need_no_second_run(environment, undisturbed, tmp_path):
    data = tmp_path / "data"
    build = build_command(data, dtype="float32")[3:]  # GPUs that are only declared would turn it to bfloat16
    done = run_script(environment, NODES_COME_AND_GO, RAY, tmp_path / "hanging", data / "_commit", *build)
    assert "4 nodes, 4 CPUs, 1 GPUs" in done.stdout
    assert {"built by the new node", "lost"} <= set(done.stdout.splitlines())
    assert_same(data, undisturbed)


def run_script(environment, script, *words):
    """Run a driver that makes its own `Cluster`, to a good end."""
    # `Cluster` records its address as `ray start` does: not where the other tests would look for a cluster.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, words)],
            env=environment | {"RAY_TMPDIR": folder, "RAY_raylet_start_wait_time_s": "120"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_cluster_that_dies_under_a_job_is_said_in_one_line(environment, name):
    script = (
        "import os, signal, subprocess, time\n"
        "from ray_jobs.cluster import connect\n"
        "connect.HEAD_SECONDS = 3\n"
        "with connect.connected():\n"
        f"    pids = subprocess.check_output(['pgrep', '-P', str(os.getpid()), '-f', '/{name}'])\n"
        "    os.kill(int(pids.split()[0]), signal.SIGKILL)\n"
        "    time.sleep(50)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    who = {"raylet": "this node's raylet", "gcs_server": "the cluster's head"}[name]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert who in line
    assert "run it again to go on" in line
    assert "Traceback" not in done.stderr


def test_what_ray_says_of_a_dead_actor_is_one_line():
    error = plain_error(UserCodeException("The actor died.\n\tclass_name: Monitor\n"))
    assert isinstance(error, StorageError)
    assert (
        str(error)
        == "a worker failed: UserCodeException: The actor died. class_name: Monitor; run it again to go on"
    )


def test_an_error_of_ours_keeps_its_class_and_words_on_its_way_out_of_a_worker():
    raised = RayTaskError("f", "Traceback\n", OptionError("samples = 0: too few"), "python", 1, "127.0.0.1")
    for error in (raised, raised.as_instanceof_cause()):  # ray.get raises the second one
        ours = plain_error(error)
        assert type(ours) is OptionError
        assert str(ours) == "samples = 0: too few"
