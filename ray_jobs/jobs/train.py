"""`train`: a projector by DDP on Ray Train.

The loop is `projector.training.loop`; this starts its workers and watches.
"""

import json
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.train import (
    FailureConfig,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
    get_context,
    get_preemption_info,
)
from ray.train.torch import TorchConfig, TorchTrainer

from projector.data.dataset_pairs import training_pairs
from projector.network.checkpoint import SUMMARY, get_state
from projector.options import TrainOptions
from projector.training.loop import FINISHED, run_identity
from projector.training.loop import train as run_training
from projector.training.response import image_model
from projector.training.seeded_network import seeded_network
from projector.training.trackers import check_trackers, tracking
from ray_jobs.cli.option_errors import options_of
from ray_jobs.cli.progress import Progress, repeated
from ray_jobs.cli.signals import signals_exit
from ray_jobs.cluster.connect import Cluster, connected, plain_error
from ray_jobs.cluster.node_checks import check_nodes
from shards.errors import NotFoundError, UsageError
from shards.stores.local import open_storage
from shards.stores.store import Storage

MAX_FAILURES = 3  # restarts of the worker group; each one goes on from the last saved state
GROW_SECONDS = 30.0  # between looks for seats that have become free, where there may be more workers
SEATS_SECONDS = "10"  # for workers to get the seats Ray Train counted: a lost node's too, for up to 20 s
NOTICE_SECONDS = 2.0  # between questions whether a worker's node is about to be taken away


@options_of("train", TrainOptions)
def train(options: TrainOptions) -> int:
    """Train a projector.

    Args:
        options: data, output and how.

    Returns:
        exit code 0; the output holds config.json, model.safetensors, metrics.jsonl and summary.json.

    Raises:
        UsageError: anything wrong with the input, before workers start.
    """
    check_trackers(options)
    # What is wrong with the data or the output is said now: inside workers it would look like their failure.
    train_pairs, val_pairs = (
        training_pairs(options, "train", options.max_samples),
        training_pairs(options, "val"),
    )
    if options.objective == "response":
        image_model(options, train_pairs)
    if options.start_folder is not None:
        seeded_network(options, train_pairs)
    get_state(open_storage(options.output), run_identity(options, train_pairs, val_pairs))
    with connected() as cluster, signals_exit():
        check_workers(options, cluster, len(train_pairs))
        check_nodes(cluster, writes=[options.output], reads=[options.data, *(options.also or ())])
        print(f"train {options.arch} on {options.workers} workers to {options.output}", flush=True)
        if train_pairs.template is not None:
            print(f"left out of losses and statistics: {train_pairs.template}", flush=True)
        with _watched(options):
            summary = _fit(options, cluster)
    print(
        f"trained: {summary['parameters']:,} parameters, best validation loss {summary['best_val_loss']:.4g} "
        f"in epoch {summary['best_epoch']} of {summary['epochs']}",
        flush=True,
    )
    print(summary["recommendation"], flush=True)
    return 0


def check_workers(options: TrainOptions, cluster: Cluster, pairs: int) -> None:
    """Refuse more workers than the cluster can seat, where Ray would wait for ever, or than batches have pairs."""
    seats, kind = (cluster.gpus, "GPUs") if cluster.gpus else (cluster.cpus, "CPUs")
    fewest, most = options.worker_range
    batch = min(options.batch_size, pairs)
    if most > batch:
        raise UsageError(
            f"train.workers = {options.workers}: at most {batch} workers can share batches of {batch} pairs; "
            "use fewer, or a larger train.batch_size"
        )
    if fewest > seats:
        raise UsageError(
            f"train.workers = {options.workers}: the cluster has {seats:g} {kind}, one per worker; "
            f"use at most {int(seats)}"
        )


def _fit(options: TrainOptions, cluster: Cluster) -> dict[str, Any]:
    """Train to the end, with a new start on the other nodes after each notice that some are to be taken away."""
    leaving: set[str] = set()
    while True:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                told = _trainer(options, cluster, scratch, leaving).fit().return_value
        except WorkerGroupError as error:
            raise plain_error(next(iter(error.worker_failures.values()))) from error
        summary = json.loads(open_storage(options.output).get_bytes(SUMMARY))
        if summary["stopped"] == FINISHED:
            return dict(summary)
        leaving |= set(told)
        print("a node is about to be taken away: going on without it from the state just saved", flush=True)


def _trainer(options: TrainOptions, cluster: Cluster, scratch: str, leaving: set[str]) -> TorchTrainer:
    on_gpu = cluster.gpus > 0
    fewest, most = options.worker_range
    if fewest < most:  # soon counted anew, then maybe fewer; a fixed number can only be waited for
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", SEATS_SECONDS)
    return TorchTrainer(
        _worker,
        train_loop_config=options.model_dump(mode="json"),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            elastic_resize_monitor_interval_s=GROW_SECONDS,
            use_gpu=on_gpu,
            resources_per_worker={"GPU": 1, "CPU": 0.01} if on_gpu else {"CPU": 1},
            # Ray Train counts the seats of a node that is being drained, and would wait for them until it is gone.
            label_selector={"ray.io/node-id": f"!in({','.join(sorted(leaving))})"} if leaving else None,
        ),
        # A name of its own each time: the state that counts lies in train.output, hashed with its options, and
        # Ray would go on from a run of the same name whatever its settings were.
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )


def _worker(config: dict[str, Any]) -> list[str]:
    """One rank: Ray Train has set up the process group, the loop finds it.

    Returns:
        ids of the nodes that are about to be taken away; where there are any, training stopped for them.
    """
    options = TrainOptions.model_validate(config)
    first = get_context().get_world_rank() == 0
    leaving: list[str] = []
    # Beside the loop: every question is put to all workers at once, which takes longer than many a step.
    threading.Thread(target=_hear_of_leaving, args=(leaving,), daemon=True).start()
    with tracking(options) as log:
        run_training(
            options,
            training_pairs(options, "train", options.max_samples),
            training_pairs(options, "val"),
            on_epoch=log.epoch if first else None,
            should_stop=lambda: bool(leaving),
        )
    return leaving


def _hear_of_leaving(leaving: list[str]) -> None:
    """Wait for the notice that nodes of this training are to be taken away; fills in their ids and ends."""
    while not (notice := get_preemption_info()):
        time.sleep(NOTICE_SECONDS)
    leaving += notice.preempted_node_ids


@contextmanager
def _watched(options: TrainOptions) -> Iterator[None]:
    """Show progress from the lines the run itself writes: the file is the truth across restarts and machines."""
    storage = open_storage(options.output)
    before = len(_lines(storage))
    progress = Progress(f"train {options.arch}", options.epochs, done=before, unit="epochs")

    def show(*, final: bool = False) -> None:
        lines = _lines(storage)
        note = f"validation loss {lines[-1]['val_loss']:.4g}" if lines else ""
        progress.show(len(lines) - before, note, final=final)

    try:
        with repeated(show, 1.0):
            yield
    finally:
        show(final=True)


def _lines(storage: Storage) -> list[dict[str, Any]]:
    try:
        text = storage.get_bytes("metrics.jsonl").decode()
    except NotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]
