"""`train`: a projector by DDP on Ray Train. The loop is `projector.training`; this starts its workers and watches."""

import json
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer

from projector.checkpoint import get_state
from projector.data import training_pairs
from projector.options import TrainOptions
from projector.tracking import check_trackers, tracking
from projector.training import run_identity
from projector.training import train as run_training
from ray_jobs.cluster import Cluster, connected, signals_exit
from ray_jobs.progress import Progress
from shards.errors import NotFoundError, UsageError
from shards.storage import open_storage

MAX_FAILURES = 3  # restarts of the worker group; each one goes on from the last saved state


def train(options: TrainOptions) -> int:
    """Train a projector.

    Args:
        options: data, output and how.

    Returns:
        exit code 0; the output holds config.json, model.safetensors, metrics.jsonl and summary.json.

    Raises:
        UsageError: anything wrong with the input, before workers start.
    """
    for name in ("data", "output"):
        if not getattr(options, name):
            raise UsageError(f"train.{name} is needed: a local folder or s3://bucket/prefix")
    check_trackers(options)
    # What is wrong with the data or the output is said now: inside workers it would look like their failure.
    train_pairs, val_pairs = (
        training_pairs(options, "train", options.max_samples),
        training_pairs(options, "val"),
    )
    get_state(open_storage(options.output), run_identity(options, train_pairs, val_pairs))
    with connected() as cluster, signals_exit():
        check_workers(options, cluster)
        print(f"train {options.arch} on {options.workers} workers to {options.output}", flush=True)
        if train_pairs.template is not None:
            print(f"left out of losses and statistics: {train_pairs.template}", flush=True)
        with _watched(options), tempfile.TemporaryDirectory() as scratch:
            _trainer(options, cluster, scratch).fit()
    summary = json.loads(open_storage(options.output).get_bytes("summary.json"))
    print(
        f"trained: {summary['parameters']:,} parameters, best validation loss {summary['best_val_loss']:.4g} "
        f"in epoch {summary['best_epoch']} of {summary['epochs']}",
        flush=True,
    )
    print(summary["recommendation"], flush=True)
    return 0


def check_workers(options: TrainOptions, cluster: Cluster) -> None:
    """Refuse more workers than the cluster can seat: Ray would wait for them for ever."""
    seats, kind = (cluster.gpus, "GPUs") if cluster.gpus else (cluster.cpus, "CPUs")
    if options.workers > seats:
        raise UsageError(
            f"train.workers = {options.workers}: the cluster has {seats:g} {kind}, one per worker; "
            f"use at most {int(seats)}"
        )


def _trainer(options: TrainOptions, cluster: Cluster, scratch: str) -> TorchTrainer:
    on_gpu = cluster.gpus > 0
    return TorchTrainer(
        _worker,
        train_loop_config=options.model_dump(mode="json"),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=options.workers,
            use_gpu=on_gpu,
            resources_per_worker={"GPU": 1, "CPU": 0.01} if on_gpu else {"CPU": 1},
        ),
        # A name of its own each time: the state that counts lies in train.output, hashed with its options, and
        # Ray would go on from a run of the same name whatever its settings were.
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    """One rank: Ray Train has set up the process group, the loop finds it."""
    options = TrainOptions.model_validate(config)
    first = get_context().get_world_rank() == 0
    with tracking(options) as log:
        run_training(
            options,
            training_pairs(options, "train", options.max_samples),
            training_pairs(options, "val"),
            on_epoch=log.epoch if first else None,
        )


@contextmanager
def _watched(options: TrainOptions) -> Iterator[None]:
    """Show progress from the lines the run itself writes: the file is the truth across restarts and machines."""
    progress = Progress(f"train {options.arch}", options.epochs, done=len(_lines(options)), unit="epochs")
    before, finished = len(_lines(options)), threading.Event()

    def show(*, final: bool = False) -> None:
        lines = _lines(options)
        note = f"validation loss {lines[-1]['val_loss']:.4g}" if lines else ""
        progress.show(len(lines) - before, note, final=final)

    def watch() -> None:
        while not finished.wait(1.0):
            show()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        show(final=True)


def _lines(options: TrainOptions) -> list[dict[str, Any]]:
    try:
        text = open_storage(options.output).get_bytes("metrics.jsonl").decode()
    except NotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]
