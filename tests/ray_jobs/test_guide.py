"""docs/guide.md, run from its first command to its last as a reader would, with the tiny models."""

import json
import shutil
import subprocess

import pytest
import yaml
from PIL import Image

from ray_jobs.__main__ import JOBS
from ray_jobs.cli.parse import parse
from ray_support import NEEDS_A_CLOUD, NEEDS_GPUS, ROOT, blocks, blocks_to_run
from shards.tools.verify import verify

PAGE = "docs/guide.md"
TINY, REAL = (text for language, text in blocks(PAGE) if language == "yaml")


@pytest.fixture(scope="module")
def head(head_with_dashboard):
    return head_with_dashboard


@pytest.fixture
def checkout(tmp_path):
    """The project as a reader has it in a folder, with the page's first run.yaml in it."""
    for room in ("projector", "ray_jobs", "shards"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "run.yaml").write_text(TINY)
    return tmp_path


def run(language, text, *, cwd, environment):
    """What a block prints."""
    command = ["python", "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, text + done.stdout + done.stderr
    return done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_every_command_in_its_order(head, checkout):
    said = [
        run(language, text, cwd=checkout, environment=head.environment)
        for language, text in blocks_to_run(PAGE)
    ]
    plan, build, look, train, evaluate, compare, export, _, grow = said
    planned = yaml.safe_load(TINY)["build"]["samples"]
    assert plan.startswith(f"samples        {planned} (")
    assert f"complete: {planned} samples, 0 failed" in build
    assert f"complete, {planned} samples + 0 failed of {planned}" in look
    assert "no problems" in look
    assert train.count("trained: ") == 2
    assert "the closed form" in train
    first = checkout / "runs" / "first"
    for name in ("projector", "attention", "ridge", "no_input", "identity"):
        assert name in evaluate
    methods = json.loads((first / "ridge" / "eval.json").read_text())["methods"]
    assert methods.keys() >= {"projector", "attention", "ridge", "no_input", "identity"}
    assert "1 references, 3 cases, 24 pictures" in compare
    assert len(list((first / "ridge" / "compare" / "grids").glob("*.png"))) == 3
    assert (first / "report.html").stat().st_size > 50_000
    assert "upload" in export
    assert json.loads((first / "export" / "config.json").read_text())["network"]["arch"] == "ridge"
    pictures = [Image.open(first / f"alpha-{alpha}.png") for alpha in (0.0, 0.3, 0.5, 0.7)]
    assert {picture.size for picture in pictures} == {(64, 64)}
    assert len({picture.tobytes() for picture in pictures}) == len(pictures), "alpha changes nothing"
    assert "complete, 64 samples" in grow
    assert verify(str(first / "data")).problems == []


@pytest.mark.parametrize("text", [TINY, REAL])
def test_both_files_are_what_the_jobs_take(text, tmp_path):
    """The second one cannot be run here; every job that the page gives it to takes it."""
    (tmp_path / "run.yaml").write_text(text)
    for job in ("plan", "build", "train", "evaluate", "compare"):
        options = parse([job, "--config", str(tmp_path / "run.yaml")], JOBS).options
        assert set(options) & set(yaml.safe_load(text))


def test_what_needs_more_than_this_machine_says_so():
    for language, text in blocks(PAGE):
        away = any(word in text for word in ("Tongyi-MAI", "pip install", "docker", "aws ", "plan.calibrate"))
        assert language or not away or text.startswith((NEEDS_A_CLOUD, NEEDS_GPUS)), text
