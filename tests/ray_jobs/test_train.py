"""`train`, `evaluate` and `report` on a dataset that `build` made, with two DDP workers on Ray Train."""

import json
import subprocess
import sys
import time

import pytest
import torch

from projector import Projector
from ray_support import ROOT, options_of
from shards.dataset.dataset import Dataset
from shards.stores.local import open_storage

pytestmark = pytest.mark.ray


@pytest.fixture(scope="session")
def trained(run_job, undisturbed, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "linear"
    done = run_job(
        "train", data=undisturbed, output=output, arch="linear", objective="embedding", epochs=6, workers=2
    )
    assert done.returncode == 0, done.stderr
    assert "trained: 4,160 parameters" in done.stdout
    return output


def lines(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_the_files_of_a_training(trained):
    assert {path.name for path in trained.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "metrics.jsonl",
        "summary.json",
    }
    assert not [path for path in trained.rglob("*") if path.suffix in (".pt", ".pkl", ".bin")]
    assert [line["epoch"] for line in lines(trained)] == list(range(1, 7))
    events = list((trained / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1 + 6  # the options, and each epoch; of two workers one logs
    assert json.loads((trained / "summary.json").read_text())["world_size"] == 2
    assert Projector.from_pretrained(str(trained)).width == 64


@pytest.mark.long
def test_one_worker_and_two_give_the_same_curve(run_job, undisturbed, trained, tmp_path):
    done = run_job(
        "train",
        data=undisturbed,
        output=tmp_path / "one",
        arch="linear",
        objective="embedding",
        epochs=6,
        workers=1,
    )
    assert done.returncode == 0, done.stderr
    for key in ("train_loss", "val_loss"):
        one, two = ([line[key] for line in lines(output)] for output in (tmp_path / "one", trained))
        assert one == pytest.approx(two, rel=1e-4)


@pytest.mark.slow
def test_killed_and_started_again_it_ends_where_an_unkilled_one_does(
    run_job, undisturbed, environment, tmp_path
):
    options = {
        "data": undisturbed,
        "arch": "mlp",
        "objective": "embedding",
        "epochs": 40,
        "workers": "1-2",
    }
    words = options_of("train", output=tmp_path / "killed", **options)
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs", *words],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "metrics.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    done_before = len(lines(tmp_path / "killed"))
    assert run_job("train", output=tmp_path / "killed", **options).returncode == 0
    assert run_job("train", output=tmp_path / "whole", **options).returncode == 0
    assert done_before < 40
    for killed, whole in zip(lines(tmp_path / "killed"), lines(tmp_path / "whole"), strict=True):
        assert killed["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-6)


def test_other_options_do_not_go_on_in_the_same_folder(run_job, undisturbed, trained):
    done = run_job(
        "train", data=undisturbed, output=trained, arch="linear", objective="embedding", epochs=9, workers=2
    )
    assert done.returncode == 2
    assert "epochs 6 there, 9 now" in done.stderr


@pytest.mark.slow
def test_evaluation_and_report(run_job, undisturbed, trained):
    tested = [c for c in Dataset.open(open_storage(str(undisturbed))).commits() if c.split == "test"]
    done = run_job("evaluate", checkpoint=trained, output=trained)
    assert done.returncode == 0, done.stderr
    result = json.loads((trained / "eval.json").read_text())
    assert result["pairs"] == sum(commit.samples for commit in tested)
    assert {"no_input", "identity", "global_scale", "per_dim_norm", "projector"} <= set(result["methods"])
    done = run_job("report", run=trained.parent)
    assert done.returncode == 0, done.stderr
    page = (trained.parent / "report.html").read_text()
    for part in ("<svg", "data:image/webp;base64,", "linear", "identity", f"{result['pairs']} test pairs"):
        assert part in page
    inside = page.replace("http://www.w3.org/", "")  # names of XML vocabularies, which nothing fetches
    for part in ("http://", "https://", "<script src", "<link"):
        assert part not in inside


@pytest.mark.slow
def test_through_the_image_model_one_worker_and_two_train_alike(run_job, undisturbed, tmp_path):
    """The dataset names the models that made it; the projector that comes out gives whole conditionings."""
    for workers in (1, 2):
        done = run_job(
            "train",
            data=undisturbed,
            output=tmp_path / str(workers),
            objective="response",
            epochs=3,
            batch_size=4,
            workers=workers,
        )
        assert done.returncode == 0, done.stderr
    curves = [[line["val_loss"] for line in lines(tmp_path / str(workers))] for workers in (1, 2)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    projector = Projector.from_pretrained(str(tmp_path / "2"))
    shape = projector.network.shape
    assert shape.suffix > 0
    assert len(projector.conditioning(torch.ones(9, 64))) == shape.prefix + 9 + shape.suffix


def test_an_image_model_that_cannot_be_found_is_said_before_workers_start(run_job, undisturbed, tmp_path):
    nowhere = {"models.image": "/nowhere", "models.vl": "/nowhere"}
    done = run_job("train", data=undisturbed, output=tmp_path / "out", objective="response", **nowhere)
    assert done.returncode == 2
    assert "train.models.image = '/nowhere'" in done.stderr
    assert not (tmp_path / "out").exists()
