"""What a training reached: the spread of its outputs, its summary, and whether it was worth it."""

from typing import Any

import torch

from projector.data.pairs import PairSource
from projector.network.architectures import ProjectorNetwork
from projector.training.worker import Trainer, precision
from shards.format.statistics import RunningStatistics

STRENGTHS = (0.0, 0.5, 1.0)  # of restoration, reported after every training
WORTH = 0.005  # share of ridge's loss by which a network must be better: less than that is noise


def restore(run: Trainer, pairs: PairSource, network: ProjectorNetwork) -> list[dict[str, Any]]:
    """Give a trained network its `set_restoration`, from held-out tokens as they are at inference.

    Returns:
        what each strength costs and brings: validation loss, and how the outputs' spread stands to the targets'.
    """
    outputs, targets = RunningStatistics(run.width), RunningStatistics(run.width)
    part = run.world.share(run.val_count)
    with torch.no_grad():
        for pair in pairs.read(part.start, part.stop):
            outputs.update(network(pair.vl[None].to(run.world.device))[0].cpu().numpy())
            targets.update(network.standardise_target(pair.text.to(run.world.device)).cpu().numpy())
    outputs, targets = run.world.merge(outputs), run.world.merge(targets)
    table = []
    for strength in STRENGTHS:
        network.set_restoration(outputs, targets, strength)
        ratio = network.spread_ratio(outputs, targets)
        table.append(
            {
                "strength": strength,
                "val_loss": run.validate(network, restored=True),
                "std_ratio_range": [float(ratio.min()), float(ratio.max())],
                "dims_outside": int(((ratio < 0.5) | (ratio > 2)).sum()),
            }
        )
    network.set_restoration(outputs, targets, run.options.restore)
    return table


def summarise(run: Trainer, stopped: str) -> dict[str, Any]:
    """The content of summary.json."""
    progress, options = run.progress, run.options
    seconds = max(progress.seconds, 1e-9)
    return {
        "arch": options.arch,
        "objective": options.objective,
        "parameters": run.network.parameter_count,
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "best_val_loss": progress.best_val_loss,
        "ridge_val_loss": progress.ridge_val_loss,
        "final_train_loss": progress.history[-1]["train_loss"] if progress.history else None,
        "steps": progress.epoch * -(-run.train_count // min(options.batch_size, run.train_count)),
        "train_pairs": run.train_count,
        "val_pairs": run.val_count,
        "seconds": round(progress.seconds, 3),
        "pairs_per_second": round(run.train_count * progress.epoch / seconds, 1),
        "world_size": run.world.size,
        "device": str(run.world.device),
        "precision": precision(options, run.world.device),
        "stopped": stopped,
    }


def recommendation(run: Trainer) -> str:
    """One sentence on how the network stands beside the closed form on the pairs that chose its epoch.

    Those pairs cannot say whether it is better: `evaluate` does, on pairs that chose nothing.
    """
    arch, best, ridge = run.options.arch, run.progress.best_val_loss, run.progress.ridge_val_loss
    if arch == "ridge":
        return f"the closed form: validation loss {best:.4g}, which networks have to beat"
    if ridge is None:
        return f"validation loss {best:.4g}; not compared with ridge, which was not fitted on these pairs"
    # There ridge is the start, and no projector of its own.
    through_the_model = run.options.objective == "response"
    if best < ridge * (1 - WORTH):
        return (
            f"{arch} has {1 - best / ridge:.1%} less validation loss than {'the ' * through_the_model}ridge"
            f"{' it started at' * through_the_model} ({best:.4g} against {ridge:.4g}); whether that is more than luck, "
            "evaluate says on test pairs"
        )
    if through_the_model:
        return (
            f"{arch} gains nothing over the ridge it started at on validation ({best:.4g} against {ridge:.4g}); "
            "give it more pairs or more epochs"
        )
    return (
        f"ridge is recommended: {arch} gains nothing over it on validation ({best:.4g} against {ridge:.4g}); "
        "arch ridge takes seconds"
    )
