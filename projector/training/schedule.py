"""Which pairs a step takes and how fast it learns: pure functions of the options, alike on every worker."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NOBODY = -1


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The batches of an epoch.

    The pairs are cut into as many contiguous strata as a batch has places; each stratum is shuffled by itself
    and fills one place. So a worker that holds a contiguous part of the pairs holds the same number of places
    in every batch, whatever the number of workers, and the batches themselves do not depend on that number.

    Args:
        count: pairs in all.
        batch_size: pairs per batch.
        seed: of the run.
        epoch: from 0.

    Returns:
        (steps, places) pair indices; every pair once; NOBODY fills the last row's places of shorter strata.
    """
    places = min(batch_size, count)
    bounds = [count * place // places for place in range(places + 1)]
    steps = -(-count // places)
    random = np.random.default_rng([seed, epoch])
    order = np.full((steps, places), NOBODY, dtype=np.int64)
    for place in range(places):
        stratum = np.arange(bounds[place], bounds[place + 1])
        order[: len(stratum), place] = random.permutation(stratum)
    return order


def held(count: int, batch_size: int, rank: int, size: int) -> range:
    """The pairs that a worker holds: those of a contiguous part of `epoch_order`'s places.

    Args:
        count: pairs in all.
        batch_size: pairs per batch.
        rank: the worker.
        size: number of workers.

    Returns:
        a range of pair indices; the workers' ranges join up to range(count).
    """
    places = min(batch_size, count)
    first, last = places * rank // size, places * (rank + 1) // size
    return range(count * first // places, count * last // places)


def sampling_steps(count: int, steps: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """Draw the step of its trajectory at which each pair is learnt.

    Early steps more often, where there is noise and the conditioning decides: of eight, a third of the draws are the
    first one. At the last ones the state shows the picture. In one trial attention
    redrew 0.67 of a reference's attributes with even draws, and 0.73 with these (docs/log.md).

    Args:
        count: pairs.
        steps: of sampling.
        seed: of this draw.

    Returns:
        (count,) steps, from 0.
    """
    drawn = np.random.default_rng(seed).random(count)
    return (steps * drawn**2).astype(np.int64)


def learning_rate(step: int, *, peak: float, warmup: int, total: int) -> float:
    """Linear warm-up to the peak, then half a cosine down to zero.

    Args:
        step: optimizer step, from 0.
        peak: the highest rate.
        warmup: steps until the peak is reached.
        total: steps in all.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
