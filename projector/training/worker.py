"""One worker's part of a training run: its data, its steps, its share of the validation.

B batch, S inputs, M outputs, L aligned positions, D hidden. The loss is a sum of errors divided by the number
of positions in the whole batch, over all workers, so neither padding nor the split over workers weighs in it.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from projector.closed_form.ridge import fit_ridge, ridge_like
from projector.data.align import Alignment
from projector.data.packed import Batch, Held, statistics_of
from projector.data.pair_storage import load_part, placed
from projector.data.pairs import PairSource
from projector.data.world import World
from projector.network.architectures import ProjectorNetwork
from projector.network.checkpoint import State, TrainingProgress
from projector.options import TrainOptions
from projector.training.losses import dimension_weights
from projector.training.objective import Objective
from projector.training.schedule import NOBODY, epoch_order, held, learning_rate
from projector.training.seeded_network import seeded_network
from shards.errors import UsageError

STEPS_BETWEEN_LOOKS = 50  # losses are summed, checked and reported this often: each look waits for the device


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the message names the step and its pairs."""


@dataclass(frozen=True)
class Tick:
    """Where a run stands, for whoever watches."""

    epoch: int
    """Epoch under way, from 1."""
    epochs: int
    """Epochs in all."""
    step: int
    """Steps done in this epoch."""
    steps: int
    """Steps in an epoch."""
    loss: float
    """Mean training loss of this epoch so far."""
    seconds_left: float
    """Estimate from the pace so far."""


class Trainer:
    """One worker's network, data and optimizer, and how far they have come."""

    most_judged: int | None = None
    """Held-out pairs that are judged at most, the first ones; None: all."""

    def __init__(
        self,
        options: TrainOptions,
        world: World,
        train_pairs: PairSource,
        val_pairs: PairSource,
        state: State | None,
    ) -> None:
        self.options = options
        self.world = world
        self.asked_to_stop = False
        self.width = train_pairs.width
        self.train_count, self.val_count = len(train_pairs), len(val_pairs)
        if min(options.batch_size, self.train_count) < world.size:
            raise UsageError(
                f"{world.size} workers cannot share batches of "
                f"{min(options.batch_size, self.train_count)} pairs; "
                "use fewer workers or a larger batch_size"
            )
        self.alignment = Alignment(options.align, options.length)
        self.network = seeded_network(options, train_pairs)
        self.micro_batch = options.micro_batch
        self.mine = held(self.train_count, options.batch_size, world.rank, world.size)
        self.mine_judged = world.share(min(self.val_count, self.most_judged or self.val_count))
        self.train_set = self._loaded(train_pairs, self.mine)
        self.val_set = self._loaded(val_pairs, self.mine_judged)
        self.progress = TrainingProgress()
        self.network.to(world.device)
        if state is None and options.start_folder is None:
            self._set_constants(train_pairs)
        self.averaged = deepcopy(self.network) if options.ema else None
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=0.0, weight_decay=options.weight_decay, fused=True
        )
        if state is not None:
            state.restore(self.network, self.optimizer, self.averaged)
            self.progress = state.progress
        weights = dimension_weights(options.loss, options.dim_weights, self.network.target_std)
        self.objective = Objective(
            self.alignment, options.loss, weights, options.std_weight, self.network.keeps_positions
        )
        self.positions = self._positions_of_all()
        self._prepare()
        if state is None:
            self._start()
        self.wrapped = self._exchanged()
        if world.size > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(self.wrapped, device_ids=devices, broadcast_buffers=False)

    def _loaded(self, pairs: PairSource, part: range) -> Held:
        """This worker's part of the pairs, where its steps read it."""
        positions = self.network.keeps_positions
        return placed(
            load_part(pairs, part, self.alignment, self.options, self.world, keeps_positions=positions),
            self.world,
        )

    def _prepare(self) -> None:
        """Make what judging and steps need beside the pairs."""

    def _exchanged(self) -> nn.Module:
        """The module whose gradients the workers exchange."""
        return self.network

    @property
    def judged(self) -> ProjectorNetwork:
        """The network that is validated and kept: the running average where there is one."""
        return self.network if self.averaged is None else self.averaged

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.options.epochs * -(-self.train_count // min(self.options.batch_size, self.train_count))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: all epochs are over, or too many went by without getting better."""
        progress, patience = self.progress, self.options.patience
        stale = patience is not None and progress.epoch - progress.best_epoch >= patience
        return progress.epoch >= self.options.epochs or stale

    def _set_constants(self, pairs: PairSource) -> None:
        """Measure what the network holds and does not learn; the guide standardises nothing."""
        if self.options.recipe != "guide" or self.options.arch == "ridge":
            self.network.set_statistics(
                *(
                    self.world.merge(statistics_of(side, self.width))
                    for side in (self.train_set.inputs, self.train_set.targets)
                )
            )
        if pairs.template is not None:
            self.network.text_prefix.copy_(pairs.template.prefix)
            if self.network.shape.suffix:
                self.network.text_suffix.copy_(pairs.template.suffix)

    def _start(self) -> None:
        """Bring the network to where it starts, and learn what there is to beat: ridge on the same pairs."""
        options, progress = self.options, self.progress
        if options.arch == "ridge" or options.align in ("statistics", "guide"):
            return
        ridge, _ = ridge_like(self.network, self.train_set, self.val_set, self.alignment, self.world)
        progress.ridge_val_loss = self.validate(ridge)
        if options.start == "ridge" and self.network.whole is None:
            self.network.start_from(cast(nn.Linear, ridge.core))
            if self.averaged is not None:
                self.averaged.load_state_dict(self.network.state_dict())
        if options.start == "ridge" or options.start_folder is not None:
            progress.best_val_loss = self.validate(self.network)

    def _positions_of_all(self) -> Tensor:
        """(N,) float64: weighted positions of every training pair that the loss looks at, on every worker."""
        lengths = self.train_set.inputs.lengths.cpu(), self.train_set.targets.lengths.cpu()
        mine = self.objective.positions(*lengths, self.network.shape.queries)
        positions = torch.zeros(self.train_count, dtype=torch.float64)
        positions[self.mine.start : self.mine.stop] = mine * self.train_set.weights.cpu()
        return self.world.add(positions)

    def epoch(
        self,
        *,
        on_progress: Callable[[Tick], None] | None,
        should_stop: Callable[[], bool] | None,
        save: Callable[..., None],
    ) -> bool:
        """Take the steps that the epoch under way still lacks; False when asked to stop before its end."""
        options, progress = self.options, self.progress
        order = torch.from_numpy(
            epoch_order(self.train_count, options.batch_size, options.seed, progress.epoch)
        )
        steps = len(order)
        self.epoch_started = saved = time.monotonic()
        self.network.train()
        first = len(progress.losses)
        while first < steps:
            last = min(first + STEPS_BETWEEN_LOOKS, steps)
            plans = [self._parts(order[step]) for step in range(first, last)]
            batches = self.train_set.batches([part for plan in plans for part in plan])
            sums = [
                self._step(order[first + i], plan, batches, progress.epoch * steps + first + i)
                for i, plan in enumerate(plans)
            ]
            asked = should_stop is not None and should_stop()
            seen = self.world.add(torch.cat([torch.stack(sums), sums[0].new_tensor([float(asked)])])).tolist()
            self._check_finite(seen[:-1], order[first:last], first)
            progress.losses += seen[:-1]
            self.asked_to_stop = bool(seen[-1])
            first = last
            if on_progress:
                on_progress(self._tick(steps))
            if first < steps and self.asked_to_stop:
                progress.seconds += time.monotonic() - self.epoch_started
                return False
            if first < steps and time.monotonic() - saved > options.checkpoint_seconds:
                saved = time.monotonic()
                save(best=False)
        return True

    def _parts(self, pairs: Tensor) -> list[Tensor]:
        """This worker's pairs of a batch, as indices into its own, in pieces of the micro batch.

        A worker whose places in the last batch are empty still takes part in the exchange of gradients, with a
        pair that counts nothing.
        """
        local = pairs[(pairs >= self.mine.start) & (pairs < self.mine.stop)] - self.mine.start
        if not len(local):
            return [torch.zeros(1, dtype=torch.int64)]
        return list(torch.split(local, self.micro_batch or len(local)))

    def _step(self, pairs: Tensor, parts: Sequence[Tensor], batches: Iterator[Batch], step: int) -> Tensor:
        """One optimizer step; returns this worker's sum of errors, divided by the whole batch's positions."""
        options, world = self.options, self.world
        total = self.total_steps
        rate = learning_rate(
            step, peak=options.peak_learning_rate(self.width), warmup=options.warmup(total), total=total
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pairs = pairs[pairs != NOBODY]
        positions = float(self.positions[pairs].sum())
        counts = bool(((pairs >= self.mine.start) & (pairs < self.mine.stop)).any())
        error = torch.zeros((), device=world.device)
        for index in range(len(parts)):
            exchange = index == len(parts) - 1
            with nullcontext() if exchange or world.size == 1 else self.wrapped.no_sync():  # type: ignore[operator]
                batch = next(batches).to(world.device)
                partial = self._error(batch, parts[index], step) * counts / positions
                torch.autograd.backward(partial * world.size)  # DDP divides by the number of workers
            error += partial.detach()
        if options.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), options.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.averaged is not None and options.ema is not None:
            with torch.no_grad():
                for average, current in zip(
                    self.averaged.parameters(), self.network.parameters(), strict=True
                ):
                    average.lerp_(current, 1 - options.ema)
        return error

    def _error(self, batch: Batch, pairs: Tensor, step: int) -> Tensor:
        """Sum of the errors of a batch.

        Args:
            batch: of this worker's pairs.
            pairs: (B,) int64 their places among this worker's.
            step: optimizer step, from 0.
        """
        del pairs, step
        outputs, targets = self._sides(self.wrapped, batch)
        return self.objective.error(outputs, targets, batch)

    def _sides(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Outputs and targets of a batch, standardised float32, computed at the precision asked for."""
        reduced = precision(self.options, self.world.device) == "bfloat16"
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=reduced):
            outputs: Tensor = network(batch.inputs, batch.input_mask)
        return outputs, self.network.standardise_target(batch.targets)

    def _check_finite(self, losses: list[float], order: Tensor, first: int) -> None:
        for offset, loss in enumerate(losses):
            if math.isfinite(loss):
                continue
            pairs = order[offset][order[offset] != NOBODY]
            keys = [
                self.train_set.keys[pair - self.mine.start] for pair in pairs.tolist() if pair in self.mine
            ]
            raise NonFiniteLossError(
                f"the loss became {loss} in epoch {self.progress.epoch + 1}, step {first + offset + 1}; "
                f"pairs of this worker in that batch: {', '.join(keys)}. "
                "Look at those, or lower learning_rate"
            )

    @torch.no_grad()
    def validate(self, network: ProjectorNetwork, *, restored: bool = False) -> float:
        """Mean loss over the held-out pairs of all workers, of plain outputs or of restored ones."""
        network.eval()
        total = torch.zeros(2, dtype=torch.float64)
        parts = torch.split(torch.arange(len(self.val_set.keys)), self.micro_batch or self.options.batch_size)
        for batch in self.val_set.batches(parts if self.val_set.keys else ()):
            moved = batch.to(self.world.device)
            outputs, targets = self._sides(network, moved)
            outputs = network.restored(outputs) if restored else outputs
            total += self.objective.judge(outputs, targets, moved).cpu()
        error, count = self.world.add(total).tolist()
        return float(error / count)

    def close_epoch(self) -> dict[str, Any]:
        """Validate after the last step of an epoch; returns the epoch's record."""
        progress = self.progress
        order = torch.from_numpy(
            epoch_order(self.train_count, self.options.batch_size, self.options.seed, progress.epoch)
        )
        counts = torch.stack([self.positions[row[row != NOBODY]].sum() for row in order]).double()
        train_loss = float((torch.tensor(progress.losses, dtype=torch.float64) * counts).sum() / counts.sum())
        val_loss = self.validate(self.judged)
        seconds = time.monotonic() - self.epoch_started
        progress.epoch += 1
        progress.losses = []
        progress.seconds += seconds
        if val_loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_epoch = val_loss, progress.epoch
        return self._recorded(progress.epoch, train_loss, val_loss, seconds)

    def fit_in_closed_form(self) -> dict[str, Any]:
        """Ridge, or each dimension by itself, instead of epochs; returns the one record there is."""
        self.epoch_started = time.monotonic()
        found: dict[str, float] = {}
        if self.options.align == "statistics":
            with torch.no_grad():
                nn.init.eye_(cast(nn.Linear, self.network.core).weight)
        else:
            found = fit_ridge(self.network, self.train_set, self.val_set, self.alignment, self.world)
        progress = self.progress
        progress.best_val_loss, progress.best_epoch = self.validate(self.network), 1
        progress.epoch = self.options.epochs
        progress.seconds = time.monotonic() - self.epoch_started
        return self._recorded(1, None, progress.best_val_loss, progress.seconds, **found)

    def _recorded(
        self, epoch: int, train_loss: float | None, val_loss: float, seconds: float, **more: float
    ) -> dict[str, Any]:
        """Put an epoch's record into the history, and return it."""
        record = {
            "epoch": epoch,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "best_epoch": self.progress.best_epoch,
            "best_val_loss": self.progress.best_val_loss,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": round(seconds, 4),
            "pairs_per_second": round(self.train_count / seconds, 1),
            **more,
        }
        self.progress.history.append(record)
        return record

    def _tick(self, steps: int) -> Tick:
        progress, epochs = self.progress, self.options.epochs
        done = len(progress.losses)
        pace = (progress.seconds + time.monotonic() - self.epoch_started) / (progress.epoch * steps + done)
        left = pace * (epochs * steps - progress.epoch * steps - done)
        return Tick(progress.epoch + 1, epochs, done, steps, sum(progress.losses) / done, left)


def precision(options: TrainOptions, device: torch.device) -> str:
    """`float32` or `bfloat16`: the option, or what suits the device."""
    if options.precision != "auto":
        return options.precision
    return "bfloat16" if device.type == "cuda" else "float32"
