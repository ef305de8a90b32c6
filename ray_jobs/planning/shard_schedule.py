"""Which shard a builder takes up next, so that all builders end together; pure, and simulated (`simulate`).

Large shards come first and the small ones that end a plan (`shards.format.plan.shard_sizes`) last.
Towards the end a builder takes the largest shard that it can finish, at its own speed, by the time at which all of
them together would be done.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass


def choose(sizes: Collection[int], seconds_per_sample: float | None, seconds_left: float) -> int:
    """The size of the shard to take up.

    Args:
        sizes: of the shards that wait; at least one.
        seconds_per_sample: of this builder; None before it has made any.
        seconds_left: until all builders together would have made what is not made yet.

    Returns:
        the largest size that ends in time, the smallest where none does.
    """
    if seconds_per_sample is None:
        return max(sizes)
    in_time = [size for size in sizes if size * seconds_per_sample <= seconds_left]
    return max(in_time, default=min(sizes))


@dataclass(frozen=True)
class Forecast:
    """How a run would go.

    Attributes:
        seconds: from the first sample to the last commit.
        idle: share of the builders' time in which they had nothing to do.
    """

    seconds: float
    idle: float


def simulate(sizes: Sequence[int], seconds_per_sample: Sequence[float]) -> Forecast:
    """Play a run through.

    Args:
        sizes: samples of each shard.
        seconds_per_sample: of each builder.

    Returns:
        its length, and how much of it is idle.
    """
    pace, total, now = sum(1 / seconds for seconds in seconds_per_sample), sum(sizes), 0.0
    waiting = Counter(sizes)
    free = [(0.0, builder) for builder in range(len(seconds_per_sample))]  # when each one asks for a shard
    known: set[int] = set()  # builders that have made one
    last = 0.0
    while waiting:
        now, builder = heapq.heappop(free)
        seconds = seconds_per_sample[builder]
        size = choose(waiting, seconds if builder in known else None, max(0.0, total / pace - now))
        waiting -= Counter([size])
        known.add(builder)
        heapq.heappush(free, (now + size * seconds, builder))
        last = max(last, now + size * seconds)
    return Forecast(last, 1 - total / (last * pace))
