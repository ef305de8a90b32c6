"""How near training comes to what the arithmetic alone takes: step rate on resident pairs, ridge against epochs."""

import statistics
import tempfile
import time
from typing import Any

import torch

from projector.data.align import soft_targets
from projector.data.packed import Batch
from projector.data.pairs import PairSource, in_memory
from projector.network.architectures import ProjectorNetwork
from projector.options import Align, Arch, TrainOptions
from projector.training.loop import train
from projector.training.worker import Trainer, precision
from projector.training.world import World

ALONE = World(0, 1, torch.device("cpu"))
ROUNDS = 3
PAIRS = 320  # ten batches


def shares(pairs: PairSource) -> dict[str, Any]:
    """Share of the bare step rate that `Trainer` reaches, by architecture and alignment, in CPU seconds."""
    some = in_memory(list(pairs.read(0, min(PAIRS, len(pairs)))))
    found: dict[str, Any] = {}
    for arch in ("linear", "mlp", "attention"):
        for align in ("pool", "soft"):
            found[f"{arch}, {align}"] = _share(some, arch, align)  # type: ignore[arg-type]
    return found


def _share(pairs: PairSource, arch: Arch, align: Align) -> dict[str, float]:
    """Ours and bare epochs in turns over the same pairs; the first turn is not counted."""
    options = TrainOptions(arch=arch, align=align, epochs=ROUNDS + 1, objective="embedding")
    run = Trainer(options, ALONE, pairs, in_memory(list(pairs.read(0, 8))), None)
    size = options.batch_size
    batches = [run.train_set.batch(part) for part in torch.split(torch.arange(len(pairs)), size)]
    bare = _Bare(run, batches)
    ours_seconds, bare_seconds = [], []
    for turn in range(ROUNDS + 1):
        begun = time.process_time()  # of this process alone: the machine may have other work
        run.epoch(on_progress=None, should_stop=None, save=lambda **_: None)
        middle = time.process_time()
        bare.epoch()
        ended = time.process_time()
        run.close_epoch()
        if turn:
            ours_seconds.append(middle - begun)
            bare_seconds.append(ended - middle)
    ours, plain = min(ours_seconds), min(bare_seconds)
    return {
        "samples_per_cpu_second": round(len(pairs) / ours, 1),
        "bare_samples_per_cpu_second": round(len(pairs) / plain, 1),
        "share_of_bare": round(plain / ours, 3),
        "target": 0.97,
    }


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
