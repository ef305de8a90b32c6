"""Builds as users start them, each in a process of its own; tiny pictures keep them to seconds."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from projector.models.resolve import CACHE_VARIABLE, resolve_models
from ray_support import CREDENTIALS, RAY, ROOT, build_command, kill, with_workers


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Environment of the processes under test: the tiny models are made once, and no cluster of the user is used.

    A job in this environment starts a cluster of its own.
    """
    cache = tmp_path_factory.mktemp("cache")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SHARDS_"))}
    # Ray looks here for the cluster that `ray start` left; its sockets' paths may not pass 107 characters.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    environment = kept | {CACHE_VARIABLE: str(cache), "PYTHONWARNINGS": "ignore", "RAY_TMPDIR": folder}
    # Ray's workers give way to every other process; beside tests that compute they would hardly run.
    environment |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ[CACHE_VARIABLE] = str(cache)
    resolve_models("tiny")
    yield environment
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Head:
    """A running head node.

    Attributes:
        dashboard: where jobs are submitted to, a URL.
        gcs: what RAY_ADDRESS may name, host:port.
        environment: a job in it joins this head, unasked.
    """

    dashboard: str
    gcs: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def head(environment):
    """A head node on free ports, which all jobs share that have no use for a cluster of their own."""
    # Its record must not lie where jobs with a cluster of their own look for one.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    # The agent and the client server have fixed ports of their own, which another cluster on the machine may hold.
    port, dashboard, agent, client = _free_ports(4)
    # Workers run `python` from the path: it must be the one under test.
    path = f"{Path(RAY).parent}:{environment['PATH']}"
    clients = environment | {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": folder, "PATH": path}
    # A node's credentials are in files of its own, as on machines of one's own; there are none until a test needs some.
    clients |= {name: f"{folder}/{file}" for name, file in CREDENTIALS.items()}
    # The token too: `ray start` makes none, and whether the user has one must not matter.
    clients["RAY_AUTH_TOKEN_PATH"] = f"{folder}/auth_token"
    Path(clients["RAY_AUTH_TOKEN_PATH"]).write_text(secrets.token_hex(32))
    start = [
        RAY,
        "start",
        "--head",
        "--num-cpus=2",
        "--disable-usage-stats",
        "--include-dashboard=true",
        "--block",
    ]
    ports = [f"--port={port}", f"--dashboard-port={dashboard}"]
    ports += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    process = subprocess.Popen(
        [*start, *ports],
        env=clients,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    running = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", clients)
    try:
        _wait_for(running, process)
        yield running
    finally:
        kill(process)  # asked to end, it takes half a minute
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count):
    with ExitStack() as held:  # all at once: one that is let go may be given again
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _wait_for(head, process):
    record = Path(head.environment["RAY_TMPDIR"], "ray", "ray_current_cluster")  # written last
    for _ in range(60):
        if process.poll() is not None:
            pytest.fail(f"`ray start` ended with {process.returncode}")
        listed = subprocess.run(
            [RAY, "job", "list", "--address", head.dashboard],
            env=head.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if listed.returncode == 0 and record.exists():
            return
        time.sleep(0.5)
    pytest.fail(f"no head answers at {head.dashboard}: {listed.stderr}")


def _run(command, environment):
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="session")
def run_build(head):
    """Run a build to its end on the shared head: `run_build(output, samples=…)` gives the finished process.

    `extra` is added to the environment of driver and workers.
    """

    def run(output, *, extra=None, **changes):
        environment = with_workers(head.environment, extra) if extra else head.environment
        return _run(build_command(output, **changes), environment)

    return run


@pytest.fixture(scope="session")
def build_alone(environment):
    """Run a build to its end on a cluster of its own, for what is not to pass through a shared one: secrets."""

    def run(output, *, extra=None, **changes):
        return _run(build_command(output, **changes), environment | (extra or {}))

    return run


@pytest.fixture(scope="session")
def run_job(head):
    """Run another job to its end on the shared head: `run_job("train", data=…)` gives the finished process."""

    def run(job, **options):
        words = [sys.executable, "-m", "ray_jobs", job]
        for name, value in options.items():
            words += [f"--{job}.{name}", str(value)]
        return _run(words, head.environment)

    return run


@pytest.fixture(scope="session")
def undisturbed_build(run_build, tmp_path_factory):
    """A build that nothing disturbed, made by one actor: its dataset and the finished process."""
    output = tmp_path_factory.mktemp("undisturbed") / "data"
    done = run_build(output, actors=1)
    assert done.returncode == 0, done.stderr
    return output, done


@pytest.fixture(scope="session")
def undisturbed(undisturbed_build):
    """The dataset of a build that nothing disturbed."""
    return undisturbed_build[0]
