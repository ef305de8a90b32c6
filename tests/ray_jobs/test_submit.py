"""The ways onto a cluster that README.md and docs/cluster.md tell of, tried on a head of its own."""

import json
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import yaml

from ray_jobs.jobs.demo import ARCHITECTURES
from ray_support import CREDENTIALS, NEEDS_A_CLOUD, RAY, ROOT, blocks, blocks_to_run, build_command
from s3_support import use
from shards.stores.local import open_storage
from shards.tools.verify import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def head(head_with_dashboard):
    return head_with_dashboard


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
            [*command, *words], env=head.environment, cwd=ROOT, capture_output=True, text=True, timeout=900
        )
        if "No available agent" not in done.stdout + done.stderr:  # the head answers before it can take jobs
            break
        time.sleep(2)
    return done


@contextmanager
def bucket_on(server, head):
    """A bucket, whose credentials are in the files of the head's node and nowhere else."""
    credentials, config = (Path(head.environment[name]) for name in CREDENTIALS)
    credentials.write_text(
        f"[default]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
    )
    config.write_text(f"[default]\nregion = us-east-1\nendpoint_url = {server.endpoint}\n")
    yield server.new_bucket()
    credentials.unlink()
    config.unlink()


@pytest.mark.server
def test_the_demo_as_a_submitted_job_with_everything_on_s3(head, rclone, monkeypatch):
    use(monkeypatch, rclone.env)  # rclone checks credentials, which moto does not
    with bucket_on(rclone, head) as bucket:
        run = f"s3://{bucket}/demo"
        done = submit(head, "demo", "--demo.output", run, "--demo.samples", "96")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"report: {run}/report.html" in done.stdout
        refused = submit(head, "build", "--build.output", f"{run}/data", "--build.samples", "9")
        assert refused.returncode != 0
        assert "error: " in refused.stdout + refused.stderr
    findings = verify(f"{run}/data")
    assert (findings.problems, findings.samples, findings.complete) == ([], 96, True)
    storage = open_storage(run)
    for arch in ARCHITECTURES:
        assert storage.stat(f"{arch}/model.safetensors")
        methods = json.loads(storage.get_bytes(f"{arch}/eval.json"))["methods"]
        for metric in ("velocity_error", "mse", "mse_standardized"):
            assert methods["projector"][metric] < methods["identity"][metric]
        shown = {name: figures["fidelity"] for name, figures in methods.items() if "fidelity" in figures}
        assert shown.keys() >= {"projector", "identity", "ridge"}
        assert all(0 <= share <= 1 for share in shown.values())
    page = storage.get_bytes("report.html")
    assert len(page) > 50_000
    assert rclone.secret_key.encode() not in page + (done.stdout + done.stderr).encode()
    assert places_of(rclone.secret_key, head) == []


CONNECT = "from ray_jobs.cluster.connect import connected\nwith connected() as cluster: print(cluster)"


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


PAIRS = {"samples": 24, "samples_per_shard": 4, "val_fraction": 0.25, "height": 64, "width": 64, "steps": 2}


def test_what_needs_a_cloud_says_so():
    for language, text in blocks("docs/cluster.md"):
        started = {line.split()[0] for line in text.splitlines() if line.strip()} if not language else set()
        away = started & {"docker", "kubectl", "aws"} or "ray up" in text or "ray dashboard" in text
        assert not away or text.startswith(NEEDS_A_CLOUD), text


@pytest.fixture
def checkout(tmp_path):
    """The project as a user has it in a folder, with a run.yaml of the tiny models beside it."""
    folder = tmp_path / "checkout"
    for room in ("projector", "ray_jobs", "shards"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    run = {
        "build": PAIRS,
        "train": {"arch": "linear", "epochs": 2, "objective": "embedding"},
        "ladder": {"samples": [24]},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return folder


@pytest.fixture
def bucket(head, moto):
    with bucket_on(moto, head) as name:
        yield name


def told_of_jobs(head):
    """All that Ray tells of its jobs to whoever may ask."""
    token = {"Authorization": f"Bearer {Path(head.environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}
    with urlopen(Request(f"{head.dashboard}/api/jobs/", headers=token)) as answer:
        return json.load(answer)


def places_of(secret, head):
    """Where a secret stands of what Ray and its jobs wrote and tell."""
    logs = Path(head.environment["RAY_TMPDIR"], "ray").glob("session_*/logs/**/*")
    found = [path.name for path in logs if path.is_file() and secret.encode() in path.read_bytes()]
    return found + ["the job API"] * (secret in json.dumps(told_of_jobs(head)))


@pytest.mark.server
def test_the_commands_of_the_clusters_page(head, checkout, bucket, moto):
    said = []
    for _, block in blocks_to_run("docs/cluster.md"):
        script = block.replace("http://127.0.0.1:8265", head.dashboard).replace(
            "s3://bucket", f"s3://{bucket}"
        )
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=head.environment,
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, script + done.stdout + done.stderr
        said.append(done.stdout)
    preflight, build, train, watched = said
    assert "preflight: fit (1 node, 0 GPUs)" in preflight
    assert "complete: 24 samples, 0 failed" in build
    assert "Job 'pairs' succeeded" in build
    assert "24 samples" in build.partition("succeeded")[2]
    assert "trained: " in train
    assert "Job 'ladder' was stopped" in train
    assert "24/24 pairs (100%)" in watched
    assert "worker-" in watched.partition("log ")[2]
    jobs = {job["submission_id"]: job for job in told_of_jobs(head)}
    assert jobs["pairs"]["metadata"]["dataset"] == f"s3://{bucket}/pairs"
    assert jobs["mlp"]["metadata"]["output"] == f"s3://{bucket}/mlp"
    assert (jobs["pairs"]["status"], jobs["ladder"]["status"]) == ("SUCCEEDED", "STOPPED")
    for secret in (moto.secret_key, moto.access_key):
        assert places_of(secret, head) == []


def test_a_secret_in_a_runtime_environment_would_be_seen(head, tmp_path):
    """Why the page says to put none there, and that the test above would find one."""
    planted = f"planted{uuid.uuid4().hex}"
    environment = json.dumps({"env_vars": {"AWS_SECRET_ACCESS_KEY": planted}})
    command = [
        RAY,
        "job",
        "submit",
        "--address",
        head.dashboard,
        "--no-wait",
        "--runtime-env-json",
        environment,
    ]
    subprocess.run([*command, "--", "true"], env=head.environment, cwd=tmp_path, check=True, timeout=120)
    assert "the job API" in places_of(planted, head)
