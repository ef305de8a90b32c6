"""Training through the frozen image model: a projector is right where the model answers as it does to the text.

The model samples every training picture once under its true conditioning. At states of those trajectories, the
velocity under the projector's conditioning is then held to the velocity under the true one. Embedding errors say
little about pictures (docs/steering.md); this is the picture's own error.

B batch, N pairs, K steps of sampling, C latent channels, h and w latent pixels, D hidden.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from projector.closed_form.whole_start import solve_start
from projector.data.packed import Batch
from projector.data.pairs import PairSource
from projector.data.world import World
from projector.inference.frozen_transformer import FrozenTransformer
from projector.inference.text_encoder import TextEncoder
from projector.models.resolve import MINI, ModelSource, locate
from projector.network.architectures import ProjectorNetwork
from projector.network.checkpoint import State
from projector.network.whole_map import WholeMap
from projector.options import SCENE_PIXELS, ModelPaths, TrainOptions
from projector.teaching.compose import EditedPairs
from projector.teaching.flows import Flows
from projector.teaching.passes import JUDGED_PAIRS, pictures_that_fit
from projector.teaching.trajectories import Trajectories, judged_steps
from projector.training.schedule import sampling_steps
from projector.training.worker import Trainer, precision
from shards.errors import OptionError, UsageError

IMPORTED_SIDE, IMPORTED_STEPS = 512, 8  # for pictures that no pipeline made


class Conditioner(nn.Module):
    """A network as what gives whole conditionings, so that its gradients are exchanged around that."""

    def __init__(self, network: ProjectorNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `ProjectorNetwork.conditioning`."""
        return self.network.conditioning(inputs, mask)


class ResponseTrainer(Trainer):
    """A trainer whose error is that of the image model's velocities."""

    most_judged = JUDGED_PAIRS

    def __init__(
        self,
        options: TrainOptions,
        world: World,
        train_pairs: PairSource,
        val_pairs: PairSource,
        state: State | None,
    ) -> None:
        if train_pairs.conditionings is None or val_pairs.conditionings is None or not train_pairs.template:
            raise OptionError(
                "objective = response: these pairs do not say what their pictures were made from"
            )
        if options.response == "flow" and (train_pairs.pictures is None or val_pairs.pictures is None):
            raise OptionError("response = flow: these pairs come without their pictures; use teacher")
        self._folder = image_model(options, train_pairs)
        self.model = frozen_model(
            self._folder,
            train_pairs,
            world.device,
            side=options.response_size,
            dtype=getattr(torch, precision(options, world.device)),
        )
        self._train_source, self._val_source = train_pairs, val_pairs
        super().__init__(options, world, train_pairs, val_pairs, state)

    def _prepare(self) -> None:
        """Sample this worker's pictures, as many at a time as the device has room for."""
        self.micro_batch = self.micro_batch or pictures_that_fit(self.model)
        of_train, of_val = self._train_source.conditionings, self._val_source.conditionings
        assert of_train is not None
        assert of_val is not None
        label = "image model" if self.world.rank == 0 else ""
        self._train_paths = self._paths(self._train_source, self.mine, label)
        self._val_paths = self._paths(self._val_source, self.mine_judged, "")
        self._train_edits = self._val_edits = None
        if self.options.compose > 0:
            encoder = TextEncoder.from_pretrained(self._folder, device="cpu", dtype=self.model.dtype)
            self._train_edits, self._val_edits = (
                EditedPairs(
                    self.model,
                    encoder,
                    source(part.start, part.stop),
                    first=part.start,
                    count=len(part),
                    seed=seed,
                    together=self.micro_batch,
                    label=told,
                    folder=self.options.cache,
                )
                for source, part, seed, told in (
                    (of_train, self.mine, self.options.seed, label and "image model, edits"),
                    (of_val, self.mine_judged, 0, ""),
                )
            )
        self._judged_steps = judged_steps(self.model.sigmas)

    def _paths(self, source: PairSource, part: range, label: str) -> Trajectories | Flows:
        """What velocities are held to for some pairs."""
        cache = self.options.cache
        if self.options.response == "flow":
            assert source.pictures is not None
            pictures = source.pictures(part.start, part.stop)
            return Flows(self.model, self._folder, pictures, len(part), label=label, cache=cache)
        assert source.conditionings is not None
        conditionings = source.conditionings(part.start, part.stop)
        return Trajectories(
            self.model, conditionings, len(part), together=self.micro_batch, label=label, folder=cache
        )

    def _exchanged(self) -> nn.Module:
        return Conditioner(self.network)

    def _start(self) -> None:
        """Start at the whole ridge, which is what there is to beat, or elsewhere."""
        if self.options.start == "ridge":
            if self.network.whole is None:  # no template's end, so no whole conditionings to learn
                super()._start()
            else:
                self._start_at_whole_ridge(self.network.whole)
            self.progress.ridge_val_loss = self.progress.best_val_loss
        elif self.options.start_folder is not None:
            self.progress.best_val_loss = self.validate(self.network)

    def _start_at_whole_ridge(self, whole: WholeMap) -> None:
        start = solve_start(
            self.network, self._train_source, self.train_set, self.mine, self._folder, self.world
        )
        whole.set(start.down, start.up, start.bias)
        if self.averaged is not None:
            self.averaged.load_state_dict(self.network.state_dict())
        self.progress.best_val_loss = self.validate(self.network)

    def _positions_of_all(self) -> Tensor:
        """(N,) float64: what each training pair counts, on every worker."""
        positions = torch.zeros(self.train_count, dtype=torch.float64)
        positions[self.mine.start : self.mine.stop] = self.train_set.weights.double().cpu()
        return self.world.add(positions)

    def _error(self, batch: Batch, pairs: Tensor, step: int) -> Tensor:
        """Sum over pairs of the mean squared error of velocities, each at a step of its own."""
        drawn = sampling_steps(self.train_count, self.model.steps, [self.options.seed, step])
        steps = torch.from_numpy(drawn)[pairs + self.mine.start]
        rows, exists = self.wrapped(batch.inputs, batch.input_mask)
        edited = self._composed(pairs, step)
        error = self._errors(
            self._train_paths, pairs[~edited], steps[~edited], rows[~edited], exists[~edited]
        )
        total = (error[0] * batch.weights[~edited]).sum()
        if self._train_edits is not None:
            error = self._edit_errors(
                self._train_edits, pairs[edited], steps[edited], rows[edited], exists[edited]
            )
            total = total + (error[0] * batch.weights[edited]).sum()
        return total

    def _composed(self, pairs: Tensor, step: int) -> Tensor:
        """(B,) bool: which pairs of a batch are learnt behind a prompt in this step: none in the first half of all."""
        if self._train_edits is None or step < self.total_steps // 2:
            return torch.zeros(len(pairs), dtype=torch.bool)
        drawn = np.random.default_rng([self.options.seed, step, 1]).random(self.train_count)
        chosen = torch.from_numpy(drawn)[pairs + self.mine.start] < self.options.compose
        return chosen & (self._train_edits.places[pairs] >= 0)

    def _errors(
        self, paths: Trajectories | Flows, pairs: Tensor, steps: Tensor, rows: Tensor, exists: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B,) mean squared errors of velocities under conditionings, and (B,) mean squares of the right ones."""
        if not len(pairs):
            return rows.new_zeros(0), rows.new_zeros(0)
        states, wanted = paths.at(pairs, steps)
        found = self.model.velocities(states, self.model.sigmas[steps], rows, exists)
        error, power = (x.square().flatten(1).mean(1) for x in (found - wanted, wanted))
        return error, power

    def _edit_errors(
        self, edits: EditedPairs, pairs: Tensor, steps: Tensor, rows: Tensor, exists: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same for pairs with an edit, with its prompt before the references' rows."""
        shape, places = self.network.shape, edits.places[pairs]
        if not len(places):
            return rows.new_zeros(0), rows.new_zeros(0)
        composed = edits.behind_prompts(places, rows, exists, prefix=shape.prefix, suffix=shape.suffix)
        return self._errors(edits.paths, places, steps, *composed)

    @torch.no_grad()
    def validate(self, network: ProjectorNetwork, *, restored: bool = False) -> float:
        """Squared velocity error over squared velocity, on held-out pairs of all workers."""
        del restored  # the size of rows says nothing to the image model
        network.eval()
        total = torch.zeros(2, dtype=torch.float64)
        places = torch.arange(len(self._val_paths.seeds))
        parts = torch.split(places, self.micro_batch or self.options.batch_size) if len(places) else ()
        for part, batch in zip(parts, self.val_set.batches(parts), strict=True):
            moved = batch.to(self.world.device)
            rows, exists = network.conditioning(moved.inputs, moved.input_mask)
            for step in self._judged_steps:
                steps = torch.full_like(part, step)
                sums = [self._errors(self._val_paths, part, steps, rows, exists)]
                counts = [moved.weights]
                if self._val_edits is not None:
                    has = self._val_edits.places[part] >= 0
                    sums.append(
                        self._edit_errors(self._val_edits, part[has], steps[has], rows[has], exists[has])
                    )
                    counts.append(moved.weights[has])
                for found, weights in zip(sums, counts, strict=True):
                    total += torch.stack([(each * weights).sum() for each in found]).double().cpu()
        error_sum, power_sum = self.world.add(total).tolist()
        return float(error_sum / power_sum)


def frozen_model(
    folder: str,
    pairs: PairSource,
    device: torch.device,
    *,
    side: int | None = None,
    dtype: torch.dtype | None = None,
) -> FrozenTransformer:
    """Load the image model of some pairs, to make pictures as theirs were made.

    Args:
        folder: of the pipeline.
        pairs: whose provenance says size and steps.
        device: to load to.
        side: of pictures in pixels, instead of the pairs' own.
        dtype: of its weights; None: bfloat16 on GPUs, float32 on CPUs.
    """
    picture = pairs.provenance.get("picture", {})
    otherwise = SCENE_PIXELS if Path(folder).is_relative_to(MINI) else IMPORTED_SIDE
    return FrozenTransformer.from_pretrained(
        folder,
        device=device,
        height=side or picture.get("height") or otherwise,
        width=side or picture.get("width") or otherwise,
        steps=pairs.provenance.get("steps") or IMPORTED_STEPS,
        dtype=dtype,
    )


def image_model(options: TrainOptions, pairs: PairSource) -> str:
    """The folder of the image model that made the pairs, on this machine.

    Raises:
        UsageError: it is not named and cannot be found.
    """
    models = pairs.provenance.get("models", {})
    # Of imported pictures: the pipeline whose text encoder made the conditionings.
    named = models.get("image") or models.get("text", {})
    if isinstance(options.models, ModelPaths):
        return str(locate("models.image", options.models.image)[1])
    if options.models is not None:
        named = {"id": f"{options.models}/image"}
    if not named.get("id"):
        raise OptionError(
            "objective = response: the dataset does not name the image model of its pictures; give models.image"
        )
    try:
        return ModelSource(str(named.get("id", "")), "", str(named.get("revision", "")), {}).here()
    except UsageError as error:
        raise OptionError(
            f"objective = response: the image model {named.get('id')!r} that made the dataset is not found "
            f"({error}); give models.image"
        ) from None
