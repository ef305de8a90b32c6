"""Training a projector: one function per worker, the same result for any number of workers, resumable anywhere."""

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from projector.data.pairs import PairSource
from projector.data.world import World
from projector.network.architectures import ProjectorNetwork
from projector.network.checkpoint import (
    CONFIG,
    FORMAT,
    METRICS,
    SUMMARY,
    get_json,
    get_network,
    get_state,
    put_json,
    put_network,
    put_state,
)
from projector.options import TrainOptions
from projector.training.response import ResponseTrainer
from projector.training.summary import recommendation, restore, summarise
from projector.training.trackers import forget
from projector.training.worker import NonFiniteLossError, Tick, Trainer
from shards.stores.local import open_storage
from shards.stores.store import Storage

__all__ = ["NonFiniteLossError", "Tick", "run_identity", "train"]

FINISHED, ASKED = "finished", "asked"  # how a run may stop

# Options without effect on the result (max_samples has it through the number of pairs, which is compared).
NOT_DECISIVE = {
    "data",
    "output",
    "workers",
    "micro_batch",
    "checkpoint_seconds",
    "max_samples",
    "loader",
    "cache",
    "log",
    "models",
}


def train(
    options: TrainOptions,
    train_pairs: PairSource,
    val_pairs: PairSource,
    *,
    output: str | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_progress: Callable[[Tick], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Train a projector, or go on where an earlier attempt stopped. Every worker of the process group calls
    this.

    Args:
        options: what to train.
        train_pairs: pairs to learn from; each worker reads its own part.
        val_pairs: held-out pairs that choose the best epoch.
        output: folder or s3:// root for the run's files; None takes `options.output`. Worker 0 writes them.
        on_epoch: called on every worker after each epoch with its metrics; where an earlier attempt is gone on
            with, first with those of its last epoch, whose call may have been cut off.
        on_progress: called on every worker every so many steps.
        should_stop: asked on every worker every so many steps; when one says yes, all save the state and
            return.
        device: of this worker; None takes a GPU where there is one.

    Returns:
        the content of summary.json; its `stopped` is `finished` or `asked`, and where finished
        `restoration` and `recommendation` say what was reached.

    Raises:
        UsageError: pairs and options that do not fit, or an output that holds another run.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    world = World.join(device)
    storage = open_storage(output or options.output)
    identity = run_identity(options, train_pairs, val_pairs)
    state = get_state(storage, identity)
    if state is not None and storage.stat(SUMMARY):
        summary = dict(get_json(storage, SUMMARY))
        if summary["stopped"] != ASKED:
            return summary
    trainer = ResponseTrainer if options.objective == "response" else Trainer
    run = trainer(options, world, train_pairs, val_pairs, state)
    config = _config(options, run.network, train_pairs, val_pairs)
    if world.rank == 0:
        put_json(storage, CONFIG, config)
        if state is None:
            forget(storage)
    if on_epoch and run.progress.history:
        on_epoch(run.progress.history[-1])
    save = partial(_save, run, storage, identity)
    if state is None and run.progress.best_val_loss < math.inf:
        save(best=True)  # the start counts: what is kept is never worse than it
    while not (run.finished or run.asked_to_stop):
        if options.arch == "ridge" or options.align == "statistics":
            record = run.fit_in_closed_form()
        elif run.epoch(on_progress=on_progress, should_stop=should_stop, save=save):
            record = run.close_epoch()
        else:
            save(best=False)
            break
        save(best=record["best_epoch"] == record["epoch"])
        if on_epoch:
            on_epoch(record)
    summary = _conclude(run, storage, config, val_pairs) if run.finished else summarise(run, ASKED)
    if world.rank == 0:
        put_json(storage, SUMMARY, summary)
    return summary


def _save(run: Trainer, storage: Storage, identity: dict[str, Any], *, best: bool) -> None:
    """Write how far a run is, on worker 0; with `best` its network, too."""
    if run.world.rank:
        return
    if best:
        put_network(storage, run.judged)
    put_state(storage, identity, run.progress, run.network, run.optimizer, run.averaged)
    lines = "".join(f"{json.dumps(record)}\n" for record in run.progress.history)
    storage.put_bytes(METRICS, lines.encode())


def _conclude(
    run: Trainer, storage: Storage, config: dict[str, Any], val_pairs: PairSource
) -> dict[str, Any]:
    """Give the best network its restoration and judge the run; returns the summary."""
    run.world.add(torch.zeros(1))  # the best weights are on storage before any worker reads them
    best = get_network(storage, config).to(run.world.device)
    restoration = [] if run.options.objective == "response" else restore(run, val_pairs, best)
    if run.world.rank == 0:
        put_network(storage, best)
    return {
        **summarise(run, FINISHED),
        "restoration": restoration,
        "recommendation": recommendation(run),
    }


def run_identity(options: TrainOptions, train_pairs: PairSource, val_pairs: PairSource) -> dict[str, Any]:
    """Everything that decides a run's result; a state is taken up only by a run with the same."""
    return {
        **{key: value for key, value in options.model_dump(mode="json").items() if key not in NOT_DECISIVE},
        "dataset": train_pairs.provenance.get("fingerprint", ""),
        "training pairs": len(train_pairs),
        "held-out pairs": len(val_pairs),
    }


def _config(
    options: TrainOptions, network: ProjectorNetwork, train_pairs: PairSource, val_pairs: PairSource
) -> dict[str, Any]:
    """The content of config.json."""
    provenance = dict(train_pairs.provenance)
    return {
        "format": FORMAT,
        "arch": options.arch,
        "width": network.shape.width,
        "parameters": network.parameter_count,
        "layer": train_pairs.layer,
        "reader": options.reader,
        "text_mode": train_pairs.text_mode,
        "tokens": train_pairs.tokens,
        "align": options.align,
        "length": options.length,
        "network": network.shape.as_json(),
        "recipe": options.recipe,
        "template": None if train_pairs.template is None else train_pairs.template.as_json(),
        "base_models": provenance.pop("models", {}),
        "dataset": provenance,
        "train_pairs": len(train_pairs),
        "val_pairs": len(val_pairs),
        "options": options.model_dump(mode="json"),
    }
