"""One worker's part of a training run: its data, its steps, its share of the validation.

B batch, S inputs, M outputs, L aligned positions, D hidden. The loss is a sum of errors divided by the number
of positions in the whole batch, over all workers, so neither padding nor the split over workers weighs in it.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from projector.align import Alignment, area_weights, masked_mean, soft_targets
from projector.checkpoint import Progress, State
from projector.data import Batch, PairSource, Resident
from projector.losses import dimension_weights, masked_squared_error
from projector.networks import ProjectorNetwork, Shape
from projector.options import TrainOptions
from projector.ridge import fit_ridge
from projector.schedule import NOBODY, epoch_order, held, learning_rate
from projector.world import World
from shards.errors import UsageError
from shards.statistics import RunningStatistics

STEPS_BETWEEN_LOOKS = 50  # losses are summed, checked and reported this often: each look waits for the device
RESIDENT_SHARE = 0.7  # of the free device memory that pairs may take


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
                "use fewer train.workers or a larger train.batch_size"
            )
        self.alignment = Alignment(options.align, options.length)
        self.network = seeded_network(options, self.width)
        self.mine = held(self.train_count, options.batch_size, world.rank, world.size)
        self.train_set = self._load(train_pairs, self.mine)
        self.val_set = self._load(val_pairs, world.share(self.val_count))
        self.progress = Progress()
        if state is None:
            self.network.set_statistics(*self._statistics())
        self.network.to(world.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=0.0, weight_decay=options.weight_decay, fused=True
        )
        if state is not None:
            state.restore(self.network, self.optimizer)
            self.progress = state.progress
        self.train_set, self.val_set = self._placed(self.train_set), self._placed(self.val_set)
        self.weights = dimension_weights(options.loss, options.dim_weights, self.network.target_std)
        self.positions = self._positions_of_all()
        self.wrapped: nn.Module = self.network
        if world.size > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(self.network, device_ids=devices, broadcast_buffers=False)

    def _load(self, pairs: PairSource, part: range) -> Resident:
        return Resident.load(
            pairs.read(part.start, part.stop),
            self.alignment,
            keeps_positions=self.network.keeps_positions,
            width=self.width,
        )

    def _placed(self, resident: Resident) -> Resident:
        """Onto the GPU when it fits there; otherwise batches travel one by one."""
        if self.world.device.type != "cuda":
            return resident
        free, _ = torch.cuda.mem_get_info(self.world.device)
        return resident.to(self.world.device) if resident.bytes < RESIDENT_SHARE * free else resident

    def _statistics(self) -> tuple[RunningStatistics, RunningStatistics]:
        return (
            self.world.merge(self.train_set.inputs.statistics()),
            self.world.merge(self.train_set.targets.statistics()),
        )

    def _positions_of_all(self) -> Tensor:
        """(N,) positions of every training pair that the loss looks at, on every worker."""
        positions = torch.zeros(self.train_count, dtype=torch.int64)
        if self.alignment.kind != "soft":
            mine = self.train_set.targets.lengths.cpu()
        elif self.network.keeps_positions:
            mine = self.train_set.inputs.lengths.cpu()
        else:
            mine = torch.full((len(self.mine),), self.network.shape.queries)
        positions[self.mine.start : self.mine.stop] = mine
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
            sums = [
                self._step(order[step], progress.epoch * steps + step, options.epochs * steps)
                for step in range(first, last)
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

    def _step(self, pairs: Tensor, step: int, total: int) -> Tensor:
        """One optimizer step; returns this worker's sum of errors, divided by the whole batch's positions."""
        options, world = self.options, self.world
        rate = learning_rate(
            step, peak=options.peak_learning_rate(self.width), warmup=options.warmup(total), total=total
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pairs = pairs[pairs != NOBODY]
        positions = int(self.positions[pairs].sum())
        local = pairs[(pairs >= self.mine.start) & (pairs < self.mine.stop)] - self.mine.start
        # A worker whose places in the last batch are empty still takes part in the exchange of gradients.
        parts = (
            torch.split(local, options.micro_batch or max(1, len(local)))
            if len(local)
            else [torch.zeros(1, dtype=torch.int64)]
        )
        error = torch.zeros((), device=world.device)
        for index, part in enumerate(parts):
            exchange = index == len(parts) - 1
            with nullcontext() if exchange or world.size == 1 else self.wrapped.no_sync():  # type: ignore[operator]
                partial = self._error(self.wrapped, self.train_set, part) * (len(local) > 0) / positions
                torch.autograd.backward(partial * world.size)  # DDP divides by the number of workers
            error += partial.detach()
        if options.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), options.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return error

    def _outputs(self, network: nn.Module, batch: Batch) -> Tensor:
        """Standardised outputs (B, M, D) float32, computed at the precision asked for."""
        reduced = precision(self.options, self.world) == "bfloat16"
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=reduced):
            outputs: Tensor = network(batch.inputs, batch.input_mask)
        return outputs

    def _error(self, network: nn.Module, resident: Resident, indices: Tensor) -> Tensor:
        """Sum of the errors over the positions of some pairs that the loss looks at."""
        batch = resident.batch(indices).to(self.world.device)
        outputs = self._outputs(network, batch)
        targets, mask = self.network.standardise_target(batch.targets), batch.target_mask
        if self.alignment.kind == "soft":
            mask = output_mask(outputs, batch, keeps_positions=self.network.keeps_positions)
            targets = soft_targets(outputs, targets, mask, batch.target_mask)
        else:
            outputs = aligned_outputs(outputs, batch, keeps_positions=self.network.keeps_positions)
        return masked_squared_error(outputs, targets, mask, self.weights)

    def _held_out_error(self, indices: Tensor) -> Tensor:
        """Like `_error` on held-out pairs, but under `soft` between means, where no match can flatter."""
        if self.alignment.kind != "soft":
            return self._error(self.network, self.val_set, indices)
        batch = self.val_set.batch(indices).to(self.world.device)
        outputs = self._outputs(self.network, batch)
        mask = output_mask(outputs, batch, keeps_positions=self.network.keeps_positions)
        targets = self.network.standardise_target(batch.targets)
        means = masked_mean(outputs, mask), masked_mean(targets, batch.target_mask)
        return masked_squared_error(*means, mask[:, :1], self.weights)

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
                "Look at those, or lower train.learning_rate"
            )

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the held-out pairs of all workers."""
        self.network.eval()
        total = torch.zeros(2, dtype=torch.float64)
        mine = torch.arange(len(self.val_set.keys))
        for part in (
            torch.split(mine, self.options.micro_batch or self.options.batch_size) if len(mine) else ()
        ):
            total[0] += self._held_out_error(part).double().cpu()
        total[1] = len(mine) if self.alignment.kind == "soft" else float(self.val_set.targets.lengths.sum())
        error, positions = self.world.add(total).tolist()
        return float(error / positions)

    def close_epoch(self) -> dict[str, Any]:
        """Validate after the last step of an epoch; returns the epoch's record."""
        progress = self.progress
        order = torch.from_numpy(
            epoch_order(self.train_count, self.options.batch_size, self.options.seed, progress.epoch)
        )
        counts = torch.stack([self.positions[row[row != NOBODY]].sum() for row in order]).double()
        train_loss = float((torch.tensor(progress.losses, dtype=torch.float64) * counts).sum() / counts.sum())
        val_loss = self.validate()
        seconds = time.monotonic() - self.epoch_started
        progress.epoch += 1
        progress.losses = []
        progress.seconds += seconds
        if val_loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_epoch = val_loss, progress.epoch
        record = {
            "epoch": progress.epoch,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "best_epoch": progress.best_epoch,
            "best_val_loss": progress.best_val_loss,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": round(seconds, 4),
            "pairs_per_second": round(self.train_count / seconds, 1),
        }
        progress.history.append(record)
        return record

    def fit_in_closed_form(self) -> dict[str, Any]:
        """Ridge instead of epochs; returns the one record there is."""
        self.epoch_started = time.monotonic()
        found = fit_ridge(self.network, self.train_set, self.val_set, self.alignment, self.world)
        progress = self.progress
        progress.best_val_loss, progress.best_epoch, progress.epoch = self.validate(), 1, self.options.epochs
        progress.seconds = time.monotonic() - self.epoch_started
        record = {
            "epoch": 1,
            "train_loss": None,
            "val_loss": progress.best_val_loss,
            "best_epoch": 1,
            "best_val_loss": progress.best_val_loss,
            "learning_rate": 0.0,
            "seconds": round(progress.seconds, 4),
            "pairs_per_second": round(self.train_count / progress.seconds, 1),
            **found,
        }
        progress.history.append(record)
        return record

    def _tick(self, steps: int) -> Tick:
        progress, epochs = self.progress, self.options.epochs
        done = len(progress.losses)
        pace = (progress.seconds + time.monotonic() - self.epoch_started) / (progress.epoch * steps + done)
        left = pace * (epochs * steps - progress.epoch * steps - done)
        return Tick(progress.epoch + 1, epochs, done, steps, sum(progress.losses) / done, left)

    def restoration(self, pairs: PairSource, network: ProjectorNetwork) -> None:
        """Give a trained network its `set_restoration`, from held-out tokens as they are at inference."""
        outputs, targets = RunningStatistics(self.width), RunningStatistics(self.width)
        part = self.world.share(self.val_count)
        with torch.no_grad():
            for pair in pairs.read(part.start, part.stop):
                outputs.update(network(pair.vl[None].to(self.world.device))[0].cpu().numpy())
                targets.update(network.standardise_target(pair.text.to(self.world.device)).cpu().numpy())
        network.set_restoration(self.world.merge(outputs), self.world.merge(targets), self.options.restore)

    def summary(self, stopped: str) -> dict[str, Any]:
        """The content of summary.json."""
        progress, options = self.progress, self.options
        seconds = max(progress.seconds, 1e-9)
        return {
            "arch": options.arch,
            "parameters": self.network.parameter_count,
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "best_val_loss": progress.best_val_loss,
            "final_train_loss": progress.history[-1]["train_loss"] if progress.history else None,
            "steps": progress.epoch * -(-self.train_count // min(options.batch_size, self.train_count)),
            "train_pairs": self.train_count,
            "val_pairs": self.val_count,
            "seconds": round(progress.seconds, 3),
            "pairs_per_second": round(self.train_count * progress.epoch / seconds, 1),
            "world_size": self.world.size,
            "device": str(self.world.device),
            "precision": precision(options, self.world),
            "stopped": stopped,
        }


def output_mask(outputs: Tensor, batch: Batch, *, keeps_positions: bool) -> Tensor:
    """(B, M) bool: which outputs exist; all of them where the network has positions of its own."""
    return batch.input_mask if keeps_positions else torch.ones_like(outputs[..., 0], dtype=torch.bool)


def aligned_outputs(outputs: Tensor, batch: Batch, *, keeps_positions: bool) -> Tensor:
    """A network's outputs (B, M, D) at the target's positions (B, L, D), float32.

    Networks that keep positions were given aligned inputs; the fixed outputs of the others are spread by
    area.
    """
    if keeps_positions:
        return outputs
    lengths = batch.target_mask.sum(1)
    return area_weights(torch.full_like(lengths, outputs.shape[1]), lengths).float() @ outputs


def seeded_network(options: TrainOptions, width: int) -> ProjectorNetwork:
    """The untrained network of these options, the same everywhere; the global generator stays untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return ProjectorNetwork(Shape(options.arch, width, options.hidden_size(width), options.length))


def precision(options: TrainOptions, world: World) -> str:
    """`float32` or `bfloat16`: the option, or what suits the device."""
    if options.precision != "auto":
        return options.precision
    return "bfloat16" if world.device.type == "cuda" else "float32"
