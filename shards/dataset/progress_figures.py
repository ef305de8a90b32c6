"""How far a dataset is, how fast it gets there and what it costs: arithmetic on commits and records alone.

Clocks of several machines meet here. How long something took is measured by one machine and is exact. When it was is
told by its clock, so the time in which work went on, the union of the spans in which shards were made, is wrong by at
most the difference of two clocks for each stretch of work: a minute's difference in a day of work is 0.07%. Pauses
between stretches, however long, are no part of it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from shards.dataset.run_records import RunRecord
from shards.format.commit import Commit, timestamp
from shards.format.plan import Segment, planned_count

PAUSE = 600.0  # seconds without any shard in the making that end a stretch of work: models load in less


@dataclass(frozen=True)
class Standing:
    """How far a dataset is.

    Attributes:
        planned: samples in all.
        made: samples in commits.
        failed: samples that could not be made and are not planned to be tried again.
        shards: committed.
        bytes: of their tars.
        left: samples that no commit accounts for yet, tries of failed ones included.
        complete: whether there are commits and nothing is left.
        work_seconds: in which at least one shard was being made, pauses left out.
        pairs_per_hour: of that time; None before the first shard that was timed.
        recent_pairs_per_hour: the same since the last pause.
        seconds_left: at the recent rate.
        device_seconds: that committed shards took.
        busy: share of them in which the device had work; None where it was not measured.
        lost: device seconds of tries that came to nothing, by what became of them.
        failures: failed samples by cause, those made in a later try included.
        gpu_hours: of shards, of tries that came to nothing and of those under way; 0 on CPUs.
        cost: of the GPU-hours; None without a price.
        runs: on record.
        builders: at work now.
        last_commit: seconds since 1970; None where there is none.
    """

    planned: int
    made: int
    failed: int
    shards: int
    bytes: int
    left: int
    complete: bool
    work_seconds: float
    pairs_per_hour: float | None
    recent_pairs_per_hour: float | None
    seconds_left: float | None
    device_seconds: float
    busy: float | None
    lost: Mapping[str, float]
    failures: Mapping[str, int]
    gpu_hours: float
    cost: float | None
    runs: int
    builders: int
    last_commit: float | None

    @property
    def lost_seconds(self) -> float:
        """Device seconds that came to nothing, whatever the reason."""
        return sum(self.lost.values())


def duration(seconds: float) -> str:
    """Seconds as people say them: `42 s`, `3 min 20 s`, `2 h 05 min`, `4 d 03 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def plain(text: object) -> str:
    """What comes from outside, on a terminal: one line, and no character that moves the cursor or hides others."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def progress_parts(far: Standing, now: float) -> list[str]:
    """How far a dataset is and how fast it gets on, for people."""
    share = far.made / far.planned if far.planned else 0.0
    parts = [f"{far.made:,}/{far.planned:,} pairs ({share:.0%})"]
    if far.recent_pairs_per_hour is not None and far.pairs_per_hour is not None:
        parts.append(f"{far.recent_pairs_per_hour:,.0f} an hour ({far.pairs_per_hour:,.0f} over all runs)")
    if far.seconds_left and far.builders:
        parts.append(f"{duration(far.seconds_left)} left")
    parts.append(f"{far.builders} builders at work" if far.builders else "nobody at work")
    if far.last_commit is not None:
        parts.append(f"last commit {duration(now - far.last_commit)} ago")
    return parts


def spending_parts(far: Standing) -> list[str]:
    """What a dataset took and what of it came to nothing, for people."""
    parts = [f"{far.failed:,} failed{_listed(far.failures)}"] if far.failures else []
    if far.busy is not None:
        parts.append(f"devices {far.busy:.0%} busy")
    if far.lost_seconds >= 1:
        parts.append(f"{duration(far.lost_seconds)} of a device lost{_listed(far.lost)}")
    if far.gpu_hours:
        parts.append(f"{far.gpu_hours:,.2f} GPU-hours")
    if far.cost is not None:
        parts.append(f"cost {far.cost:,.2f}")
    return parts


def _listed(counts: Mapping[str, float], most: int = 3) -> str:
    """The largest of some counts, in brackets."""
    largest = sorted(counts.items(), key=lambda item: -item[1])
    told = [f"{value:,.0f} {plain(name)}" for name, value in largest[:most]]
    return f" ({', '.join(told)}{', …' if len(largest) > most else ''})"


def standing(
    commits: Collection[Commit],
    segments: Sequence[Segment],
    runs: Collection[RunRecord] = (),
    *,
    now: float,
    price_gpu_hour: float | None = None,
) -> Standing:
    """How far a dataset is.

    Args:
        commits: all of them.
        segments: its growth records.
        runs: its runs' records.
        now: seconds since 1970; only tells runs that work from those that died.
        price_gpu_hour: in any currency.
    """
    accounted = planned_count(segments)
    totals = [segment for segment in segments if isinstance(segment, int)]
    planned = max(totals, default=0)
    left = accounted - sum(commit.samples + commit.failed for commit in commits)
    stretches = _stretches(commit for commit in commits if commit.wall_seconds)
    recent = _rate(stretches[-1:])
    lost, gpu_seconds = _spent(commits, runs, now)
    timed = [commit for commit in commits if commit.busy_seconds]
    failures: Counter[str] = Counter()
    for commit in commits:
        failures.update(commit.causes)
    return Standing(
        planned=planned,
        made=sum(commit.samples for commit in commits),
        failed=sum(commit.failed for commit in commits) - (accounted - planned),
        shards=len(commits),
        bytes=sum(commit.bytes for commit in commits),
        left=left,
        complete=bool(commits) and left == 0,
        work_seconds=sum(stretch.seconds for stretch in stretches),
        pairs_per_hour=_rate(stretches),
        recent_pairs_per_hour=recent,
        seconds_left=max(0, left) * 3600 / recent if recent else None,
        device_seconds=sum(commit.device_seconds for commit in commits),
        busy=_share((commit.busy_seconds for commit in timed), (commit.device_seconds for commit in timed)),
        lost=lost,
        failures=dict(failures.most_common()),
        gpu_hours=gpu_seconds / 3600,
        cost=None if price_gpu_hour is None else price_gpu_hour * gpu_seconds / 3600,
        runs=len(runs),
        builders=sum(run.builders for run in runs if run.is_at_work(now)),
        last_commit=max((timestamp(commit.created) for commit in commits), default=None),
    )


@dataclass
class _Stretch:
    """Work without a pause."""

    end: float
    seconds: float
    samples: int


def _stretches(commits: Iterable[Commit]) -> list[_Stretch]:
    """The stretches of work, oldest first; a shard counts where its making ended."""
    spans = sorted(
        (begun, begun + commit.wall_seconds, commit.samples)
        for commit in commits
        for begun in [timestamp(commit.begun)]
    )
    found: list[_Stretch] = []
    for begun, end, samples in spans:
        if not found or begun - found[-1].end > PAUSE:
            found.append(_Stretch(begun, 0.0, 0))
        stretch = found[-1]
        stretch.seconds += max(0.0, end - max(begun, stretch.end))
        stretch.end = max(end, stretch.end)
        stretch.samples += samples
    return found


def _rate(stretches: Sequence[_Stretch]) -> float | None:
    seconds = sum(stretch.seconds for stretch in stretches)
    return 3600 * sum(stretch.samples for stretch in stretches) / seconds if seconds else None


def _spent(
    commits: Iterable[Commit], runs: Iterable[RunRecord], now: float
) -> tuple[dict[str, float], float]:
    """Device seconds that came to nothing by what became of them, and all GPU-seconds."""
    lost: dict[str, float] = {}
    gpu_seconds = sum(commit.device_seconds * commit.gpus for commit in commits)
    for run in runs:
        died = {} if run.ended or run.is_at_work(now) else {"driver died": run.under_way}
        for end, seconds in (*run.lost.items(), *died.items()):
            lost[end] = lost.get(end, 0.0) + seconds
        gpu_seconds += (sum(run.lost.values()) + (0 if run.ended else run.under_way)) * run.gpus
    return lost, gpu_seconds


def _share(parts: Iterable[float], wholes: Iterable[float]) -> float | None:
    whole = sum(wholes)
    return sum(parts) / whole if whole else None
