"""Jobs on a head of the tests' own: in this process, or as users start them; tiny pictures keep them to seconds."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch

from projector.data.dataset_pairs import training_pairs
from projector.models.resolve import CACHE_VARIABLE, resolve_models
from projector.options import TrainOptions
from projector.training.loop import train
from ray_support import (
    CREDENTIALS,
    RAY,
    ROOT,
    build_command,
    build_words,
    for_workers,
    kill,
    options_of,
    run_here,
)


@pytest.fixture(scope="session")
def environment(common_folder):
    """Environment of the processes under test: the tiny models are made once, and no cluster of the user is used.

    A job in this environment starts a cluster of its own.
    """
    cache = common_folder / "cache"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SHARDS_"))}
    # Ray looks here for the cluster that `ray start` left; its sockets' paths may not pass 107 characters.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    environment = kept | {CACHE_VARIABLE: str(cache), "PYTHONWARNINGS": "ignore", "RAY_TMPDIR": folder}
    # Ray's workers give way to every other process; beside tests that compute they would hardly run.
    environment |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    # Nor would its nodes start within the 30 seconds that it gives them.
    environment |= {"RAY_raylet_start_wait_time_s": "120"}
    os.environ[CACHE_VARIABLE] = str(cache)
    resolve_models("tiny")
    yield environment
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Head:
    """A running head node.

    Attributes:
        dashboard: where jobs are submitted to, a URL; empty where there is none.
        gcs: what RAY_ADDRESS may name, host:port.
        environment: a job in it joins this head, unasked.
    """

    dashboard: str
    gcs: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def head(environment):
    """A head node on free ports, which all jobs share that have no use for a cluster of their own."""
    with _running_head(environment, dashboard=False) as running:
        yield running


@pytest.fixture(scope="session")
def head_with_dashboard(environment):
    """Another one, which jobs can be submitted to and whose metrics can be found."""
    with _running_head(environment, dashboard=True) as running:
        yield running


@contextmanager
def _running_head(environment, *, dashboard):
    # Its record must not lie where jobs with a cluster of their own look for one.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    # The agent and the client server have fixed ports of their own, which another cluster on the machine may hold.
    port, place, agent, client = _free_ports(4)
    # Workers run `python` from the path: it must be the one under test.
    path = f"{Path(RAY).parent}:{environment['PATH']}"
    clients = environment | {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": folder, "PATH": path}
    # A node's credentials are in files of its own, as on machines of one's own; there are none until a test needs some.
    clients |= {name: f"{folder}/{file}" for name, file in CREDENTIALS.items()}
    # The token too: `ray start` makes none, and whether the user has one must not matter.
    clients["RAY_AUTH_TOKEN_PATH"] = f"{folder}/auth_token"
    Path(clients["RAY_AUTH_TOKEN_PATH"]).write_text(secrets.token_hex(32))
    start = [
        *(RAY, "start", "--head", "--num-cpus=2", "--disable-usage-stats", "--block"),
        *(f"--include-dashboard={str(dashboard).lower()}", f"--port={port}", f"--dashboard-port={place}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
    ]
    process = subprocess.Popen(
        start, env=clients, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    running = Head(f"http://127.0.0.1:{place}" if dashboard else "", f"127.0.0.1:{port}", clients)
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
    deadline = time.monotonic() + 600  # only for one that hangs
    while not (record.exists() and _takes_jobs(head)):
        if process.poll() is not None:
            pytest.fail(f"`ray start` ended with {process.returncode}")
        if time.monotonic() > deadline:
            pytest.fail(f"no head answers at {head.gcs} {head.dashboard}")
        time.sleep(0.1)


def _takes_jobs(head):
    """Whether its dashboard, where it has one, answers."""
    if not head.dashboard:
        return True
    token = {"Authorization": f"Bearer {Path(head.environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}
    try:
        urlopen(Request(f"{head.dashboard}/api/jobs/", headers=token), timeout=60).close()
    except OSError:
        return False
    return True


def _run(command, environment):
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="session")
def run_build(head):
    """Run a build to its end on the shared head: `run_build(output, samples=…)` gives exit code and output.

    `extra` is added to the environment of the workers.
    """

    def run(output, *, extra=None, **changes):
        environment = for_workers(head.environment, extra) if extra else head.environment
        return run_here(build_words(output, **changes), environment)

    return run


@pytest.fixture(scope="session")
def run_stand_in(run_build):
    """`run_build` without models: where it matters what becomes of shards, and not what is in them."""
    from stand_in import standing_in

    def run(output, **changes):
        with standing_in():
            return run_build(output, **changes)

    return run


@pytest.fixture(scope="session")
def build_alone(environment):
    """Run a build to its end on a cluster of its own, for what is not to pass through a shared one: secrets."""

    def run(output, *, extra=None, **changes):
        return _run(build_command(output, **changes), environment | (extra or {}))

    return run


@pytest.fixture(scope="session")
def run_job(head):
    """Run another job to its end on the shared head: `run_job("train", data=…)` gives exit code and output."""

    def run(job, **options):
        return run_here(options_of(job, **options), head.environment)

    return run


@pytest.fixture(scope="session")
def undisturbed_build(head, tmp_path_factory):
    """A build as users start it, that nothing disturbed, made by one actor: its dataset and the finished process."""
    output = tmp_path_factory.mktemp("undisturbed") / "data"
    done = _run(build_command(output, actors=1), head.environment)
    assert done.returncode == 0, done.stderr
    return output, done


@pytest.fixture(scope="session")
def undisturbed(undisturbed_build):
    """The dataset of a build that nothing disturbed."""
    return undisturbed_build[0]


@pytest.fixture(scope="session")
def undisturbed_stand_in(run_stand_in, tmp_path_factory):
    """The dataset of a build without models that nothing disturbed, made by one actor."""
    output = tmp_path_factory.mktemp("stand-in") / "data"
    done = run_stand_in(output, actors=1)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture(scope="session")
def checkpoint(undisturbed, tmp_path_factory):
    """A projector trained on the built dataset."""
    folder = tmp_path_factory.mktemp("run") / "linear"
    options = TrainOptions(
        data=str(undisturbed), output=str(folder), arch="linear", epochs=1, objective="embedding"
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, threads on such small tensors mostly wait for one another
    train(options, training_pairs(options, "train"), training_pairs(options, "val"), device="cpu")
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def tiny_sources(monkeypatch, environment):
    """The tiny models, found in the cache that the processes under test use."""
    monkeypatch.setenv(CACHE_VARIABLE, environment[CACHE_VARIABLE])
    return resolve_models("tiny")
