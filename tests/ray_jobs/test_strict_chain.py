"""The way from prompts to a folder to publish on an S3 that refuses what AWS refuses (`strict_s3`)."""

import json
import subprocess
import sys

import pytest

from projector import Projector
from ray_support import ROOT, build_command
from s3_support import use
from shards.stores.local import open_storage
from shards.tools.verify import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.server]


@pytest.fixture
def run_job(environment, strict):
    """Run a job to its end, on a cluster of its own and with the store's credentials."""

    def run(*words):
        done = subprocess.run(words, env=environment | strict.env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert strict.secret_key not in done.stdout + done.stderr

    return run


def options_of(job, **options):
    words = [sys.executable, "-m", "ray_jobs", job]
    for name, value in options.items():
        words += [f"--{job}.{name}", str(value)]
    return words


def test_build_train_evaluate_and_export_all_on_s3(run_job, strict, monkeypatch):
    use(monkeypatch, strict.env)
    root = f"s3://{strict.new_bucket()}/a run"
    data, linear, published = f"{root}/data", f"{root}/linear", f"{root}/published"
    run_job(*build_command(data))
    findings = verify(data)
    assert (findings.problems, findings.samples, findings.complete) == ([], 24, True)
    run_job(
        *options_of(
            "train", data=data, output=linear, arch="linear", objective="embedding", epochs=2, batch_size=8
        )
    )
    run_job(*options_of("evaluate", data=data, checkpoint=linear))
    run_job(*options_of("export", checkpoint=linear, output=published, program="false"))
    assert "projector" in json.loads(open_storage(linear).get_bytes("eval.json"))["methods"]
    assert Projector.from_pretrained(published).config["arch"] == "linear"
    assert open_storage(published).get_bytes("README.md")
