"""Which split a sample is in: by hash of its group, so that growth and other fractions move nothing needlessly."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

SPLITS = ("train", "val", "test")
LEAST_HELD_OUT = 32  # samples that figures with an interval need, of `val` and of `test`
LARGEST_FLOOR = 5  # that floor takes at most a fifth of what is planned, so that a small dataset still trains


class Grouped(Protocol):
    """What is put into a split: by its group, and with others of the same caption."""

    @property
    def caption(self) -> str: ...
    @property
    def group(self) -> str: ...


def normalise_caption(caption: str) -> str:
    """What makes two captions the same: NFKC, case folded, runs of white space as one space, ends stripped."""
    if caption.isascii():  # which NFKC leaves as it is
        return " ".join(caption.lower().split())
    return " ".join(unicodedata.normalize("NFKC", caption).casefold().split())


def group_rank(group: str) -> int:
    """64 bits of SHA-256 over a group: `val` takes the lowest ranks, `test` the highest."""
    return int.from_bytes(hashlib.sha256(b"split:" + group.encode()).digest()[:8], "big")


def split_of(group: str, val_fraction: float, test_fraction: float) -> str:
    """The split of a group, decided by its text alone; a larger fraction keeps what a smaller one held out."""
    rank = group_rank(group)
    if rank < val_fraction * 2**64:
        return "val"
    return "test" if rank >= (1 - test_fraction) * 2**64 else "train"


@dataclass
class Splitter:
    """Gives every sample its split, segment by segment.

    By the rank of its group, but where a split would be short of its least: then the groups of the new segment that are
    next in rank join it. What an earlier segment decided stays, so growth moves no sample.

    Attributes:
        prompts: in the order in which they are taken.
        fractions: of `val` and `test`.
        least: samples of either, at least.
        moved: the split of groups, and of their captions, that joined one beyond its fraction.
    """

    prompts: Sequence[Grouped]
    fractions: Mapping[str, float]
    least: int
    moved: dict[str, str] = field(default_factory=dict)

    def splits(self, ends: Sequence[int]) -> bytearray:
        """The place in SPLITS of each sample.

        Args:
            ends: totals at which the segments end.
        """
        splits = bytearray(ends[-1])
        for start, end in pairwise((0, *ends)):
            for index in range(start, end):
                splits[index] = SPLITS.index(self._split(index, splits))
            for split, fraction in self.fractions.items():
                wanted = min(self.least, end // LARGEST_FLOOR) if fraction else 0
                if (short := wanted - splits[:end].count(SPLITS.index(split))) > 0:
                    self._fill(splits, start, end, split, short)
        return splits

    def _split(self, index: int, splits: bytearray) -> str:
        prompt = self.prompts[index]
        if self.moved and prompt.group in self.moved:
            return self.moved[prompt.group]
        split = split_of(prompt.group, self.fractions["val"], self.fractions["test"])
        if not self.moved or (beside := self.moved.get(normalise_caption(prompt.caption), split)) == split:
            return split
        # Another picture with the caption of one that was moved goes with it, unless its own group is placed already.
        placed = (SPLITS[splits[at]] for at in range(index) if self.prompts[at].group == prompt.group)
        self.moved[prompt.group] = next(placed, beside)
        return self.moved[prompt.group]

    def _fill(self, splits: bytearray, start: int, end: int, split: str, short: int) -> None:
        """Move the groups next in rank from `train` until a split is no longer short, or none is left to move."""
        members: dict[str, list[int]] = {}
        owners: dict[str, str] = {}  # group of each normalised caption; empty where several groups share it
        for index in range(end):
            prompt = self.prompts[index]
            members.setdefault(prompt.group, []).append(index)
            caption = normalise_caption(prompt.caption)
            owners[caption] = prompt.group if owners.get(caption, prompt.group) == prompt.group else ""
        for group in sorted(members, key=group_rank, reverse=split == "test"):
            captions = {normalise_caption(self.prompts[index].caption) for index in members[group]}
            if (
                splits[members[group][0]] != SPLITS.index("train")
                or members[group][0] < start  # its first samples may be committed to `train`
                or not all(owners[caption] for caption in captions)
            ):
                continue
            for index in members[group]:
                splits[index] = SPLITS.index(split)
            self.moved.update(dict.fromkeys((group, *captions), split))
            short -= len(members[group])
            if short <= 0:
                return
