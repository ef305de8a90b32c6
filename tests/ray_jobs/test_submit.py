"""The README's way onto a cluster: `ray start --head`, then `ray job submit`, tried on a head of its own."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_support import RAY, ROOT, build_command
from shards.verify import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def submit(head, *words):
    command = [
        RAY,
        "job",
        "submit",
        "--address",
        head.dashboard,
        "--working-dir",
        ".",
        "--",
        "python",
        "-m",
        "ray_jobs",
    ]
    for _ in range(30):
        done = subprocess.run(
            [*command, *words], env=head.environment, cwd=ROOT, capture_output=True, text=True, timeout=400
        )
        if "No available agent" not in done.stdout + done.stderr:  # the head answers before it can take jobs
            break
        time.sleep(2)
    return done


def test_the_demo_as_a_submitted_job(head, tmp_path):
    run = tmp_path / "demo"
    done = submit(head, "demo", "--demo.output", str(run), "--demo.samples", "96")
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
    refused = submit(head, "build", "--build.output", str(run / "data"), "--build.samples", "9")
    assert refused.returncode != 0
    assert "error: " in refused.stdout + refused.stderr


CONNECT = "from ray_jobs.cluster import connected\nwith connected() as cluster: print(cluster)"


@pytest.mark.parametrize("named", [True, False])
def test_a_job_joins_the_head_that_was_started(head, tmp_path, named):
    build = build_command(tmp_path / "data", samples=4)
    done = subprocess.run(
        [sys.executable, "-c", CONNECT] if named else build,
        env=head.environment | ({"RAY_ADDRESS": head.gcs} if named else {}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 node, 2 CPUs, 0 GPUs" in done.stdout
    # A cluster of its own would have a session of its own.
    assert len(list(Path(head.environment["RAY_TMPDIR"], "ray").glob("session_2*"))) == 1
