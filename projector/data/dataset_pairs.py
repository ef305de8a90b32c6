"""Pairs from the committed shards of datasets.

T text tokens, V vision-language tokens, D hidden.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from projector.data.pairs import KINDS, Conditioning, Pair, PairPicture, PairSource, in_turn, joined
from projector.data.template import LOOKED_AT, Template, WholeSample, find_template, token_rms
from projector.options import Reader, TextMode, Tokens, TrainOptions
from shards.dataset.dataset import Dataset
from shards.dataset.read import read_shard
from shards.errors import OptionError, UsageError
from shards.format.commit import Commit
from shards.format.sample import KIND_CAPTION, LATENTS, Array, Sample, group_of, is_finite
from shards.stores.local import open_storage


def load_pairs(
    data: str,
    split: str,
    *,
    layer: int,
    text_mode: TextMode,
    tokens: Tokens,
    limit: int | None = None,
    whole: bool = False,
    weight: float = 1.0,
    reader: Reader = "vl",
    fixed: bool = False,
) -> PairSource:
    """The pairs of a dataset's split, read from its committed shards when asked for.

    Args:
        data: root of the dataset: local folder or s3://bucket/prefix.
        split: `train`, `val` or `test`.
        layer: of Qwen3-VL, from the end.
        text_mode: text in the VL input; `mixed` draws one of the two for each sample.
        tokens: kinds of VL tokens to keep.
        limit: use the first so many pairs; None for all.
        whole: keep template tokens and attention sinks, as the guide does.
        weight: what each pair counts.
        reader: that read the pictures, `vl` or `graft`.
        fixed: whether layer, mode, tokens and reader are those of a trained projector, so that other data are needed
            where these lack them.

    Returns:
        a source that holds no pairs itself.

    Raises:
        UsageError: no such dataset, an empty split, or a layer, mode or kind that the dataset does not hold.
    """
    dataset = Dataset.open(open_storage(data))
    commits = [commit for commit in dataset.commits() if commit.split == split]
    count = sum(commit.samples for commit in commits)
    count = count if limit is None else min(count, limit)
    if not count:
        raise UsageError(
            f"{dataset.storage.root}: split {split!r} holds no committed pairs; build more samples first"
            + (" (test_fraction), or measure on split val" if split == "test" else "")
        )
    shards = ShardReader(dataset, commits, layer, text_mode, tokens, weight, reader)
    shards.check(fixed=fixed)
    if not whole:
        shards = replace(shards, template=find_template(islice(shards.wholes(), LOOKED_AT)))
    return PairSource(
        count,
        shards.read,
        layer,
        text_mode,
        tokens,
        provenance_of(dataset),
        shards.template,
        shards.conditionings,
        shards.pictures,
    )


def training_pairs(options: TrainOptions, split: str, limit: int | None = None) -> PairSource:
    """The pairs that a training's options name, of all its datasets.

    Args:
        options: data, also, layer, text mode and tokens.
        split: `train`, `val` or `test`.
        limit: use the first so many pairs of `data`; None for all.

    Raises:
        UsageError: see `load_pairs`; or datasets of different width.
    """

    def load(root: str, weight: float, most: int | None) -> PairSource:
        return load_pairs(
            root,
            split,
            layer=options.layer,
            text_mode=options.text_mode,
            tokens=options.tokens,
            limit=most,
            whole=options.align == "guide",
            weight=weight,
            reader=options.reader,
        )

    main = load(options.data, 1.0, limit)
    return joined(main, [load(root, weight, None) for root, weight in (options.also or {}).items()])


def provenance_of(dataset: Dataset) -> dict[str, Any]:
    """Root, fingerprint and models of a dataset, without the models' file lists."""
    models = {
        name: {key: value for key, value in model.items() if key != "files"}
        if isinstance(model, dict)
        else model
        for name, model in dict(dataset.settings.get("models", {})).items()
    }
    return {
        "root": dataset.storage.root,
        "fingerprint": dataset.fingerprint,
        "models": models,
        "vl_tokens": dataset.settings.get("vl_tokens", "all"),
        "picture": picture_size(dataset.settings),
        "steps": dataset.settings.get("steps"),
        "quantize": dataset.settings.get("quantize", "none"),
    }


def picture_size(settings: Mapping[str, Any]) -> dict[str, int]:
    """The size of a dataset's pictures: `height` and `width`, or `max_side` of imported ones; empty where unknown."""
    imported = settings.get("import", {})
    return {
        key: of[key] for of in (settings, imported) for key in ("height", "width", "max_side") if key in of
    }


@dataclass(frozen=True)
class ShardReader:
    """Reads pairs from the committed shards of a split."""

    dataset: Dataset
    commits: Sequence[Commit]
    layer: int
    text_mode: TextMode
    tokens: Tokens
    weight: float = 1.0
    reader: Reader = "vl"
    template: Template | None = None
    """Leaves out template tokens and sinks; None keeps every token."""

    @property
    def modes(self) -> tuple[str, ...]:
        """The text modes that are read."""
        return ("caption", "none") if self.text_mode == "mixed" else (self.text_mode,)

    def check(self, *, fixed: bool) -> None:
        """Raise UsageError when the first sample lacks what was asked for; `fixed` as in `load_pairs`."""
        first = next(commit for commit in self.commits if commit.samples)
        sample = next(read_shard(self.dataset.storage, first, image=False))
        where = self.dataset.storage.root
        readers = self.dataset.settings.get("readers", ["vl"])
        if self.reader not in readers:
            named = f"data = {where!r}" if fixed else f"reader = {self.reader!r}"
            raise OptionError(
                f"{named}: {where} was read by {', '.join(readers)}, not by {self.reader}; build one with readers "
                f"{self.reader}"
            )
        layers, held = sample.metadata["layers"], sample.metadata["text_modes"]
        if fixed and (self.layer not in layers or not set(self.modes) <= set(held)):
            raise OptionError(
                f"data = {where!r}: holds layers {layers} and text modes {held}; the projector was trained on "
                f"layer {self.layer} and text mode {self.text_mode}: give a dataset with them, or extract them"
            )
        if self.layer not in layers:
            raise OptionError(
                f"layer = {self.layer}: {where} holds layers {layers}; choose one, or extract that layer"
            )
        if not set(self.modes) <= set(held):
            raise OptionError(
                f"text_mode = {self.text_mode!r}: {where} holds {held}; choose one, or extract that mode"
            )
        for mode in self.modes:
            if not np.isin(sample.tensors[f"{self.reader}.{mode}.kind"], KINDS[self.tokens]).any():
                if fixed:
                    raise OptionError(
                        f"data = {where!r}: text mode {mode!r} has no tokens of the kind that the projector "
                        f"was trained on, {self.tokens!r}; give another dataset"
                    )
                raise OptionError(
                    f"tokens = {self.tokens!r}: the VL input of text mode {mode!r} "
                    "has no such tokens; use `image`, or text mode `caption`"
                )

    def read(self, start: int, stop: int) -> Iterator[Pair]:
        """Pairs start to stop - 1, in the order of the shards."""
        return map(self._pair, self._between(start, stop, self._samples))

    def conditionings(self, start: int, stop: int) -> Iterator[Conditioning]:
        """What the pictures of pairs start to stop - 1 were made from; an imported one's seed is of its id."""

        def samples(commit: Commit) -> Iterator[Sample]:
            return _finite(read_shard(self.dataset.storage, commit, image=False, tensors=["text"]))

        for sample in self._between(start, stop, samples):
            yield Conditioning(_whole(sample.tensors["text"]), _seed(sample), sample.caption)

    def pictures(self, start: int, stop: int) -> Iterator[PairPicture]:
        """The pictures of pairs start to stop - 1; an imported one's seed is of its id."""
        held = bool(self.dataset.settings.get("latents"))

        def samples(commit: Commit) -> Iterator[Sample]:
            return read_shard(
                self.dataset.storage,
                commit,
                tensors=[LATENTS] if held else [],
                image_size=self.dataset.image_size,
            )

        for sample in self._between(start, stop, samples):
            latents = _whole(sample.tensors[LATENTS]) if held else None
            yield PairPicture(sample.image, latents, _seed(sample))

    def _between(
        self, start: int, stop: int, samples: Callable[[Commit], Iterator[Sample]]
    ) -> Iterator[Sample]:
        """Samples start to stop - 1, in the order of the shards."""
        return in_turn(
            [(commit.samples, partial(_sliced, partial(samples, commit))) for commit in self.commits]
        )(start, stop)

    def wholes(self) -> Iterator[WholeSample]:
        """All tokens of the samples, in the order of the shards."""
        for commit in self.commits:
            for sample in self._samples(commit):
                mode, tensors = self._mode(sample), sample.tensors
                yield WholeSample(
                    _whole(tensors["text"]),
                    torch.from_numpy(tensors["text.kind"].copy()),
                    _whole(tensors[f"{self.reader}.{mode}.{self.layer}"]),
                    torch.from_numpy(tensors[f"{self.reader}.{mode}.kind"].copy()),
                )

    def _samples(self, commit: Commit) -> Iterator[Sample]:
        names = ["text", "text.kind"]
        names += [f"{self.reader}.{mode}.{name}" for mode in self.modes for name in (self.layer, "kind")]
        return _finite(read_shard(self.dataset.storage, commit, image=False, tensors=names))

    def _mode(self, sample: Sample) -> str:
        """The text mode of a sample; under `mixed` drawn by its id, hence the same in every epoch and run."""
        return self.modes[int(sample.metadata["id"], 16) % len(self.modes)]

    def _pair(self, sample: Sample) -> Pair:
        mode, tensors = self._mode(sample), sample.tensors
        vl, kind, text = (
            tensors[f"{self.reader}.{mode}.{self.layer}"],
            tensors[f"{self.reader}.{mode}.kind"],
            tensors["text"],
        )
        if self.template is None:
            keep = np.full(len(kind), True) if self.tokens == "all" else np.isin(kind, KINDS[self.tokens])
            return Pair(
                sample.key,
                bfloat16_tensor(vl[keep]),
                torch.from_numpy(kind[keep]),
                _whole(text),
                self.weight,
                group_of(sample),
            )
        keep = np.isin(kind, KINDS[self.tokens])
        kept, caption = bfloat16_tensor(vl[keep]), bfloat16_tensor(text[tensors["text.kind"] == KIND_CAPTION])
        ordinary = token_rms(kept) <= self.template.vl_limit
        return Pair(
            sample.key,
            kept[ordinary],
            torch.from_numpy(kind[keep])[ordinary],
            caption[token_rms(caption) <= self.template.text_limit],
            self.weight,
            group_of(sample),
        )


def _finite(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Samples as they are; UsageError at one with a hidden state that is no number, which everything would become."""
    for sample in samples:
        for name, array in sample.tensors.items():
            if array.dtype == ml_dtypes.bfloat16 and not is_finite(array):
                raise UsageError(
                    f"pair {sample.key}: NaN or infinite values in {name}; run python -m shards verify on the dataset"
                )
        yield sample


def _sliced(samples: Callable[[], Iterator[Sample]], start: int, stop: int) -> Iterator[Sample]:
    return islice(samples(), start, stop)


def _seed(sample: Sample) -> int:
    """Of the noise that its picture was made from; of an imported one, drawn by its id."""
    seed = sample.metadata.get("seed")
    return int(sample.metadata["id"], 16) % 2**63 if seed is None else int(seed)


def _whole(array: Array) -> Tensor:
    """All rows as a tensor of its own memory: what is decoded from a shard may not be written to."""
    return bfloat16_tensor(array.copy())


def bfloat16_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A torch view on a numpy array of ml_dtypes.bfloat16, which torch cannot read directly."""
    return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
