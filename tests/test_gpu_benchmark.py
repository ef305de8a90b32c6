"""`benchmarks/gpu.py` runs small on a CPU, saves each step as it ends, and outlives a step that fails."""

import json

import gpu
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SMALL = ["--size", "tiny", "--side", "64", "--steps", "2", "--device", "cpu", "--turns", "1"]


def test_every_step_runs_and_ours_equals_the_libraries(tmp_path):
    gpu.main([*SMALL, "--output", str(tmp_path / "gpu.json")])
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert list(steps) == list(gpu.STEPS)
    assert {name: step["error"] for name, step in steps.items() if "error" in step} == {}
    assert steps["parity"]["found"]["text"] < 1e-5
    assert steps["parity"]["found"]["picture"]["most"] <= 1
    assert steps["distributed"]["found"]["largest_difference"] == 0


def test_a_step_that_fails_is_recorded_and_the_rest_is_skipped_in_time(tmp_path, monkeypatch):
    def fail(_setting):
        raise RuntimeError("no such\ndevice")

    monkeypatch.setattr(gpu, "STEPS", {"parity": fail, "critical_path": gpu.STEPS["critical_path"]})
    output = tmp_path / "gpu.json"
    gpu.main([*SMALL, "--only", "parity", "critical_path", "--output", str(output)])
    steps = json.loads(output.read_text())["steps"]
    assert steps["parity"]["error"] == "RuntimeError: no such device"
    assert steps["critical_path"]["found"]["image processor"] > 0
    gpu.main([*SMALL, "--minutes", "0", "--output", str(output)])
    steps = json.loads(output.read_text())["steps"]
    assert all(step == {"skipped": "no time was left"} for step in steps.values())
