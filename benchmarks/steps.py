"""How near training comes to what the arithmetic alone takes: step rate on resident pairs, ridge against epochs.

    python benchmarks/steps.py                        shares of the bare step
    python benchmarks/steps.py --guide                the MLP beside the guide's

All of it in CPU seconds of one thread, in turns within one process: other work on the machine weighs little.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import guide
import torch
from synthetic import Synthetic
from synthetic_files import write_guide_files
from torch.utils.data import DataLoader

from projector.data.align import soft_targets
from projector.data.packed import Batch
from projector.data.pairs import PairSource, in_memory
from projector.data.world import World
from projector.network.architectures import ProjectorNetwork
from projector.options import Align, Arch, TrainOptions
from projector.training.loop import train
from projector.training.worker import Trainer, precision

ALONE = World(0, 1, torch.device("cpu"))
ROUNDS = 5
PAIRS = 320  # ten batches


def shares(
    pairs: PairSource,
    archs: Sequence[Arch] = ("linear", "mlp", "attention"),
    aligns: Sequence[Align] = ("pool", "soft"),
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Share of the bare step rate that `Trainer` reaches, by architecture and alignment, in CPU seconds."""
    some = in_memory(list(pairs.read(0, min(PAIRS, len(pairs)))))
    return {f"{arch}, {align}": _share(some, arch, align, rounds) for arch in archs for align in aligns}


def _share(pairs: PairSource, arch: Arch, align: Align, rounds: int) -> dict[str, float]:
    """Ours and bare epochs in turns over the same pairs."""
    run = _trainer(pairs, arch, align, "float32", rounds)
    batches = [
        run.train_set.batch(part) for part in torch.split(torch.arange(len(pairs)), run.options.batch_size)
    ]
    seconds = _in_turns({"ours": run, "bare": _Bare(run, batches).epoch}, rounds)
    return {
        "samples_per_cpu_second": round(len(pairs) / statistics.median(seconds["ours"]), 1),
        "bare_samples_per_cpu_second": round(len(pairs) / statistics.median(seconds["bare"]), 1),
        "share_of_bare": _ratio(seconds["bare"], seconds["ours"]),
        "target": 0.97,
    }


def against_guide(world: Synthetic, count: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Pairs a CPU second of the MLP's steps over those of the guide's loop, its files in the page cache."""
    pairs = in_memory(list(world.source(count)))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_guide_files(Path(folder), world, {"train": range(count)}, text_mode="none")
        loader = DataLoader(guide.PtFiles(Path(folder) / "train"), batch_size=guide.BATCH, shuffle=True)
        network = guide.make_network("mlp", world.width)
        optimizer = torch.optim.AdamW(network.parameters(), lr=guide.RATE, weight_decay=guide.DECAY)
        epochs: dict[str, Any] = {
            "guide": lambda: guide.train_epoch(network, loader, optimizer, nullcontext())
        }
        for align in ("pool", "soft"):
            for precision in ("float32", "bfloat16"):
                epochs[f"{align}, {precision}"] = _trainer(pairs, "mlp", align, precision, rounds)
        seconds = _in_turns(epochs, rounds)
    for name in list(epochs)[1:]:
        target = 1.0 if name.endswith("float32") else 2.5
        found[name] = {"over_guide": _ratio(seconds["guide"], seconds[name]), "target": target}
    return {"guide_pairs_per_cpu_second": round(count / statistics.median(seconds["guide"]), 1), **found}


def _trainer(pairs: PairSource, arch: Arch, align: Align, precision: Any, rounds: int) -> Trainer:
    options = TrainOptions(
        arch=arch, align=align, epochs=rounds + 1, objective="embedding", precision=precision
    )
    return Trainer(options, ALONE, pairs, in_memory(list(pairs.read(0, 8))), None)


def _in_turns(epochs: dict[str, Trainer | Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of this process for the steps of each epoch; the first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for turn in range(rounds + 1):
        for name, found in epochs.items():
            begun = time.process_time()
            if isinstance(found, Trainer):
                found.epoch(on_progress=None, should_stop=None, save=lambda **_: None)
            else:
                found()
            if turn:
                seconds[name].append(time.process_time() - begun)
            if isinstance(found, Trainer):
                found.close_epoch()
    return seconds


def _ratio(theirs: list[float], ours: list[float]) -> float:
    """How many times faster ours is: the median over turns."""
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=True)), 3)


class _Bare:
    """Forward, squared error, backward, step, on batches that lie ready, targets standardised beforehand.

    Under `soft` outputs are matched with targets first, since that is arithmetic which the objective asks for.
    """

    def __init__(self, run: Trainer, batches: list[Batch]) -> None:
        options = run.options
        self.reduced = precision(options, ALONE.device) == "bfloat16"
        self.network = ProjectorNetwork(run.network.shape)
        self.network.load_state_dict(run.network.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=1e-5, weight_decay=options.weight_decay, fused=True
        )
        self.soft = options.align == "soft"
        self.ready = [(batch, run.network.standardise_target(batch.targets)) for batch in batches]

    def epoch(self) -> None:
        """One pass."""
        for batch, targets in self.ready:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.reduced):
                outputs = self.network(batch.inputs, batch.input_mask)
            if self.soft:
                exists = (
                    batch.input_mask
                    if self.network.keeps_positions
                    else torch.ones_like(outputs[..., 0], dtype=torch.bool)
                )
                matched = soft_targets(outputs, targets, exists, batch.target_mask)
            else:
                matched = targets if targets.shape == outputs.shape else targets.mean(1, keepdim=True)
            torch.autograd.backward((outputs - matched).square().mean())
            self.optimizer.step()
            self.optimizer.zero_grad()


def ridge_against_linear(pairs: PairSource, count: int) -> dict[str, Any]:
    """Seconds of ridge, by alignment, and of two linear epochs, in turns, loading left out of both.

    Pairs repeat where `count` is more than there are: the arithmetic does not know.
    """
    distinct = list(pairs)
    repeated = in_memory([distinct[index % len(distinct)] for index in range(count)])
    held = in_memory(distinct[:50])
    seconds: dict[str, list[float]] = {}

    def timed(name: str, options: TrainOptions) -> None:
        records: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as output:
            train(options, repeated, held, output=output, on_epoch=records.append)
        seconds.setdefault(name, []).append(sum(record["seconds"] for record in records))

    for name, options in {
        "ridge, mean": TrainOptions(arch="ridge", align="mean"),
        "ridge, pool": TrainOptions(arch="ridge", align="pool"),
        "two linear epochs, pool": TrainOptions(arch="linear", align="pool", epochs=2),
        "ridge, soft": TrainOptions(arch="ridge", align="soft"),
        "two linear epochs, soft": TrainOptions(arch="linear", align="soft", epochs=2, objective="embedding"),
    }.items():
        timed(name, options)
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    over = {
        align: round(medians[f"ridge, {align}"] / medians[f"two linear epochs, {align}"], 3)
        for align in ("pool", "soft")
    }
    return {
        "pairs": count,
        "distinct_pairs": len(distinct),
        "seconds": medians,
        "ridge_over_two_epochs": over,
    }


def main(words: list[str]) -> None:
    """Run, and print the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--archs", nargs="*", default=["linear", "mlp", "attention"])
    parser.add_argument("--aligns", nargs="*", default=["pool", "soft"])
    parser.add_argument("--guide", action="store_true", help="only the MLP beside the guide's")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    world = Synthetic.realistic(options.width)
    if options.guide:
        found = against_guide(world, options.pairs, options.rounds)
    else:
        found = shares(world.source(options.pairs), options.archs, options.aligns, options.rounds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
