"""The plan: which sample stands in which shard, decided before anything runs; pure functions of their arguments."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Protocol

from shards.errors import UsageError
from shards.prompts import Prompt, normalise_caption

SPLITS = ("train", "val")
MAX_SAMPLES_PER_SHARD = 10_000  # a key has four digits for the position in its shard
SEED_BITS = 63  # torch.Generator.manual_seed takes a signed 64-bit integer

Segment = int | tuple[str, ...]
"""One growth record: a new cumulative total of samples, or the ids of failed samples that are tried again."""


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """One sample as planned: what to make and where it will stand."""

    id: str
    """First 16 hex digits of the SHA-256 of the caption."""
    index: int
    """Place of its prompt in the prompt order, from 0."""
    caption: str
    """The caption exactly as given."""
    content: str
    style: str
    subject: str
    seed: int
    """Seed of its image, 63 bits, a hash of run seed and id."""
    split: str
    """`train` or `val`, by hash of the normalised caption."""
    shard: int
    """Number of its shard within the split."""
    position: int
    """Place within the shard, from 0; a failed sample leaves its place empty."""

    @property
    def key(self) -> str:
        """The dot-free WebDataset key, e.g. `train-000003-0007`."""
        return f"{self.split}-{self.shard:06d}-{self.position:04d}"


@dataclass(frozen=True)
class PlannedShard:
    """One shard as planned: the unit of work, of commit and of repair."""

    split: str
    index: int
    samples: tuple[PlannedSample, ...]

    @property
    def name(self) -> str:
        """The shard's name, e.g. `train-000003`; also the stem of its commit."""
        return f"{self.split}-{self.index:06d}"

    @property
    def tar_key(self) -> str:
        """Storage key of the tar."""
        return tar_key(self.name)

    @cached_property
    def slice_hash(self) -> str:
        """SHA-256 over everything the plan says about this shard: two plans agree on it or it differs."""
        return _digest([self.split, self.index, [asdict(sample) for sample in self.samples]])


def tar_key(name: str) -> str:
    """Storage key of the tar of the shard `name`."""
    split, index = name.rsplit("-", 1)
    return f"{split}/pairs-{index}.tar"


def parquet_key(name: str) -> str:
    """Storage key of the side file of the shard `name`: one row per sample."""
    return tar_key(name).removesuffix(".tar") + ".parquet"


def failed_key(name: str) -> str:
    """Storage key of the failed samples of the shard `name`; the object exists only when there are any."""
    return f"failed/{name}.parquet"


def commit_key(name: str) -> str:
    """Storage key of the commit of the shard `name`."""
    return f"_commit/{name}.json"


@dataclass(frozen=True)
class Plan:
    """All planned shards of a dataset, by split and then by number."""

    shards: tuple[PlannedShard, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the shards, in order."""
        return tuple(shard.name for shard in self.shards)

    @cached_property
    def _by_name(self) -> dict[str, PlannedShard]:
        return {shard.name: shard for shard in self.shards}

    @cached_property
    def samples(self) -> tuple[PlannedSample, ...]:
        """Every place in every shard, shard by shard; a retried sample stands here once per try."""
        return tuple(sample for shard in self.shards for sample in shard.samples)

    def shard(self, name: str) -> PlannedShard:
        """The shard called `name`; KeyError when the plan has none."""
        return self._by_name[name]

    def __len__(self) -> int:
        """Distinct samples planned; retries are not counted again."""
        return len({sample.id for sample in self.samples})


def sample_id(caption: str) -> str:
    """The id of the sample with this caption: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(caption.encode()).hexdigest()[:16]


def sample_seed(run_seed: int, identity: str) -> int:
    """The seed of a sample: 63 bits of the SHA-256 of run seed and id, the same whatever else is planned."""
    digest = hashlib.sha256(f"{run_seed}:{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def split_of(caption: str, val_fraction: float) -> str:
    """The split of a caption, by hash of its normalised form.

    Neither the run seed nor the number of samples enters: a caption that was validation stays validation, and a
    larger `val_fraction` only ever adds to validation.
    """
    digest = hashlib.sha256(f"split:{normalise_caption(caption)}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < val_fraction * 2.0**64 else "train"


def make_plan(
    prompts: Sequence[Prompt],
    *,
    seed: int,
    val_fraction: float,
    samples_per_shard: int,
    segments: Sequence[Segment],
) -> Plan:
    """Lay prompts out in shards, so that a longer `segments` never changes what a shorter one planned.

    Args:
        prompts: all prompts there are, in order; samples are taken from the front.
        seed: the run seed.
        val_fraction: share of captions held out, 0 to below 1.
        samples_per_shard: samples of a full shard, 1 to 10,000.
        segments: the growth records of the dataset, oldest first; each closes the partial shards before it.

    Raises:
        UsageError: fewer prompts than samples, a number out of range, or totals that do not grow.
    """
    _check_numbers(val_fraction, samples_per_shard)
    totals = [segment for segment in segments if isinstance(segment, int)]
    _check_totals(totals, len(prompts))
    layout = _Layout(seed, samples_per_shard)
    taken = 0
    for segment in segments:
        if isinstance(segment, int):
            for index in range(taken, segment):
                layout.add(index, prompts[index], split_of(prompts[index].caption, val_fraction))
            taken = segment
        else:
            layout.add_again(segment)
        layout.close()
    return Plan(layout.shards())


class _Layout:
    """Fills shards in order; a closed shard gets nothing more."""

    def __init__(self, seed: int, samples_per_shard: int) -> None:
        self._seed = seed
        self._size = samples_per_shard
        self._shards: dict[str, list[list[PlannedSample]]] = {split: [] for split in SPLITS}
        self._open: dict[str, bool] = dict.fromkeys(SPLITS, False)
        self._known: dict[str, tuple[int, Prompt, str]] = {}

    def add(self, index: int, prompt: Prompt, split: str) -> None:
        identity = sample_id(prompt.caption)
        if identity in self._known:
            other = self._known[identity][0]
            raise UsageError(
                f"prompts {other + 1} and {index + 1} are the same caption {prompt.caption[:80]!r}; "
                "every caption may stand once: remove one of them"
            )
        self._known[identity] = (index, prompt, split)
        self._place(identity)

    def add_again(self, identities: Iterable[str]) -> None:
        for identity in identities:
            if identity not in self._known:
                raise UsageError(
                    f"the retry record names sample {identity!r}, which is not planned before it; "
                    "the dataset was planned from other prompts"
                )
            self._place(identity)

    def _place(self, identity: str) -> None:
        index, prompt, split = self._known[identity]
        shards = self._shards[split]
        if not self._open[split] or len(shards[-1]) == self._size:
            shards.append([])
            self._open[split] = True
        shards[-1].append(
            PlannedSample(
                id=identity,
                index=index,
                caption=prompt.caption,
                content=prompt.content,
                style=prompt.style,
                subject=prompt.subject,
                seed=sample_seed(self._seed, identity),
                split=split,
                shard=len(shards) - 1,
                position=len(shards[-1]),
            )
        )

    def close(self) -> None:
        self._open = dict.fromkeys(SPLITS, False)

    def shards(self) -> tuple[PlannedShard, ...]:
        return tuple(
            PlannedShard(split, index, tuple(samples))
            for split in SPLITS
            for index, samples in enumerate(self._shards[split])
        )


def _check_numbers(val_fraction: float, samples_per_shard: int) -> None:
    if not 0 <= val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}; it must be at least 0 and below 1")
    if not 1 <= samples_per_shard <= MAX_SAMPLES_PER_SHARD:
        raise UsageError(f"samples_per_shard is {samples_per_shard}; it must be 1 to {MAX_SAMPLES_PER_SHARD}")


def _check_totals(totals: Sequence[int], available: int) -> None:
    if not totals or totals[0] < 1:
        raise UsageError(f"planned totals are {list(totals)}; the first must be at least 1 sample")
    if any(later <= earlier for earlier, later in zip(totals, totals[1:], strict=False)):
        raise UsageError(f"planned totals are {list(totals)}; each must be larger than the one before")
    if totals[-1] > available:
        raise UsageError(
            f"{totals[-1]} samples asked for, but there are only {available} prompts; "
            f"ask for at most {available} or give more prompts"
        )


class Categorised(Protocol):
    """Anything with the three category fields."""

    @property
    def content(self) -> str: ...
    @property
    def style(self) -> str: ...
    @property
    def subject(self) -> str: ...


def coverage(items: Iterable[Categorised]) -> dict[tuple[str, str, str], int]:
    """Count items per cell (content type, style, subject), cells in alphabetical order."""
    counts = Counter((item.content, item.style, item.subject) for item in items)
    return dict(sorted(counts.items()))


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
