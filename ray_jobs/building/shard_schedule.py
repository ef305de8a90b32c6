"""Which shard a builder takes up next, so that all builders end together; pure, and simulated (`simulate`).

Large shards come first and the small ones that end a plan (`shards.format.plan.shard_sizes`) last.
Towards the end a builder takes the largest shard that it can finish, at its own speed, by the time at which all of
them together would be done.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

COPY_GAIN = (
    1.5  # a shard under way is made a second time where that takes less than 1/1.5 of what its builder needs
)


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
    return max(in_time) if in_time else min(sizes)


def to_copy(
    remaining: Mapping[int, tuple[int, float]], sizes: Sequence[int], seconds_per_sample: float
) -> int | None:
    """Which shard under way an idle builder makes as well; the first to finish commits it.

    Args:
        remaining: by shard, samples that its builder has still to make, and its seconds per sample.
        sizes: by shard, all its samples.
        seconds_per_sample: of the idle builder.

    Returns:
        the shard whose end is gained most by it; None where starting anew would not pay.
    """
    gain = {
        shard: samples * seconds - COPY_GAIN * sizes[shard] * seconds_per_sample
        for shard, (samples, seconds) in remaining.items()
    }
    best = max(gain, key=gain.__getitem__, default=None)
    return best if best is not None and gain[best] > 0 else None


@dataclass(frozen=True)
class Forecast:
    """How a run would go.

    Attributes:
        seconds: from the first sample to the last commit.
        idle: share of the builders' time in which they had nothing to do; work done twice counts as idle.
    """

    seconds: float
    idle: float


@dataclass(frozen=True)
class _Job:
    shard: int
    builder: int
    begun: float


def simulate(sizes: Sequence[int], seconds_per_sample: Sequence[float]) -> Forecast:
    """Play a run through.

    Args:
        sizes: samples of each shard.
        seconds_per_sample: of each builder.

    Returns:
        its length, and how much of it is idle.
    """
    pace = sum(1 / seconds for seconds in seconds_per_sample)
    waiting: dict[int, list[int]] = {}
    for shard, size in enumerate(sizes):
        waiting.setdefault(size, []).append(shard)
    idle = list(range(len(seconds_per_sample)))
    ends: list[tuple[float, int, _Job]] = []
    jobs: dict[int, _Job] = {}  # the one that will end first, by shard
    known: set[int] = set()
    done: set[int] = set()
    copies: Counter[int] = Counter()
    now, total = 0.0, sum(sizes)

    def begin(shard: int, builder: int) -> None:
        job = _Job(shard, builder, now)
        end = now + sizes[shard] * seconds_per_sample[builder]
        heapq.heappush(ends, (end, builder, job))  # a builder has one at a time, so jobs are never compared
        if (
            shard not in jobs
            or end < jobs[shard].begun + sizes[shard] * seconds_per_sample[jobs[shard].builder]
        ):
            jobs[shard] = job

    while len(done) < len(sizes):
        for builder in idle:
            speed = seconds_per_sample[builder] if builder in known else None
            if waiting:
                size = choose(waiting, speed, max(0.0, total / pace - now))
                begin(waiting[size].pop(), builder)
                if not waiting[size]:
                    del waiting[size]
            else:
                remaining = {
                    shard: (
                        sizes[shard] - int((now - job.begun) / seconds_per_sample[job.builder]),
                        seconds_per_sample[job.builder],
                    )
                    for shard, job in jobs.items()
                    if shard not in done and not copies[shard]
                }
                again = to_copy(remaining, sizes, seconds_per_sample[builder])
                if again is not None:
                    copies[again] += 1
                    begin(again, builder)
        now, _, job = heapq.heappop(ends)
        known.add(job.builder)
        idle = [job.builder]
        done.add(job.shard)
        jobs.pop(job.shard, None)
    return Forecast(now, 1 - total / (now * pace))
