"""The plan: which sample goes where, decided before anything runs and never changed by growth.

Everything here is pure, and a sample is put together only when it is asked for, so that a plan of a million takes
some megabytes. Prompts are taken in order; a sample's split is by hash of its group; each split
fills its shards one after the other. A plan is grown in segments: at the end of each one the last, partial shard of
every split is closed, so that shards which may be committed already keep their samples.
"""

import hashlib
import json
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Protocol, overload

from shards.errors import OptionError
from shards.format.splits import SPLITS, Splitter

MAX_SHARDS = 1_000_000  # six digits in a shard's name
MAX_PER_SHARD = 10_000  # four digits in a key
# The end of a segment lies in small shards, so that no builder works on alone for the length of a large one.
TAIL_SHARE = 8  # an eighth of the samples
TAIL_PARTS = (4, 8)  # half of them in quarters of a full shard, half in eighths


Segment = (
    int | tuple[str, ...]
)  # a growth record: the new total of samples, or the ids of failed ones to try again


class Captioned(Protocol):
    """Anything with a caption.

    Attributes:
        caption: as the user gave it.
        content, style, subject: where it stands in the prompt space.
        identity: the sample's id, 16 hex digits, one of its kind in the dataset.
        group: what stands with others of the same group in one split.
    """

    @property
    def caption(self) -> str: ...
    @property
    def content(self) -> str: ...
    @property
    def style(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def group(self) -> str: ...


@dataclass(frozen=True)
class PlannedSample:
    """One sample to make.

    Attributes:
        id: 16 hex digits; of a prompt, the first of its caption's SHA-256.
        index: its place in the plan.
        caption: as the user gave it.
        content, style, subject: categories, empty where unknown.
        seed: of the image's noise, 63 bits, a hash of run seed and id.
        split: `train`, `val` or `test`.
        shard: number of its shard within the split.
        position: its place within the shard.
    """

    id: str
    index: int
    caption: str
    content: str
    style: str
    subject: str
    seed: int
    split: str
    shard: int
    position: int

    @property
    def key(self) -> str:
        """The WebDataset key, without dots."""
        return f"{self.split}-{self.shard:06d}-{self.position:04d}"


@dataclass(frozen=True)
class PlannedShard:
    """One shard to make: its split, its number there and its samples in order."""

    split: str
    index: int
    samples: Sequence[PlannedSample]

    @property
    def name(self) -> str:
        """`train-000003`."""
        return f"{self.split}-{self.index:06d}"

    def spelled_out(self) -> "PlannedShard":
        """The same with its samples in memory, to be sent to another process without all prompts."""
        return replace(self, samples=tuple(self.samples))

    @cached_property
    def slice_hash(self) -> str:
        """SHA-256 of everything that the plan says about the shard."""
        text = json.dumps([asdict(sample) for sample in self.samples], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class _Samples(Sequence[PlannedSample]):
    """The samples of a shard, each put together when it is asked for."""

    prompts: Sequence[Captioned]
    indices: "array[int]"
    run_seed: int
    split: str
    shard: int

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, position: int) -> PlannedSample: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[PlannedSample, ...]: ...
    def __getitem__(self, position: int | slice) -> PlannedSample | tuple[PlannedSample, ...]:
        if isinstance(position, slice):
            return tuple(self[at] for at in range(*position.indices(len(self))))
        index = self.indices[position]
        prompt = self.prompts[index]
        identity = prompt.identity
        return PlannedSample(
            id=identity,
            index=index,
            caption=prompt.caption,
            content=prompt.content,
            style=prompt.style,
            subject=prompt.subject,
            seed=sample_seed(self.run_seed, identity),
            split=self.split,
            shard=self.shard,
            position=position % len(self),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


def _indices(samples: Sequence[PlannedSample]) -> Iterable[int]:
    """Places in the plan."""
    return samples.indices if isinstance(samples, _Samples) else (sample.index for sample in samples)


@dataclass(frozen=True)
class Plan:
    """All shards, train first; `len` counts samples.

    Attributes:
        shards: in order.
        retried: ids of the samples that are tried again somewhere.
    """

    shards: tuple[PlannedShard, ...]
    retried: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return sum(len(shard.samples) for shard in self.shards)

    def __iter__(self) -> Iterator[PlannedSample]:
        """All samples, shard by shard."""
        return (sample for shard in self.shards for sample in shard.samples)

    def first(self, count: int) -> Iterator[PlannedSample]:
        """The first samples in plan order, shard by shard; only these are put together."""
        for shard in self.shards:
            for place, index in enumerate(_indices(shard.samples)):
                if index < count:
                    yield shard.samples[place]

    @property
    def samples(self) -> list[PlannedSample]:
        """All samples in plan order, in memory."""
        return sorted(self, key=lambda sample: sample.index)

    @cached_property
    def superseded(self) -> frozenset[str]:
        """Keys at which a sample stands that is tried again further on.

        Their shards have it on record as failed. One that is made once more, say after `repair`, must not make it
        there now, since it would stand twice.
        """
        if not self.retried:
            return frozenset()
        # A split's shards stand in order, and each try is in a later one of the same split.
        samples = [sample for sample in self if sample.id in self.retried]
        last = {sample.id: sample.key for sample in samples}
        return frozenset(sample.key for sample in samples if last[sample.id] != sample.key)

    def shard(self, name: str) -> PlannedShard:
        """The shard of a name; KeyError when the plan has none."""
        return {shard.name: shard for shard in self.shards}[name]


def sample_id(caption: str) -> str:
    """First 16 hex digits of the caption's SHA-256."""
    return hashlib.sha256(caption.encode()).hexdigest()[:16]


def sample_seed(run_seed: int, identity: str) -> int:
    """63 bits of SHA-256 over `run seed:sample id`."""
    digest = hashlib.sha256(f"{run_seed}:{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_plan(
    prompts: Sequence[Captioned],
    *,
    seed: int,
    val_fraction: float,
    samples_per_shard: int,
    segments: Sequence[Segment],
    test_fraction: float = 0.0,
    least_held_out: int = 0,
) -> Plan:
    """Lay samples out in shards.

    Args:
        prompts: in the order in which they are taken.
        seed: of the run.
        val_fraction: share of the groups that choose (penalty, epoch and so on).
        samples_per_shard: in a full shard.
        segments: how the plan came about: (1000,), or, grown once, (1000, 1500), or, with two failed samples
            tried again in between, (1000, ("id", "id"), 1500).
        test_fraction: share of the groups that are reported on.
        least_held_out: samples that `val` and `test` get at least, unless its fraction is 0; never more than a fifth
            of what is planned.

    Returns:
        the plan; a longer one from the same arguments begins with it, shard for shard.

    Raises:
        UsageError: more samples than prompts, or more shards than names.
    """
    total = _checked_total(prompts, samples_per_shard, segments)
    retried = frozenset(chain.from_iterable(segment for segment in segments if not isinstance(segment, int)))
    ends = [segment for segment in segments if isinstance(segment, int)]
    laid_out = Splitter(prompts, {"val": val_fraction, "test": test_fraction}, least_held_out)
    splits = laid_out.splits(ends)
    place_of = _places(prompts, total, retried)
    shards: dict[str, list[_Samples]] = {split: [] for split in SPLITS}
    done = 0
    for segment in segments:
        if isinstance(segment, int):
            indices: Iterable[int] = range(done, segment)
            done = segment
        else:
            indices = [place_of[identity] for identity in segment]
        # In new shards: those of earlier segments may be committed.
        of_split = {split: array("I") for split in SPLITS}
        for index in indices:
            of_split[SPLITS[splits[index]]].append(index)
        for split, members in of_split.items():
            cuts = [0, *accumulate(shard_sizes(len(members), samples_per_shard))]
            for start, end in pairwise(cuts):
                shards[split].append(_Samples(prompts, members[start:end], seed, split, len(shards[split])))
    if any(len(filled) > MAX_SHARDS for filled in shards.values()):
        raise OptionError(
            f"samples_per_shard = {samples_per_shard}: more than {MAX_SHARDS:,} shards; raise it"
        )
    return Plan(
        tuple(
            PlannedShard(split, index, samples)
            for split in SPLITS
            for index, samples in enumerate(shards[split])
        ),
        retried,
    )


def _checked_total(prompts: Sequence[Captioned], samples_per_shard: int, segments: Sequence[Segment]) -> int:
    """How many prompts are taken in all."""
    totals = [segment for segment in segments if isinstance(segment, int)]
    if totals != sorted(set(totals)) or not isinstance(next(iter(segments), None), int) or totals[0] < 1:
        raise ValueError(f"segments must begin with a positive total, and totals must grow, not {segments}")
    if not 1 <= samples_per_shard <= MAX_PER_SHARD:
        raise ValueError(f"samples_per_shard must be 1 to {MAX_PER_SHARD}, not {samples_per_shard}")
    if totals[-1] > len(prompts):
        raise OptionError(
            f"samples = {totals[-1]}: the prompt source holds {len(prompts)}; "
            f"ask for at most {len(prompts)} or give more prompts"
        )
    return totals[-1]


def _places(prompts: Sequence[Captioned], count: int, wanted: Collection[str]) -> dict[str, int]:
    """The places of the wanted ids among the first prompts."""
    found = {}
    for index in range(count if wanted else 0):
        if (identity := prompts[index].identity) in wanted:
            found[identity] = index
    return found


def shard_sizes(samples: int, full: int) -> list[int]:
    """How many samples each shard of a segment holds.

    Args:
        samples: of one split in the segment.
        full: samples in a full shard.

    Returns:
        full shards and what is left over; from eight full ones on, the last eighth lies in smaller ones.
    """
    sizes: list[int] = []
    left = samples
    parts = (full, *(max(1, full // part) for part in TAIL_PARTS))
    tail = samples // TAIL_SHARE if samples >= TAIL_SHARE * full else 0
    for size, keep in zip(parts, (tail, tail // 2, 0), strict=True):
        count = (left - keep) // size
        sizes += [size] * count
        left -= count * size
        if not tail:
            break
    return [*sizes, left] if left else sizes


def planned_count(segments: Sequence[Segment]) -> int:
    """Samples to account for: the last total, and each retried one once more, since its failure stays on record."""
    totals = [segment for segment in segments if isinstance(segment, int)]
    return (totals[-1] if totals else 0) + sum(
        len(segment) for segment in segments if not isinstance(segment, int)
    )
