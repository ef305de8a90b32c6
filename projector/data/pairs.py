"""Pairs of embeddings, and sources of them.

T text tokens, V vision-language tokens, D hidden.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from projector.data.template import Template
from projector.options import TextMode, Tokens
from shards.errors import OptionError, UsageError
from shards.format.sample import KIND_CAPTION, KIND_IMAGE

Item = TypeVar("Item")

KINDS: Mapping[Tokens, tuple[int, ...]] = {
    "image": (KIND_IMAGE,),
    "text": (KIND_CAPTION,),
    "all": (KIND_IMAGE, KIND_CAPTION),
}


@dataclass(frozen=True)
class Pair:
    """One sample's two sides, without what is the same in every sample.

    Template tokens, vision markers and attention sinks are left out of both sides (`projector.data.template`), unless a
    source was asked to keep them.
    """

    key: str
    """The sample's key in the dataset."""
    vl: Tensor
    """(V, D) Qwen3-VL hidden states, any float dtype."""
    vl_kind: Tensor
    """(V,) uint8: 1 image, 2 caption."""
    text: Tensor
    """(T, D) Qwen3-4B hidden states of the caption's tokens, any float dtype."""
    weight: float = 1.0
    """What it counts beside other pairs."""
    group: str = ""
    """What it shares with other captions of its picture; its key where nothing else is given."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", self.group or self.key)
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
        return replace(self, vl=self.vl[keep], vl_kind=self.vl_kind[keep]) if keep.any() else None


@dataclass(frozen=True)
class Conditioning:
    """What a picture was made from."""

    text: Tensor
    """(T, D) the whole text side, template included, any float dtype."""
    seed: int
    """Of the starting noise."""
    caption: str = ""
    """That `text` encodes."""


@dataclass(frozen=True)
class PairPicture:
    """The picture of a pair."""

    data: bytes
    """Encoded, PNG or what an import found."""
    latents: Tensor | None
    """(C, h, w) bfloat16 that it was decoded from; None where the dataset does not hold them."""
    seed: int
    """Of the noise that it was made from, or may be."""


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
    template: Template | None = None
    """What is the same in every sample and was left out of the pairs; None where nothing was."""
    conditionings: Callable[[int, int], Iterator[Conditioning]] | None = None
    """conditionings(start, stop): what the pictures of these pairs were made from; None where that is not known."""
    pictures: Callable[[int, int], Iterator[PairPicture]] | None = None
    """pictures(start, stop): the pictures themselves; None where they are not at hand."""

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


def joined(main: PairSource, others: Sequence[PairSource]) -> PairSource:
    """Sources one after the other; what is found in the first speaks for all."""
    for other in others:
        if other.width != main.width:
            raise OptionError(
                f"also: {other.provenance.get('root')} has width {other.width}, "
                f"{main.provenance.get('root')} has {main.width}; all datasets must be of models of one width"
            )
    if not others:
        return main
    sources = (main, *others)
    fingerprints = [str(source.provenance.get("fingerprint", "")) for source in sources]
    provenance = {
        **main.provenance,
        "fingerprint": "+".join(fingerprints),
        "also": [{"root": other.provenance.get("root"), "pairs": other.count} for other in others],
    }
    known = [(source.count, source.conditionings) for source in sources if source.conditionings]
    shown = [(source.count, source.pictures) for source in sources if source.pictures]
    return replace(
        main,
        count=sum(source.count for source in sources),
        read=in_turn([(source.count, source.read) for source in sources]),
        conditionings=None if len(known) < len(sources) else in_turn(known),
        pictures=None if len(shown) < len(sources) else in_turn(shown),
        provenance=provenance,
    )


def in_turn(
    parts: Sequence[tuple[int, Callable[[int, int], Iterator[Item]]]],
) -> Callable[[int, int], Iterator[Item]]:
    """Read several sources as one: the first one's things, then the next one's."""

    def read(start: int, stop: int) -> Iterator[Item]:
        first = 0
        for count, part in parts:
            low, high = max(start - first, 0), min(stop - first, count)
            if low < high:
                yield from part(low, high)
            first += count

    return read
