"""What the training benchmark measures a method by, on held-out samples that neither trained nor chose anything."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import guide
import numpy as np
import torch
from synthetic import PREFIX, ContentProbe, Synthetic
from synthetic_files import write_guide_files, write_shards
from torch import Tensor, nn

from projector.closed_form.ridge import fit_ridge
from projector.data.align import Alignment
from projector.data.dataset_pairs import load_pairs
from projector.data.packed import Held as HeldPairs
from projector.data.packed import Ragged, statistics_of
from projector.data.pairs import Pair, PairSource
from projector.data.world import World
from projector.evaluation.baselines import TrainStatistics
from projector.evaluation.distances import random_directions
from projector.evaluation.metrics import Metrics, Standard
from projector.network.architectures import ProjectorNetwork, Shape
from projector.network.checkpoint import WEIGHTS
from projector.network.projector import Projector
from projector.options import TrainOptions
from projector.training.loop import train
from projector.training.worker import Tick
from shards.format.splits import split_of

DIRECTIONS = 64
VAL_FRACTION = 0.15
FIGURES = ("content_probe", "sliced_wasserstein", "dims_outside", "mse_standardized", "r2", "recall_at_1")


@dataclass(frozen=True)
class Held:
    """One held-out sample."""

    pair: Pair
    """Image tokens and caption tokens."""
    whole: Tensor
    """(V, D) all that the VL encoder gives, template and sink included, no caption."""


Apply = Callable[[Held], Tensor]


class Bench:
    """One world on disk, as shards and as the guide's files, with its held-out samples.

    Args:
        folder: for both.
        world: the samples.
        pairs, val, test: how many train, choose and are held out.
    """

    def __init__(self, folder: Path, world: Synthetic, pairs: int, val: int, test: int) -> None:
        self.folder, self.world, self.pairs, self.val, self.test = folder, world, pairs, val, test
        self.shards, self.files = folder / "shards", folder / "guide"
        splits = self._splits()
        self.count = 1 + max(index for part in splits.values() for index in part)
        index_of = write_shards(str(self.shards), world, self.count, val_fraction=VAL_FRACTION)
        kept = {split: self.source(split) for split in ("train", "val")}
        self.indices = {
            split: [index for key, index in index_of.items() if key.startswith(split)][: len(source)]
            for split, source in kept.items()
        }
        write_guide_files(self.files, world, self.indices, text_mode="none")

    def _splits(self) -> dict[str, list[int]]:
        """The first indices that fill both splits."""
        splits: dict[str, list[int]] = {"train": [], "val": []}
        wanted, index = {"train": self.pairs, "val": self.val}, 0
        while any(len(splits[name]) < wanted[name] for name in splits):
            splits[split_of(f"synthetic pair {index:06d}", VAL_FRACTION, 0.0)].append(index)
            index += 1
        return splits

    def source(self, split: str, text_mode: str = "none", tokens: str = "image") -> PairSource:
        """Pairs of a split, from the shards."""
        limit = self.pairs if split == "train" else self.val
        return load_pairs(
            str(self.shards),
            split,
            layer=-8,
            text_mode=text_mode,
            tokens=tokens,
            limit=limit,  # type: ignore[arg-type]
        )

    def held(self, count: int | None = None) -> Iterator[Held]:
        """The held-out samples."""
        for pair in self.world.source(count or self.test, first=self.count):
            whole = self.world.encodings(int(pair.key.split("-")[1]), ("none",))["vl.none"][0]
            yield Held(pair, torch.from_numpy(whole))

    @cached_property
    def reference(self) -> TrainStatistics:
        """Statistics of the training split."""
        return TrainStatistics.of(self.source("train"))

    @cached_property
    def probe(self) -> ContentProbe:
        """The content probe of this world."""
        return ContentProbe.fit(self.source("train"), self.world.latents(self.indices["train"]))

    @torch.no_grad()
    def measure(self, methods: dict[str, Apply], count: int | None = None) -> dict[str, dict[str, float]]:
        """Figures of methods, all on the same samples; `mse_standardized`, `r2` and recall are of means."""
        directions = random_directions(self.world.width, DIRECTIONS, 0)
        standard = Standard(self.reference.targets.mean, self.reference.target_std, directions)
        measured = {name: Metrics(standard, replicates=0) for name in methods}
        readings: dict[str, list[Any]] = {name: [] for name in methods}
        for sample in self.held(count):
            text = sample.pair.text.double()
            target = standard.target(sample.pair.key, text.mean(0, keepdim=True), text, replicates=0)
            for name, apply in methods.items():
                tokens = apply(sample).double()
                measured[name].update(target, tokens.mean(0, keepdim=True), tokens)
                readings[name].append(self.probe.read(tokens))
        truth = self.world.latents(range(self.count, self.count + (count or self.test)))
        found = {}
        for name, metrics in measured.items():
            result = metrics.result() | {"content_probe": self.probe.score(np.array(readings[name]), truth)}
            result["dims_outside"] = result["outlier_dims"] + result["collapsed_dims"]
            names = (*FIGURES, "rms_r2", "rms_cosine")
            found[name] = {figure: round(float(result[figure]), 4) for figure in names}
        return found


def untrained(bench: Bench) -> dict[str, Apply]:
    """Methods without training, and what real caption tokens score."""
    methods: dict[str, Apply] = {"real text tokens": lambda sample: sample.pair.text}
    names = {"no_input": "no input", "identity": "identity", "per_dim_norm": "per-dimension normalisation"}
    for key, method in bench.reference.baselines().items():
        if key in names:
            methods[names[key]] = lambda sample, method=method: method.apply(sample.pair.vl.float())
    return methods


def of_guide(network: nn.Module) -> dict[str, Apply]:
    """A network of the guide at inference: raw tokens in, as its text has it.

    Networks that keep positions are applied to the image tokens. Attention gets all tokens; its 64 outputs
    answer for the template, the caption and the padding; `caption rows` keeps, generously, those that the
    true caption's length says are the caption's.
    """
    if not isinstance(network, guide.QueryAttention):
        return {"": lambda sample: network(sample.pair.vl.float())}
    return {
        "": lambda sample: network(sample.whole[None])[0],
        " (caption rows)": lambda sample: network(sample.whole[None])[0][
            PREFIX : PREFIX + len(sample.pair.text)
        ],
    }


def guide_ridge(bench: Bench) -> Apply:
    """Ridge in closed form on the guide's pooled positions, zeros, template and sink included."""
    sets = []
    for split in ("train", "val"):
        files = guide.PtFiles(bench.files / split)
        sides = zip(*(files[i] for i in range(len(files))), strict=True)
        vl, text = (Ragged.of(list(side), bench.world.width) for side in sides)
        keys = tuple(map(str, range(len(files))))
        sets.append(HeldPairs(keys, vl, text, torch.ones(len(files))))
    network = ProjectorNetwork(Shape("ridge", bench.world.width, hidden=0, queries=0))
    network.set_statistics(
        *(statistics_of(side, bench.world.width) for side in (sets[0].inputs, sets[0].targets))
    )
    fit_ridge(network, *sets, Alignment("per_token", guide.QUERIES), World(0, 1, torch.device("cpu")))
    return lambda sample: network.project(sample.pair.vl[None].float())[0]


def of_projector(projector: Projector, restore: float) -> Apply:
    """A trained projector at a strength of restoration."""

    def apply(sample: Held) -> Tensor:
        projector.restore = restore
        return projector(sample.pair.vl.float())

    return apply


def trained(
    bench: Bench,
    options: TrainOptions,
    *,
    text_mode: str = "none",
    tokens: str = "image",
    on_start: Callable[[float, Projector], None] | None = None,
    on_epoch: Callable[[dict[str, Any], Projector], None] | None = None,
) -> tuple[Projector, dict[str, Any], float]:
    """Train as the job does, from shards; returns projector, summary and seconds with loading.

    `on_start` is called once with what a network starts from and the seconds after which that lay on disk.
    """
    with tempfile.TemporaryDirectory() as output:
        begun, began = time.perf_counter(), time.time()
        started = False

        def look_at_start(tick: Tick) -> None:
            """Before the first epoch is saved, the kept network is still the start."""
            nonlocal started
            if on_start and not started and tick.epoch == 1:
                on_start((Path(output) / WEIGHTS).stat().st_mtime - began, Projector.from_pretrained(output))
            started = True

        def look(record: dict[str, Any]) -> None:
            if on_epoch:
                on_epoch(record, Projector.from_pretrained(output))

        summary = train(
            options,
            bench.source("train", text_mode, tokens),
            bench.source("val", text_mode, tokens),
            output=output,
            on_progress=look_at_start,
            on_epoch=look,
        )
        return Projector.from_pretrained(output), summary, time.perf_counter() - begun
