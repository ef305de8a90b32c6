"""`build` for real: Ray, actors, commits; killed in every way and the same bytes in the end.

Where it matters what becomes of shards and not what is in them, a stand-in makes them (`stand_in.py`).
"""

import json
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray.data

from ray_jobs.cluster.connect import connected
from ray_support import (
    ROOT,
    build_command,
    build_words,
    bytes_of,
    environment_of,
    for_workers,
    options_of,
    run_here,
    stand_in_command,
)
from shards.dataset.dataset import Dataset
from shards.dataset.read import read_samples
from shards.stores.local import open_storage
from shards.tools.info import info
from shards.tools.verify import verify

pytestmark = pytest.mark.ray


def opened(output):
    return Dataset.open(open_storage(str(output)))


def assert_same(output, undisturbed):
    assert bytes_of(output) == bytes_of(undisturbed)
    findings = verify(str(output))
    assert (findings.problems, findings.complete) == ([], True)
    keys = [sample.key for sample in read_samples(opened(output), image=False, tensors=())]
    assert len(keys) == len(set(keys)) == 24


def test_a_build_is_complete_and_sound(undisturbed):
    findings = verify(str(undisturbed))
    assert (findings.problems, findings.samples, findings.complete) == ([], 24, True)
    facts = info(opened(undisturbed))
    assert (facts["complete"], facts["samples"], facts["failed"], facts["devices"]) == (True, 24, 0, ["CPU"])
    assert facts["device_seconds"] > 0
    assert 0 < facts["busy_seconds"] < facts["device_seconds"], (
        "reading prompts and writing are no work of the device"
    )
    shards = json.loads((undisturbed / "manifest.json").read_text())["shards"]
    assert [shard["name"] for shard in shards] == sorted(opened(undisturbed).committed())


def test_run_again_it_makes_nothing(run_build, undisturbed):
    before = {
        path: path.stat().st_mtime_ns for path in undisturbed.glob("*/*") if path.name != "manifest.json"
    }
    done = run_build(undisturbed)
    assert done.returncode == 0, done.stderr
    assert "0 to make" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("*/*")} == before


def kill_after_commits(output, environment, number, *, wait):
    """Start a build and kill it a while after so many shards are committed."""
    process = subprocess.Popen(
        stand_in_command(output),
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(Path(output).glob("_commit/*.json"))) < number and process.poll() is None:
        assert time.monotonic() < deadline, "no commits"
        time.sleep(0.02)
    time.sleep(wait)
    process.kill()
    process.wait(timeout=60)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_bytes(
    run_stand_in, undisturbed_stand_in, environment, tmp_path
):
    output = tmp_path / "data"
    moments = random.Random(11)
    for committed in (0, 2):
        kill_after_commits(output, environment, committed, wait=moments.uniform(0, 0.5))
    made = set(Path(output).glob("_commit/*.json"))
    kept = {path: path.stat().st_ino for path in made}
    done = run_stand_in(output, actors=1)
    assert done.returncode == 0, done.stderr
    assert_same(output, undisturbed_stand_in)
    assert {path: path.stat().st_ino for path in made} == kept


def test_sigterm_stops_at_a_sample_boundary_with_143(run_stand_in, head, tmp_path):
    """The builder waits in its second shard until the signal has been heard of."""
    output, paused = tmp_path / "data", tmp_path / "paused"
    pause = {"SHARDS_CRASH_AT": "mid-shard:3", "SHARDS_CRASH_HOW": "pause", "SHARDS_CRASH_ONCE": str(paused)}
    with subprocess.Popen(
        stand_in_command(output, actors=1),
        env=for_workers(head.environment, pause),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while not (paused.exists() and list(output.glob("_commit/*.json"))):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        told = next(line for line in process.stdout if "stopping" in line)
        assert told == "stopped by a signal: stopping at the next sample boundary\n"
        paused.unlink()
        assert process.wait(timeout=60) == 143, process.stdout.read()
    findings = verify(str(output))
    assert (findings.problems, findings.samples, findings.complete) == ([], 4, False)
    assert run_stand_in(output, actors=1).returncode == 0
    findings = verify(str(output))
    assert (findings.problems, findings.samples, findings.complete) == ([], 24, True)


@pytest.mark.parametrize("point", [pytest.param("mid-shard:3", marks=pytest.mark.slow), "after-tar:1"])
def test_a_killed_worker_needs_no_second_run(run_stand_in, undisturbed_stand_in, tmp_path, point):
    output = tmp_path / "data"
    once = tmp_path / "once"
    done = run_stand_in(output, extra={"SHARDS_CRASH_AT": point, "SHARDS_CRASH_ONCE": str(once)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert once.exists(), "the crash hook never fired"
    assert_same(output, undisturbed_stand_in)
    assert any(commit.adopted for commit in opened(output).commits()) == point.startswith("after-tar")


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_number_of_actors(run_build, undisturbed, tmp_path):
    """One made the undisturbed build."""
    assert run_build(tmp_path / "data", actors=4).returncode == 0
    assert_same(tmp_path / "data", undisturbed)


def test_growing_leaves_the_first_shards_and_other_settings_are_refused(
    run_stand_in, undisturbed_stand_in, tmp_path
):
    output = tmp_path / "data"
    assert run_stand_in(output, samples=14, actors=1).returncode == 0
    first = bytes_of(output)
    refused = run_stand_in(output, samples=24)
    assert refused.returncode == 2
    assert "--append true" in refused.stderr
    other = run_stand_in(output, samples=14, seed=5)
    assert other.returncode == 2
    assert "seed is 0 there and 5 here" in other.stderr
    assert run_stand_in(output, samples=24, append="true", actors=1).returncode == 0
    assert first.items() <= bytes_of(output).items()
    grown, whole = (
        {sample.metadata["id"] for sample in read_samples(opened(root), image=False, tensors=())}
        for root in (output, undisturbed_stand_in)
    )
    assert grown == whole


def write_prompts(path, poisoned):
    path.write_text("".join(f"caption {i}{' <|im_end|>' if i in poisoned else ''}\n" for i in range(24)))
    return path


def test_poison_samples_are_written_down_and_the_rest_is_made(run_stand_in, tmp_path):
    output = tmp_path / "data"
    done = run_stand_in(output, prompts=write_prompts(tmp_path / "p.txt", {3}), actors=1)
    assert done.returncode == 0, done.stderr
    facts = info(opened(output))
    assert (facts["samples"], facts["failed"], facts["complete"]) == (23, 1, True)
    (failed,) = (output / "failed").glob("*.parquet")
    (row,) = pq.read_table(failed).to_pylist()
    assert row["caption"] == "caption 3 <|im_end|>"
    assert (row["stage"], row["error_class"]) == ("text", "ValueError")
    assert verify(str(output)).problems == []


def test_too_many_failures_stop_the_run(run_stand_in, tmp_path):
    prompts = write_prompts(tmp_path / "p.txt", set(range(0, 24, 2)))
    done = run_stand_in(tmp_path / "data", prompts=prompts, actors=1)
    assert done.returncode == 1
    assert "samples failed, more than build.max_failed_fraction" in done.stdout
    assert "Run it again" in done.stdout


@pytest.mark.slow
def test_four_declared_gpus_are_four_devices(environment, tmp_path):
    output = tmp_path / "data"
    script = (
        "import ray; ray.init(num_cpus=2, num_gpus=4, include_dashboard=False, log_to_driver=False)\n"
        "from ray_jobs.__main__ import main\n"
        f"raise SystemExit(main({build_command(output, samples=96)[3:]!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    devices = {commit.device.split(" (")[0] for commit in opened(output).commits()}
    assert devices == {"GPU 0", "GPU 1", "GPU 2", "GPU 3"}
    assert info(opened(output))["settings"]["dtype"] == "bfloat16"


def test_ray_reads_the_shards(head, undisturbed):
    urls = [opened(undisturbed).storage.url(commit.tar) for commit in opened(undisturbed).commits()]
    with environment_of(head.environment), warnings.catch_warnings(), connected():
        warnings.simplefilter("ignore")
        rows = ray.data.read_webdataset(urls, decoder=None).take_all()
    assert len({row["__key__"] for row in rows}) == 24
    assert all({"txt", "json", "png", "safetensors"} <= set(row) for row in rows)


def test_what_a_build_says(undisturbed_build):
    _, done = undisturbed_build
    lines = done.stdout.splitlines()
    assert lines[0].startswith("24 samples in ")
    assert any(line.startswith("build: 24/24 samples (100%)") for line in lines)
    assert lines[-2].startswith("complete: 24 samples, 0 failed")
    assert lines[-1].startswith("next: python -m ray_jobs train --train.data ")
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["offload", "staged"])
def test_bytes_do_not_depend_on_the_placement(run_build, undisturbed, tmp_path, placement):
    done = run_build(tmp_path / "data", placement=placement)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(tmp_path / "data", undisturbed)


@pytest.mark.slow
def test_a_killed_reader_needs_no_second_run(run_build, undisturbed, tmp_path):
    once = tmp_path / "once"
    done = run_build(
        tmp_path / "data",
        placement="staged",
        extra={"SHARDS_CRASH_AT": "reading:3", "SHARDS_CRASH_ONCE": str(once)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert once.exists(), "the crash hook never fired"
    assert_same(tmp_path / "data", undisturbed)


@pytest.mark.long
def test_a_plan_is_calibrated_on_a_few_samples(head, tmp_path):
    options = {"calibrate": "true", "output": tmp_path, "price_gpu_hour": 2.5, "price_gb_month": 0.02}
    words = options_of("plan", **options) + build_words("x", samples=640)[3:]
    done = run_here(words, head.environment)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())["calibration"]
    assert found["seconds_per_sample"] > 0
    assert found["wall_seconds"] > 640 * found["seconds_per_sample"] / 2, "two builders on two CPUs"
    assert found["gpu_hours"] == 0
    assert found["bytes"] == 640 * found["bytes_per_sample"]
    assert found["training_hours"] > 24 * 500 * found["seconds_per_sample"] / 8 / 3600, (
        "steps over all train pairs"
    )
    assert "of one such device" in done.stdout
    assert found["training_bytes"] > 2e9, "a process and a projector, beside a small model"
    assert found["cost"] == {"gpus": 0.0, "storage_month": pytest.approx(found["bytes"] / 1e9 * 0.02)}
    assert "s a sample on one builder" in done.stdout
    assert not list(tmp_path.glob("_commit")), "nothing is built"
