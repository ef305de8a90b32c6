"""Some pairs of a source, drawn at random: another draw shows how much hangs on which pairs there happen to be."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import compress

import numpy as np

from projector.data.pairs import Item, PairSource


def drawn(source: PairSource, count: int, seed: int) -> PairSource:
    """So many pairs of a source, drawn at random, in the source's order; all of them draw nothing.

    Args:
        source: read through from the first to the last pair drawn.
        count: pairs to draw; at most as many as there are.
        seed: of the draw.
    """
    chosen = np.sort(np.random.default_rng(seed).choice(len(source), min(count, len(source)), replace=False))

    def among(read: Callable[[int, int], Iterator[Item]]) -> Callable[[int, int], Iterator[Item]]:
        def some(start: int, stop: int) -> Iterator[Item]:
            wanted = chosen[start:stop]
            if not len(wanted):
                return iter(())
            first = int(wanted[0])
            return compress(
                read(first, int(wanted[-1]) + 1), np.isin(np.arange(first, wanted[-1] + 1), wanted)
            )

        return some

    known, shown = source.conditionings, source.pictures
    return replace(
        source,
        count=len(chosen),
        read=among(source.read),
        conditionings=known and among(known),
        pictures=shown and among(shown),
    )
