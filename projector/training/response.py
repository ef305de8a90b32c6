"""Training through the frozen image model: a projector is right where the model answers as it does to the text.

The model samples every training picture once under its true conditioning. At states of those trajectories, the
velocity under the projector's conditioning is then held to the velocity under the true one. Embedding errors say
little about pictures (docs/steering.md); this is the picture's own error.

B batch, N pairs, K steps of sampling, C latent channels, h and w latent pixels, D hidden.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from projector.data.packed import Batch, Packed, Ragged, Rows, room_in_memory
from projector.data.pairs import Conditioning, PairSource
from projector.models.frozen_transformer import FrozenTransformer, padded_length
from projector.models.resolve import ModelSource, locate
from projector.network.architectures import ProjectorNetwork
from projector.network.checkpoint import State
from projector.options import ModelPaths, TrainOptions
from projector.training.pair_storage import RESIDENT_SHARE
from projector.training.worker import Trainer
from projector.training.world import World
from shards.errors import UsageError

SAMPLED_TOGETHER = 32  # pictures
SORTED_TOGETHER = 512  # pairs looked at to find some of one length
JUDGED_AT = (0.9, 0.6)  # noise levels whose velocity error ranks projectors as their pictures do
JUDGED_PAIRS = 256  # held-out pairs at most
IMPORTED_SIDE, IMPORTED_STEPS = 512, 8  # for pictures that no pipeline made
REPORT_SECONDS = 10.0


class Conditioner(nn.Module):
    """A network as what gives whole conditionings, so that its gradients are exchanged around that."""

    def __init__(self, network: ProjectorNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `ProjectorNetwork.conditioning`."""
        return self.network.conditioning(inputs, mask)


class Trajectories:
    """What the frozen model did for some pairs.

    Args:
        model: the frozen model.
        conditionings: of the pairs, in their order.
        count: how many.
        label: what progress lines call them; "" for none.
        folder: local folder for what does not fit into memory.
    """

    def __init__(
        self,
        model: FrozenTransformer,
        conditionings: Iterator[Conditioning],
        count: int,
        *,
        label: str = "",
        folder: str | None = None,
    ) -> None:
        self._model, self._label, self._count = model, label, count
        dtype = torch.bfloat16 if model.device.type == "cuda" else torch.float32
        size = count * model.steps * model.numbers * torch.empty(0, dtype=dtype).element_size()
        kept: list[Tensor] | Packed = []
        if size > RESIDENT_SHARE * room_in_memory():
            kept = Packed(model.numbers, dtype, folder)
        self.seeds: list[int] = []
        self._begun = self._said = time.monotonic()
        while block := [item for item, _ in zip(conditionings, range(SORTED_TOGETHER), strict=False)]:
            for velocities in self._sampled(block):
                kept.append(velocities.to("cpu", dtype))
            self.seeds += [item.seed for item in block]
        self._rows: Rows = kept.closed() if isinstance(kept, Packed) else Ragged.of(kept, model.numbers)

    def at(self, pairs: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Where some pairs' pictures were before a step, and how they went on.

        Args:
            pairs: (B,) int64 places of pairs, on the CPU.
            steps: (B,) int64 steps, from 0, on the CPU.

        Returns:
            (B, C, h, w) float32 states, and (B, C, h, w) float32 velocities.
        """
        noise = self._model.noise([self.seeds[pair] for pair in pairs.tolist()])
        velocities, _ = self._rows.gather(pairs)
        velocities = velocities.float().view(len(pairs), self._model.steps, *noise.shape[1:]).to(noise.device)
        moved = steps.to(noise.device)
        states = self._model.states(noise, velocities, moved)
        return states, velocities[torch.arange(len(pairs), device=noise.device), moved]

    def _sampled(self, block: Sequence[Conditioning]) -> list[Tensor]:
        """(K, C * h * w) each; pictures of one padded length are sampled together."""
        found: dict[int, Tensor] = {}
        order = sorted(range(len(block)), key=lambda place: padded_length(len(block[place].text)))
        for start in range(0, len(order), SAMPLED_TOGETHER):
            part = order[start : start + SAMPLED_TOGETHER]
            velocities = self._model.trajectory(
                [block[place].text for place in part], [block[place].seed for place in part]
            )
            found |= {place: row.flatten(1) for place, row in zip(part, velocities, strict=True)}
            self._report(len(self.seeds) + len(found))
        return [found[place] for place in range(len(block))]

    def _report(self, done: int) -> None:
        now = time.monotonic()
        if not self._label or now - self._said < REPORT_SECONDS:
            return
        self._said = now
        rate = done / (now - self._begun)
        left = (self._count - done) / rate
        print(
            f"{self._label}: {done} of {self._count} pictures, {rate:.1f} a second, {left:.0f} s left",
            flush=True,
        )


class ResponseTrainer(Trainer):
    """A trainer whose error is that of the image model's velocities."""

    def __init__(
        self,
        options: TrainOptions,
        world: World,
        train_pairs: PairSource,
        val_pairs: PairSource,
        state: State | None,
    ) -> None:
        if train_pairs.conditionings is None or val_pairs.conditionings is None or not train_pairs.template:
            raise UsageError(
                "train.objective = response: these pairs do not say what their pictures were made from"
            )
        picture = train_pairs.provenance.get("picture", {})
        side = options.response_size
        self.model = FrozenTransformer.from_pretrained(
            image_model(options, train_pairs),
            device=world.device,
            height=side or picture.get("height") or IMPORTED_SIDE,
            width=side or picture.get("width") or IMPORTED_SIDE,
            steps=train_pairs.provenance.get("steps") or IMPORTED_STEPS,
        )
        self._sources = train_pairs.conditionings, val_pairs.conditionings
        super().__init__(options, world, train_pairs, val_pairs, state)

    def _prepare(self) -> None:
        """Sample this worker's pictures."""
        of_train, of_val = self._sources
        judged = self._judged_part()
        label = "image model" if self.world.rank == 0 else ""
        self._train_paths = Trajectories(
            self.model,
            of_train(self.mine.start, self.mine.stop),
            len(self.mine),
            label=label,
            folder=self.options.cache,
        )
        self._val_paths = Trajectories(
            self.model, of_val(judged.start, judged.stop), len(judged), folder=self.options.cache
        )
        levels = self.model.sigmas[:-1]
        self._judged_steps = sorted({int((levels - level).abs().argmin()) for level in JUDGED_AT})

    def _judged_part(self) -> range:
        """The first of this worker's held-out pairs, its share of JUDGED_PAIRS."""
        part = self.world.share(self.val_count)
        most = -(-JUDGED_PAIRS // self.world.size)
        return range(part.start, min(part.stop, part.start + most))

    def _exchanged(self) -> nn.Module:
        return Conditioner(self.network)

    def _start(self) -> None:
        """Start from ridge, whose rows with the template's mean end are what there is to beat; or elsewhere."""
        super()._start()
        ridge = self.options.start == "ridge"
        self.progress.ridge_val_loss = self.progress.best_val_loss if ridge else None

    def _positions_of_all(self) -> Tensor:
        """(N,) float64: what each training pair counts, on every worker."""
        positions = torch.zeros(self.train_count, dtype=torch.float64)
        positions[self.mine.start : self.mine.stop] = self.train_set.weights.double().cpu()
        return self.world.add(positions)

    def _error(self, batch: Batch, pairs: Tensor, step: int) -> Tensor:
        """Sum over pairs of the mean squared error of velocities, each at a step of its own."""
        drawn = np.random.default_rng([self.options.seed, step]).integers(
            self.model.steps, size=self.train_count
        )
        steps = torch.from_numpy(drawn)[pairs + self.mine.start]
        states, wanted = self._train_paths.at(pairs, steps)
        rows, exists = self.wrapped(batch.inputs, batch.input_mask)
        found = self.model.velocities(states, self.model.sigmas[steps], rows, exists)
        return ((found - wanted).square().flatten(1).mean(1) * batch.weights).sum()

    @torch.no_grad()
    def validate(self, network: ProjectorNetwork, *, restored: bool = False) -> float:
        """Squared velocity error over squared velocity, on held-out pairs of all workers."""
        del restored  # the size of rows says nothing to the image model
        network.eval()
        total = torch.zeros(2, dtype=torch.float64)
        places = torch.arange(len(self._val_paths.seeds))
        parts = (
            torch.split(places, self.options.micro_batch or self.options.batch_size) if len(places) else ()
        )
        for part, batch in zip(parts, self.val_set.batches(parts), strict=True):
            moved = batch.to(self.world.device)
            rows, exists = network.conditioning(moved.inputs, moved.input_mask)
            for step in self._judged_steps:
                steps = torch.full_like(part, step)
                states, wanted = self._val_paths.at(part, steps)
                found = self.model.velocities(states, self.model.sigmas[steps], rows, exists)
                error, power = (
                    x.square().flatten(1).mean(1) * moved.weights for x in (found - wanted, wanted)
                )
                total += torch.stack([error.sum(), power.sum()]).double().cpu()
        error_sum, power_sum = self.world.add(total).tolist()
        return float(error_sum / power_sum)


def image_model(options: TrainOptions, pairs: PairSource) -> str:
    """The folder of the image model that made the pairs, on this machine.

    Raises:
        UsageError: it is not named and cannot be found.
    """
    named = pairs.provenance.get("models", {}).get("image", {})
    if isinstance(options.models, ModelPaths):
        return str(locate("train.models.image", options.models.image)[1])
    if options.models is not None:
        named = {"id": f"{options.models}/image"}
    try:
        return ModelSource(str(named.get("id", "")), "", str(named.get("revision", "")), {}).here()
    except UsageError as error:
        raise UsageError(
            f"train.objective = response: the image model {named.get('id')!r} that made the dataset is not found "
            f"({error}); give models.image"
        ) from None
