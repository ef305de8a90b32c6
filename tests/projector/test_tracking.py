"""Logs of a training: read back with TensorBoard's own reader, once each after crashes, and never in the way."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from projector.data.pairs import Pair, in_memory
from projector.options import TrainOptions
from projector.training import trackers as tracking
from projector.training.event_file import event_file, pictures
from projector.training.loop import train
from projector.training.trackers import check_trackers
from shards.errors import UsageError
from shards.format.sample import as_png
from shards.stores.local import open_storage


def pairs(count=8):
    random = torch.Generator().manual_seed(0)
    kind = torch.ones(3, dtype=torch.uint8)
    return in_memory(
        [
            Pair(f"k{i}", torch.randn(3, 8, generator=random), kind, torch.randn(4, 8, generator=random))
            for i in range(count)
        ]
    )


def logged(folder):
    """Epochs and values of every tag, as TensorBoard shows them."""
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]
    }


def run(output, *, epochs=4, dies_before=None, dies_after=None, log=("tensorboard",)):
    """Train; the process dies before or after it logs an epoch."""
    options = TrainOptions(
        output=str(output), objective="embedding", arch="linear", epochs=epochs, batch_size=4, log=list(log)
    )
    with tracking.tracking(options) as log:

        def epoch(record):
            if record["epoch"] == dies_before:
                raise KeyboardInterrupt
            log.epoch(record)
            if record["epoch"] == dies_after:
                raise KeyboardInterrupt

        return train(options, pairs(), pairs(4), on_epoch=epoch, device="cpu")


def lines(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_reads_what_metrics_jsonl_says(tmp_path):
    run(tmp_path)
    found = logged(tmp_path / "tensorboard")
    named = {
        "train/loss": "train_loss",
        "train/learning_rate": "learning_rate",
        "val/loss": "val_loss",
        "val/best_loss": "best_val_loss",
        "val/best_epoch": "best_epoch",
        "speed/seconds": "seconds",
        "speed/pairs_per_second": "pairs_per_second",
    }
    assert set(found) == set(named)
    assert set(named.values()) == {key for key in lines(tmp_path)[0] if key != "epoch"}
    for tag, key in named.items():
        assert found[tag] == [(line["epoch"], pytest.approx(line[key])) for line in lines(tmp_path)]


def test_tensorboard_compares_runs_by_their_options(tmp_path):
    """What the page HPARAMS reads: the options, and the figure that runs are compared by."""
    run(tmp_path, epochs=2)
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    content = reader.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
    told = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
    assert {"arch": "linear", "objective": "embedding", "epochs": 2, "batch_size": 4}.items() <= told.items()
    assert told["log"] == '["tensorboard"]'
    assert str(tmp_path) not in str(start)
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    (metric,) = experiment.metric_infos
    assert metric.name.tag in reader.Tags()["scalars"]


def test_tensorboard_shows_pictures(tmp_path):
    pngs = {f"compare/{name}": as_png(Image.new("RGB", (3, 2), name)) for name in ("red", "blue")}
    (tmp_path / "events.out.tfevents.000000").write_bytes(event_file([pictures(pngs)], 0))
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    assert {tag: reader.Images(tag)[0].encoded_image_string for tag in reader.Tags()["images"]} == pngs


def test_after_a_crash_every_epoch_is_there_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, dies_before=2)
    assert [step for step, _ in logged(tmp_path / "tensorboard")["val/loss"]] == [1]
    run(tmp_path)
    assert [step for step, _ in logged(tmp_path / "tensorboard")["val/loss"]] == [1, 2, 3, 4]


def test_a_training_that_is_started_over_leaves_nothing_of_the_old_one(tmp_path):
    run(tmp_path)
    (tmp_path / "state.safetensors").unlink()
    run(tmp_path, epochs=2)
    assert [step for step, _ in logged(tmp_path / "tensorboard")["val/loss"]] == [1, 2]


def test_ridge_has_no_training_loss_to_log(tmp_path):
    options = TrainOptions(output=str(tmp_path), arch="ridge")
    with tracking.tracking(options) as log:
        train(options, pairs(), pairs(4), on_epoch=log.epoch, device="cpu")
    assert "train/loss" not in logged(tmp_path / "tensorboard")
    assert len(logged(tmp_path / "tensorboard")["val/loss"]) == 1
    groups = {tag.partition("/")[0] for tag in logged(tmp_path / "tensorboard")}
    assert groups == {"train", "val", "ridge", "speed"}


class FakeMLflow:
    """As much of MLflow as is used; keeps every point that is logged, as MLflow does."""

    def __init__(self):
        self.runs, self.params, self.current = [], [], None

    def start_run(self, run_id=None, run_name=None):
        if run_id is None:
            self.runs.append([])
        self.current = len(self.runs) - 1 if run_id is None else int(run_id)
        return SimpleNamespace(info=SimpleNamespace(run_id=str(self.current)))

    def log_params(self, params):
        self.params.append(params)

    def log_metrics(self, metrics, step):
        self.runs[self.current].append((step, metrics["val/loss"]))

    def end_run(self):
        self.current = None

    def MlflowClient(self):
        return SimpleNamespace(
            get_metric_history=lambda run_id, key: [
                SimpleNamespace(step=s) for s, _ in self.runs[int(run_id)]
            ]
        )


class FakeWandb:
    """As much of Weights & Biases as is used; drops earlier steps, as it does."""

    def __init__(self):
        self.runs, self.inits = {}, []

    def init(self, **how):
        self.inits.append(how)
        identity = how["id"] or f"run{len(self.runs)}"
        steps = self.runs.setdefault(identity, [])

        def log(metrics, step):
            if not steps or step > steps[-1]:
                steps.append(step)

        return SimpleNamespace(id=identity, log=log, finish=lambda: steps.append("finished"))


def test_mlflow_goes_on_in_its_run(tmp_path, monkeypatch):
    mlflow = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, dies_before=2, log=["mlflow"])
    assert mlflow.current is None
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, dies_after=3, log=["mlflow"])
    run(tmp_path, log=["mlflow"])
    assert [[step for step, _ in points] for points in mlflow.runs] == [[1, 2, 3, 4]]
    assert [value for _, value in mlflow.runs[0]] == [line["val_loss"] for line in lines(tmp_path)]
    assert len(mlflow.params) == 1
    assert not mlflow.params[0].keys() & {"data", "output", "cache", "also"}
    assert not (tmp_path / "tensorboard").exists()


def test_wandb_goes_on_in_its_run(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, dies_before=3, log=["wandb"])
    wandb.runs["run0"].remove("finished")
    run(tmp_path, log=["wandb"])
    assert wandb.runs == {"run0": [1, 2, 3, 4, "finished"]}
    assert [(init["id"], init["resume"]) for init in wandb.inits] == [(None, None), ("run0", "allow")]
    assert {init["project"] for init in wandb.inits} == {"z-image-projector"}
    assert not any(str(tmp_path) in str(init["config"]) for init in wandb.inits)


def test_a_tracker_that_fails_is_left_out_and_its_message_unsaid(tmp_path, monkeypatch, capsys):
    class Broken(FakeMLflow):
        def log_metrics(self, metrics, step):
            raise ConnectionError("https://user:password@server refused")

    monkeypatch.setitem(sys.modules, "mlflow", Broken())
    run(tmp_path, log=["mlflow", "tensorboard"])
    assert len(lines(tmp_path)) == len(logged(tmp_path / "tensorboard")["val/loss"]) == 4
    said = capsys.readouterr().err
    assert said == "warning: mlflow: ConnectionError; going on without it, check its environment variables\n"


def test_a_run_that_is_finished_opens_no_tracker(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setitem(tracking.LOGS, "tensorboard", lambda *_: pytest.fail("opened"))
    run(tmp_path)


def test_a_missing_extra_is_said_before_training(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name == "wandb" else True)
    with pytest.raises(UsageError, match=r"wandb is not installed; pip install 'z-image-projector\[wandb\]'"):
        check_trackers(TrainOptions(log=["tensorboard", "wandb"]))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="mlflow needs MLFLOW_TRACKING_URI in the environment"):
        check_trackers(TrainOptions(log=["mlflow"]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    check_trackers(TrainOptions(log=["tensorboard", "mlflow"]))
    with pytest.raises(ValueError, match="names something twice"):
        TrainOptions(log=["wandb", "wandb"])


def test_an_epoch_is_an_object_of_its_own_as_s3_wants_it(tmp_path):
    storage = open_storage(str(tmp_path / "there"))
    log = tracking.TensorBoard(TrainOptions(), storage)
    for epoch in (1, 2, 2):
        log.epoch({"epoch": epoch, "val_loss": epoch / 4})
    assert [entry.key for entry in storage.list()] == [
        "tensorboard/events.out.tfevents.000000",
        "tensorboard/events.out.tfevents.000001",
        "tensorboard/events.out.tfevents.000002",
    ]
    assert logged(tmp_path / "there" / "tensorboard") == {"val/loss": [(1, 0.25), (2, 0.5)]}
