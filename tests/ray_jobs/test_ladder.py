"""`ladder` for real, on the tiny models: three steps on one dataset that grows, killed in the middle and continued."""

import json
import signal
import subprocess
import sys
import time

import pytest

from ray_jobs.__main__ import main
from ray_jobs.cli.run_options import ReportOptions
from ray_jobs.report.page import report
from ray_support import ROOT
from shards.dataset.dataset import Dataset
from shards.stores.local import open_storage
from shards.tools.verify import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow]


SMALL = {
    "ladder.samples": "64,128,256",
    "ladder.gates": "report",
    "ladder.curve_seeds": 2,
    "train.epochs": 3,
    "build.height": 64,
    "build.width": 64,
    "build.steps": 2,
    "build.val_fraction": 0.25,
    "build.layers": "-8,-6",
    "build.samples_per_shard": 16,
    "build.batch_size": 8,
}


def ladder_words(output, **changes):
    options = SMALL | {"ladder.output": output} | changes
    return ["ladder", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def climbed(environment, tmp_path_factory):
    """A ladder killed once its second step has begun, and run again."""
    output = tmp_path_factory.mktemp("ladder") / "run"
    command = [sys.executable, "-m", "ray_jobs", *ladder_words(output)]
    first = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 1800  # only for one that hangs
    try:
        while not (output / "mlp" / "config.json").exists():
            assert first.poll() is None
            assert time.monotonic() < deadline, "no second step"
            time.sleep(0.1)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    kept = {path: path.stat().st_mtime_ns for path in output.glob("data/_commit/*.json")}
    kept |= {path: path.stat().st_mtime_ns for path in output.glob("linear/*.json")}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return output, kept, done


def test_it_goes_on_where_it_was_killed_and_makes_nothing_twice(climbed):
    output, kept, done = climbed
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    findings = verify(str(output / "data"))
    assert (findings.problems, findings.samples, findings.complete) == ([], 256, True)
    assert "train linear" not in done.stdout, "that step was finished"


def test_every_step_is_judged_on_the_pairs_it_had(climbed):
    output, _, done = climbed
    found = json.loads((output / "ladder.json").read_text())
    assert [(step["arch"], step["samples"]) for step in found["steps"]] == [
        ("linear", 64),
        ("mlp", 128),
        ("attention", 256),
    ]
    pairs = [step["train_pairs"] for step in found["steps"]]
    assert pairs == sorted(pairs)
    assert pairs[0] < 64 < pairs[1] < 128 < pairs[2] < 256
    for step in found["steps"]:
        assert f"{step['arch']}, {step['samples']} samples: {step['sentence']}" in done.stdout


def test_the_learning_curve_stands_on_nested_pairs_and_one_held_out_set(climbed):
    output, *_ = climbed
    found = json.loads((output / "ladder.json").read_text())
    whole = found["steps"][-1]["train_pairs"]
    assert [point["pairs"] for point in found["curve"]] == [whole >> 3, whole >> 2, whole >> 1, whole]
    assert [len(point["losses"]) for point in found["curve"]] == [2, 2, 2, 1]  # all pairs can be drawn once
    held_out = {json.loads(path.read_text())["val_pairs"] for path in output.glob("curve/*/summary.json")}
    assert len(held_out) == 1
    assert found["fit"]["exponent"]["low"] <= found["fit"]["exponent"]["value"]
    ways = {(row["layer"], row["text_mode"]) for row in found["layers"]}
    assert ways == {(-8, "caption"), (-8, "none"), (-6, "caption"), (-6, "none")}


def test_the_report_shows_the_curve_and_the_verdict(climbed):
    output, _, done = climbed
    said = json.loads((output / "ladder.json").read_text())["verdict"]
    assert done.stdout.splitlines()[-1] == said
    assert said.split(":")[0].startswith("From ")
    assert report(ReportOptions(run=str(output))) == 0
    page = (output / "report.html").read_text()
    assert "Validation loss by number of training pairs" in page
    assert said.split(",")[0] in page


def test_a_ladder_of_other_options_is_refused(climbed, capsys):
    output, *_ = climbed
    assert main(ladder_words(output, **{"train.epochs": 4})) == 2
    assert "train.epochs = 4: the ladder in" in capsys.readouterr().err
    assert main(ladder_words(output, **{"train.layer": -6})) == 2
    assert main(ladder_words(output, **{"ladder.samples": "64,128"})) == 2
    assert Dataset.open(open_storage(str(output / "data"))).segments()[-1] == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ladder.output": ""}, "ladder.output is needed"),
        ({"ladder.samples": "128,64"}, "must grow from step to step"),
        (
            {"build.samples": 9},
            "build.samples = 9: the ladder decides it; use ladder.output and ladder.samples",
        ),
        ({"train.arch": "mlp"}, "train.arch = 'mlp': the ladder decides it"),
        ({"ladder.curve_points": "2"}, "greater than or equal to 3"),
    ],
)
def test_bad_input(tmp_path, capsys, changes, message):
    assert main(ladder_words(tmp_path / "x", **changes)) == 2
    assert message in capsys.readouterr().err
