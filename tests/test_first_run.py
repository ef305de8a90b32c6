"""`benchmarks/first_run.py` end to end on the miniature weights: what it leaves, a second run, short minutes."""

import json
import re
from pathlib import Path

import first_run
import numpy as np
import pytest
import torch
from first_run_likeness import Looks, likeness
from first_run_questions import QUESTIONS
from PIL import Image

from ray_jobs.__main__ import JOBS
from ray_jobs.cli.parse import parse
from ray_support import ROOT
from shards.scenes.captions import canonical
from shards.scenes.scene import sample_scene

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]
MINI = ROOT / "projector" / "models" / "mini"


def words(output: Path, *more: str) -> list[str]:
    return [
        *("--image", str(MINI / "image"), "--vl", str(MINI / "vl"), "--output", str(output)),
        *("--side", "64", "--count", "2", "--prompts", str(output.parent / "prompts.txt"), *more),
    ]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run that did everything."""
    output = tmp_path_factory.mktemp("first") / "run"
    generator = np.random.default_rng(5)
    scenes = [canonical(sample_scene(generator, 1, "train")) for _ in range(2)]
    (output.parent / "prompts.txt").write_text("\n".join(scenes) + "\n")
    assert first_run.main(words(output)) == 0
    return output


def test_every_question_is_answered_and_said(whole_run):
    result = json.loads((whole_run / "first_run.json").read_text())
    assert list(result["steps"]) == list(QUESTIONS)
    assert {name: step for name, step in result["steps"].items() if "found" not in step} == {}
    found = {name: step["found"] for name, step in result["steps"].items()}
    assert max(found["velocities"]["errors"]["text"]) < 1e-6  # the sampler repeats its own trajectory
    assert min(found["velocities"]["errors"]["graft"]) > 1e-4
    assert found["references"]["edited"] == 2
    assert set(found["states"]["sides"]) == {"text", "graft", "vl -2", "vl -6", "vl -8"}
    assert found["template_end"]["rows"] == 11  # of the miniature tokenizer; five of Qwen's
    assert found["step_counts"]["levels"]["8"][-1] == 0.0
    assert len(found["step_counts"]["levels"]["9"]) == 10


def test_build_and_train_take_the_recommendation(whole_run):
    file = str(whole_run / "recommendation.yaml")
    build = parse(["build", "--config", file, "--build.output", "x"], JOBS).options["build"]
    train = parse(["train", "--config", file, "--train.data", "x"], JOBS).options["train"]
    assert (build.height, build.steps, build.guidance) == (64, 8, 0.0)
    assert build.models.image == str(MINI / "image")
    assert train.layer in build.layers


def test_the_page_shows_every_picture_and_escapes_prompts(whole_run):
    page = (whole_run / "index.html").read_text()
    drawn = [path.relative_to(whole_run) for path in (whole_run / "pictures").rglob("*.png")]
    assert len(drawn) == 2 * 17
    assert {str(path) for path in drawn} <= set(re.findall(r'href="([^"]+)"', page))
    hostile = first_run.page(
        json.loads((whole_run / "first_run.json").read_text()), ["<script>x"], "</pre>", whole_run
    )
    assert "<script>" not in hostile
    assert hostile.count("</pre>") == page.count("</pre>")


def test_a_second_run_draws_nothing_and_loads_no_model(whole_run, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in (whole_run / "pictures").rglob("*.png")}
    monkeypatch.setattr(first_run, "step", None)
    assert first_run.main(words(whole_run)) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_the_minutes_did_not_allow_is_said_and_done_the_next_time(
    whole_run, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "run"
    (tmp_path / "prompts.txt").write_text((whole_run.parent / "prompts.txt").read_text())
    assert first_run.main(words(output, "--minutes", "0")) == 1
    steps = json.loads((output / "first_run.json").read_text())["steps"]
    assert all("no time was left" in step["not_done"] for step in steps.values())
    assert "no time was left" in (output / "index.html").read_text()

    def fail(_bench):
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(first_run, "QUESTIONS", {"references": QUESTIONS["references"], "graft": fail})
    assert first_run.main(words(output)) == 1
    steps = json.loads((output / "first_run.json").read_text())["steps"]
    assert "found" in steps["references"]
    assert "RuntimeError at test_first_run.py" in steps["graft"]["error"]
    assert "no luck" in steps["graft"]["error"]
    same = [(folder / "pictures" / "reference" / "01.png").read_bytes() for folder in (output, whole_run)]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--steps", "4"), "holds a run of other steps"),
        (("--side", "60"), "--side = 60; expected a multiple of 16"),
        (("--count", "3"), "2 prompts, --count is 3"),
        (("--count", "1"), "--count = 1; expected 2 to 99"),
        (("--side", "1600"), "positions for"),
        (("--vl", "/nowhere"), "--vl = '/nowhere': no such folder"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(whole_run, capsys, more, said):
    assert first_run.main(words(whole_run, *more)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1]
    assert lines[-1].startswith("error: ")


def test_likeness_is_one_for_the_same_and_low_for_another():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)]
    looks = Looks.of(torch.eye(4), [Image.new("RGB", (32, 32), colour) for colour in colours])
    same = likeness(looks, looks, looks, range(4))
    assert same["vl"]["mean"] == pytest.approx(1)
    assert same["pixels"]["low"] == pytest.approx(1)
    assert same["recognised"] == 1
    turned = looks.of_these([1, 2, 3, 0])
    other = likeness(turned, looks, looks, range(4))
    assert other["vl"]["mean"] < 0
    assert other["recognised"] == 0
