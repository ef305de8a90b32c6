"""Pairs of embeddings: from committed shards to what a training step takes.

B batch, S input positions, L aligned positions, T text tokens, V vision-language tokens, D hidden.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projector.align import Alignment, position_mask
from projector.options import TextMode, Tokens
from shards.commit import Commit
from shards.dataset import Dataset
from shards.errors import UsageError
from shards.read import read_shard
from shards.sample import KIND_CAPTION, KIND_IMAGE, Sample
from shards.statistics import RunningStatistics
from shards.storage import open_storage

ROWS_AT_A_TIME = 8192  # rows turned to float64 together: 168 MB at width 2560
KINDS: Mapping[Tokens, tuple[int, ...]] = {
    "image": (KIND_IMAGE,),
    "text": (KIND_CAPTION,),
    "all": (KIND_IMAGE, KIND_CAPTION),
}


@dataclass(frozen=True)
class Pair:
    """One sample's two sides, without what is the same in every sample.

    Template tokens, vision markers and so the attention sink (position 0 of the text side, which is causal
    and hence the same vector in every prompt) are left out of both sides: they would be 98% of a raw error
    and teach nothing.
    """

    key: str
    """The sample's key in the dataset."""
    vl: Tensor
    """(V, D) Qwen3-VL hidden states, any float dtype."""
    vl_kind: Tensor
    """(V,) uint8: 1 image, 2 caption."""
    text: Tensor
    """(T, D) Qwen3-4B hidden states of the caption's tokens, any float dtype."""

    def __post_init__(self) -> None:
        if self.vl.dim() != 2 or self.text.dim() != 2 or self.vl.shape[1] != self.text.shape[1]:
            raise UsageError(
                f"pair {self.key}: VL side {tuple(self.vl.shape)} and text side "
                f"{tuple(self.text.shape)} do not fit; both must be (tokens, D) with the same D"
            )
        if len(self.vl_kind) != len(self.vl):
            raise UsageError(
                f"pair {self.key}: {len(self.vl)} VL tokens but {len(self.vl_kind)} kinds; one each"
            )
        if not len(self.vl) or not len(self.text):
            empty = "VL" if not len(self.vl) else "text"
            raise UsageError(
                f"pair {self.key}: no {empty} tokens to learn from; choose other tokens or another text mode"
            )

    def only(self, tokens: Tokens) -> "Pair | None":
        """The pair with VL tokens of these kinds alone; None when it has none."""
        keep = torch.isin(self.vl_kind, torch.tensor(KINDS[tokens], dtype=torch.uint8))
        return Pair(self.key, self.vl[keep], self.vl_kind[keep], self.text) if keep.any() else None


@dataclass(frozen=True)
class PairSource:
    """Pairs in a fixed order that can be read in ranges, any number of times, and what they are."""

    count: int
    """Number of pairs."""
    read: Callable[[int, int], Iterator[Pair]]
    """read(start, stop): the pairs start to stop - 1."""
    layer: int
    """Qwen3-VL layer of the VL side."""
    text_mode: TextMode
    """Text in the VL input."""
    tokens: Tokens
    """Kinds of VL tokens kept."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Root and fingerprint of the dataset, and its models: goes into config.json."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Pair]:
        return self.read(0, self.count)

    @property
    def width(self) -> int:
        """D."""
        return next(self.read(0, 1)).text.shape[1]


def in_memory(
    pairs: Sequence[Pair], *, layer: int = -8, text_mode: TextMode = "caption", tokens: Tokens = "image"
) -> PairSource:
    """A source over pairs that exist already."""
    return PairSource(len(pairs), lambda start, stop: iter(pairs[start:stop]), layer, text_mode, tokens)


def load_pairs(
    data: str, split: str, *, layer: int, text_mode: TextMode, tokens: Tokens, limit: int | None = None
) -> PairSource:
    """The pairs of a dataset's split, read from its committed shards when asked for.

    Args:
        data: root of the dataset: local folder or s3://bucket/prefix.
        split: `train` or `val`.
        layer: of Qwen3-VL, from the end.
        text_mode: text in the VL input.
        tokens: kinds of VL tokens to keep.
        limit: use the first so many pairs; None for all.

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
        )
    reader = _ShardReader(dataset, commits, layer, text_mode, tokens)
    reader.check()
    return PairSource(count, reader.read, layer, text_mode, tokens, provenance_of(dataset))


def provenance_of(dataset: Dataset) -> dict[str, Any]:
    """Root, fingerprint and models of a dataset, without the models' file lists."""
    models = {
        name: {key: value for key, value in model.items() if key != "files"}
        if isinstance(model, dict)
        else model
        for name, model in dict(dataset.settings.get("models", {})).items()
    }
    return {"root": dataset.storage.root, "fingerprint": dataset.fingerprint, "models": models}


@dataclass(frozen=True)
class _ShardReader:
    dataset: Dataset
    commits: Sequence[Commit]
    layer: int
    text_mode: TextMode
    tokens: Tokens

    @property
    def _vl(self) -> str:
        return f"vl.{self.text_mode}.{self.layer}"

    @property
    def _vl_kind(self) -> str:
        return f"vl.{self.text_mode}.kind"

    def check(self) -> None:
        """Raise UsageError when the first sample lacks what was asked for."""
        first = next(commit for commit in self.commits if commit.samples)
        sample = next(read_shard(self.dataset.storage, first, image=False))
        where = self.dataset.storage.root
        layers, modes = sample.metadata["layers"], sample.metadata["text_modes"]
        if self.layer not in layers:
            raise UsageError(
                f"train.layer = {self.layer}: {where} holds layers {layers}; "
                "choose one, or extract that layer"
            )
        if self.text_mode not in modes:
            raise UsageError(
                f"train.text_mode = {self.text_mode!r}: {where} holds {modes}; "
                "choose one, or extract that mode"
            )
        if not np.isin(sample.tensors[self._vl_kind], KINDS[self.tokens]).any():
            raise UsageError(
                f"train.tokens = {self.tokens!r}: the VL input of text mode {self.text_mode!r} "
                "has no such tokens; use `image`, or text mode `caption`"
            )

    def read(self, start: int, stop: int) -> Iterator[Pair]:
        """Pairs start to stop - 1, in the order of the shards."""
        first = 0
        for commit in self.commits:
            low, high = max(start - first, 0), min(stop - first, commit.samples)
            if low < high:
                names = ("text", "text.kind", self._vl, self._vl_kind)
                samples = read_shard(self.dataset.storage, commit, image=False, tensors=names)
                yield from map(self._pair, islice(samples, low, high))
            first += commit.samples

    def _pair(self, sample: Sample) -> Pair:
        tensors = sample.tensors
        keep = np.isin(tensors[self._vl_kind], KINDS[self.tokens])
        caption = tensors["text.kind"] == KIND_CAPTION
        return Pair(
            sample.key,
            bfloat16_tensor(tensors[self._vl][keep]),
            torch.from_numpy(tensors[self._vl_kind][keep]),
            bfloat16_tensor(tensors["text"][caption]),
        )


def bfloat16_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A torch view on a numpy array of ml_dtypes.bfloat16, which torch cannot read directly."""
    return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)


@dataclass(frozen=True)
class Ragged:
    """Sequences of different length, end to end."""

    values: Tensor
    """(all positions, D)."""
    lengths: Tensor
    """(N,) int64."""

    @classmethod
    def of(cls, sequences: list[Tensor], width: int) -> "Ragged":
        """Concatenate (n, D) sequences, emptying the list so that memory never holds everything twice."""
        lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
        dtype = sequences[0].dtype if sequences else torch.bfloat16
        values = torch.empty(int(lengths.sum()), width, dtype=dtype)
        end = len(values)
        while sequences:
            last = sequences.pop()
            values[end - len(last) : end] = last
            end -= len(last)
        return cls(values, lengths)

    def to(self, device: torch.device) -> "Ragged":
        """The same on a device."""
        return Ragged(self.values.to(device), self.lengths.to(device))

    @property
    def bytes(self) -> int:
        """Size of the values in bytes."""
        return self.values.numel() * self.values.element_size()

    def statistics(self) -> RunningStatistics:
        """Per-dimension statistics over all positions, in float64."""
        statistics = RunningStatistics(self.values.shape[1])
        for block in torch.split(self.values, ROWS_AT_A_TIME):
            statistics.update(block.double().cpu().numpy())
        return statistics

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Some sequences, padded.

        Args:
            indices: (B,) int64.

        Returns:
            (B, longest, D) and the mask (B, longest), True where a position exists. Padding repeats real
            rows.
        """
        lengths = self.lengths[indices]
        starts = (self.lengths.cumsum(0) - self.lengths)[indices]
        longest = int(lengths.max()) if len(indices) else 0
        mask = position_mask(lengths, longest)
        offsets = torch.arange(longest, device=indices.device).expand_as(mask)
        rows = starts[:, None] + torch.minimum(offsets, (lengths - 1).clamp(min=0)[:, None])
        return self.values[rows.flatten()].view(len(indices), longest, -1), mask


@dataclass(frozen=True)
class Batch:
    """What one training step takes; masks are True where a position exists."""

    inputs: Tensor
    """(B, S, D) raw VL embeddings, or their aligned positions."""
    input_mask: Tensor
    """(B, S) bool."""
    targets: Tensor
    """(B, L, D) raw text embeddings at the aligned positions."""
    target_mask: Tensor
    """(B, L) bool."""

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        if self.inputs.device == device:
            return self
        return Batch(
            *(tensor.to(device) for tensor in (self.inputs, self.input_mask, self.targets, self.target_mask))
        )


@dataclass(frozen=True)
class Resident:
    """Pairs aligned once and held in memory, ready for any order of batches."""

    keys: tuple[str, ...]
    """Keys of the pairs."""
    inputs: Ragged
    """VL sides."""
    targets: Ragged
    """Text sides at the aligned positions."""

    @classmethod
    def load(
        cls,
        pairs: Iterator[Pair],
        alignment: Alignment,
        *,
        keeps_positions: bool,
        width: int,
        dtype: torch.dtype = torch.bfloat16,
    ) -> "Resident":
        """Read, align and pack pairs.

        Args:
            pairs: to read to the end; one is held at a time beside what is packed.
            alignment: of the two sides.
            keeps_positions: whether the network's output i belongs to input i.
            width: D.
            dtype: of what is held; bfloat16 as on disk, float32 in exact tests.

        Raises:
            UsageError: a pair with NaN or infinite values, which would poison all statistics; names it.
        """
        keys: list[str] = []
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        for pair in pairs:
            for side, tokens in (("VL", pair.vl), ("text", pair.text)):
                if not tokens.isfinite().all():
                    raise UsageError(
                        f"pair {pair.key}: NaN or infinite values on the {side} side; run verify on the data"
                    )
            keys.append(pair.key)
            sides = alignment.training_sides(pair.vl, pair.text, keeps_positions=keeps_positions)
            inputs.append(sides[0].to(dtype))
            targets.append(sides[1].to(dtype))
        return cls(tuple(keys), Ragged.of(inputs, width), Ragged.of(targets, width))

    def to(self, device: torch.device) -> "Resident":
        """The same on a device."""
        return Resident(self.keys, self.inputs.to(device), self.targets.to(device))

    @property
    def bytes(self) -> int:
        """Size of both sides in bytes."""
        return self.inputs.bytes + self.targets.bytes

    def batch(self, indices: Tensor) -> Batch:
        """The batch of these pairs; (B,) int64 indices."""
        indices = indices.to(self.inputs.values.device)
        return Batch(*self.inputs.gather(indices), *self.targets.gather(indices))
