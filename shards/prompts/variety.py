"""How varied prompts are: cells covered, lengths, different runs of words, near-duplicates in a plan."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shards.format.plan import Plan, PlannedSample
from shards.prompts.near_duplicates import Hashes, near_duplicates, runs, words_of

RUNS = (1, 2, 3)
BIN = 10  # words
COMPARED = 20_000  # captions; as many are held in memory, and take some seconds
CHUNK = 2_000


@dataclass(frozen=True)
class PromptFigures:
    """What was found.

    Attributes:
        prompts: how many.
        cells: of those looked at, by content, style and subject.
        lengths: those by number of words, in bins of ten that are named by their first.
        distinct: different runs of one, two and three words, and all runs, by their length.
        near_duplicates: prompts like an earlier one.
        across_splits: of those, how many the first such one of which stands in another split.
        compared: prompts that distinct runs and near-duplicates were looked for among: the first ones in plan order.
        looked_at: prompts that cells and lengths were counted of.
    """

    prompts: int
    cells: Mapping[tuple[str, str, str], int]
    lengths: Mapping[int, int]
    distinct: Mapping[int, tuple[int, int]]
    near_duplicates: int
    across_splits: int
    compared: int
    looked_at: int

    @property
    def variety(self) -> str:
        """Different words, pairs and triples of words, and all of them."""
        named = zip(("words", "pairs", "triples"), self.distinct.values(), strict=True)
        return ", ".join(f"{different:,} of {total:,} {name}" for name, (different, total) in named)

    @property
    def among(self) -> str:
        """Which prompts were compared, where not all were."""
        return self._of_first(self.compared)

    def _of_first(self, count: int) -> str:
        return "" if count == self.prompts else f" among the first {count:,}"

    def to_json(self) -> dict[str, Any]:
        """For result files: cells as a list of records."""
        cells = [
            {"content": content, "style": style, "subject": subject, "prompts": count}
            for (content, style, subject), count in sorted(self.cells.items())
        ]
        return {**asdict(self), "cells": cells}

    def lines(self) -> list[str]:
        """For people, a line each."""
        return [
            f"cells          {len(self.cells)} of content, style and subject, "
            f"{min(self.cells.values(), default=0)} to {max(self.cells.values(), default=0)} prompts each"
            f"{self._of_first(self.looked_at)}",
            f"near-duplicates {self.near_duplicates}, {self.across_splits} of them across the splits{self.among}",
            f"different      {self.variety}{self.among}",
            "words          "
            + ", ".join(f"{start}+: {count}" for start, count in self.lengths.items())
            + self._of_first(self.looked_at),
        ]


def plan_figures(plan: Plan) -> PromptFigures:
    """Measure the first prompts of a plan, at most COMPARED: a plan of a million takes no longer."""
    return prompt_figures(plan.first(COMPARED), len(plan))


def prompt_figures(samples: Iterable[PlannedSample], prompts: int | None = None) -> PromptFigures:
    """Measure prompts.

    Args:
        samples: in any order; looked at once, one after the other.
        prompts: how many there are, where these are only the first.

    Returns:
        the figures.
    """
    cells: Counter[tuple[str, str, str]] = Counter()
    lengths: Counter[int] = Counter()
    compared: list[tuple[int, str, str]] = []
    for sample in samples:
        cells[sample.content, sample.style, sample.subject] += 1
        lengths[len(words_of(sample.caption)) // BIN * BIN] += 1
        if sample.index < COMPARED:
            compared.append((sample.index, sample.caption, sample.split))
    compared.sort()
    captions = [caption for _, caption, _ in compared]
    alike = near_duplicates(captions)
    return PromptFigures(
        prompts=cells.total() if prompts is None else prompts,
        cells=dict(sorted(cells.items())),
        lengths=dict(sorted(lengths.items())),
        distinct=_distinct_runs(captions),
        near_duplicates=len(alike),
        across_splits=sum(compared[place][2] != compared[first][2] for place, first in alike.items()),
        compared=len(captions),
        looked_at=cells.total(),
    )


def _distinct_runs(captions: list[str]) -> dict[int, tuple[int, int]]:
    different: dict[int, list[Hashes]] = {run: [] for run in RUNS}
    totals = dict.fromkeys(RUNS, 0)
    for start in range(0, len(captions), CHUNK):
        words = [words_of(caption) for caption in captions[start : start + CHUNK]]
        for run in RUNS:
            found, _ = runs(words, run)
            totals[run] += len(found)
            different[run].append(np.unique(found))
    return {
        run: (len(np.unique(np.concatenate(parts))) if parts else 0, totals[run])
        for run, parts in different.items()
    }
