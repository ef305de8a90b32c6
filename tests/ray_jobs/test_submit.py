"""The README's way onto a cluster: `ray start --head`, then `ray job submit`, tried on a head of its own."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ray_support import ROOT, build_command
from shards.verify import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head(environment):
    """A head node on free ports; gives the dashboard's address, the head's and the environment of its clients."""
    # Ray's sockets lie under this folder and their paths may not pass 107 characters.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    port, dashboard = free_port(), free_port()
    # Workers run `python` from the path: it must be the one under test.
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    clients = environment | {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": folder, "PATH": path}
    start = [RAY, "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    more = ["--disable-usage-stats", "--include-dashboard=true", "--block"]
    process = subprocess.Popen(
        [*start, *more], env=clients, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", clients
    finally:
        process.terminate()
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def submit(address, clients, *words):
    command = [
        RAY,
        "job",
        "submit",
        "--address",
        address,
        "--working-dir",
        ".",
        "--",
        "python",
        "-m",
        "ray_jobs",
    ]
    for _ in range(30):
        done = subprocess.run(
            [*command, *words], env=clients, cwd=ROOT, capture_output=True, text=True, timeout=400
        )
        if "No available agent" not in done.stdout + done.stderr:  # the head answers before it can take jobs
            break
        time.sleep(2)
    return done


def wait_for(address, clients):
    for _ in range(60):
        listed = subprocess.run(
            [RAY, "job", "list", "--address", address],
            env=clients,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if listed.returncode == 0:
            return
    pytest.fail(f"no head answers at {address}: {listed.stderr}")


def test_the_demo_as_a_submitted_job(head, tmp_path):
    address, _, clients = head
    wait_for(address, clients)
    run = tmp_path / "demo"
    done = submit(address, clients, "demo", "--demo.output", str(run), "--demo.samples", "96")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"report: {run / 'report.html'}" in done.stdout
    assert (run / "report.html").stat().st_size > 50_000
    findings = verify(str(run / "data"))
    assert (findings.problems, findings.samples, findings.complete) == ([], 96, True)
    for arch in ("linear", "mlp", "attention"):
        assert (run / arch / "model.safetensors").exists()
        methods = json.loads((run / arch / "eval.json").read_text())["methods"]
        for metric in ("mse", "mse_standardized"):
            assert methods["projector"][metric] < methods["identity"][metric]
        assert methods["projector"]["per_dim_correlation"] > methods["identity"]["per_dim_correlation"] + 0.05
    refused = submit(address, clients, "build", "--build.output", str(run / "data"), "--build.samples", "9")
    assert refused.returncode != 0
    assert "error: " in refused.stdout + refused.stderr


CONNECT = "from ray_jobs.cluster import connected\nwith connected() as cluster: print(cluster)"


@pytest.mark.parametrize("named", [True, False])
def test_a_job_joins_the_head_that_was_started(head, tmp_path, named):
    address, gcs, clients = head
    wait_for(address, clients)
    build = build_command(tmp_path / "data", samples=4)
    done = subprocess.run(
        [sys.executable, "-c", CONNECT] if named else build,
        env=clients | ({"RAY_ADDRESS": gcs} if named else {}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 node, 2 CPUs, 0 GPUs" in done.stdout
    # A cluster of its own would have a session of its own.
    assert len(list(Path(clients["RAY_TMPDIR"], "ray").glob("session_2*"))) == 1
