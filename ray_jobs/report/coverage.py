"""What a run built: counts, which cells of the prompt space are filled, failures, device time."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from ray_jobs.report.charts import bar_chart, heat_map
from ray_jobs.report.run_files import UNREADABLE, reason
from ray_jobs.report.tables import Table, failures_table
from shards.dataset.dataset import Dataset
from shards.format.commit import Commit
from shards.format.splits import SPLITS
from shards.prompts.variety import BIN, PromptFigures
from shards.tools.info import causes_of, pictures, prompts

MAPS = 8  # one per content type; captions of imported sets may name thousands
LINES = 12  # rows or columns of one
OTHERS = "(others)"
UNNAMED = "(none)"

Cells = Mapping[tuple[str, str, str], int]
"""Samples by content, style and subject."""


@dataclass(frozen=True)
class Built:
    """Facts by name, heat maps, a sentence on their cells, prompts of each dataset, and failures."""

    facts: Mapping[str, str]
    maps: Sequence[tuple[str, Markup]] = ()
    filled: str = ""
    prompts: Sequence[tuple[str, Markup, Sequence[str]]] = ()
    failures: Table | None = None
    devices: Sequence[str] = field(default_factory=list)


def built(datasets: Iterable[Dataset], notes: list[str]) -> Built:
    """What the datasets of a run hold, all together.

    Args:
        datasets: opened.
        notes: gets a sentence for each dataset whose side files cannot be read.

    Returns:
        without facts where there is no committed shard.
    """
    datasets = list(datasets)
    commits = [commit for dataset in datasets for commit in dataset.commits()]
    if not commits:
        return Built({})
    cells: Counter[tuple[str, str, str]] = Counter()
    causes: Counter[tuple[str, str]] = Counter()
    told: list[tuple[str, Markup, Sequence[str]]] = []
    of_imports = 0
    for dataset in datasets:
        try:
            figures, tries, shown = prompts(dataset), causes_of(dataset), pictures(dataset)
        except (ValueError, KeyError, TypeError, *UNREADABLE) as error:
            notes.append(f"coverage of {dataset.storage.root} could not be read: {reason(error)}")
            continue
        cells.update(figures.cells)
        causes.update(tries)
        of_imports += sum(shown.values())
        told.append((dataset.storage.root, *varied(figures)))
    maps, filled = coverage(cells)
    return Built(
        facts_of(commits, of_imports),
        maps,
        filled,
        told,
        failures_table((stage, error, tries) for (stage, error), tries in causes.items()),
        sorted({commit.device for commit in commits if commit.device}),
    )


def facts_of(commits: Sequence[Commit], imported: int) -> dict[str, str]:
    """Counts of what was committed, by name; `imported` of the pictures were not drawn."""
    samples = sum(commit.samples for commit in commits)
    seconds = sum(commit.device_seconds for commit in commits)
    return {
        "pairs": f"{samples:,}",
        **({"imported pictures": f"{imported:,}"} if imported else {}),
        **{
            f"in {split}": f"{sum(commit.samples for commit in commits if commit.split == split):,}"
            for split in SPLITS
        },
        "failed": f"{sum(commit.failed for commit in commits):,}",
        "shards": f"{len(commits):,}",
        "MB": f"{sum(commit.bytes for commit in commits) / 1e6:,.1f}",
        "device seconds": f"{seconds:,.0f}",
        "device seconds a pair": f"{seconds / max(samples, 1):,.2f}",
    }


def varied(figures: PromptFigures) -> tuple[Markup, Sequence[str]]:
    """A drawing of how long captions are, and sentences on how much they are alike."""
    lengths = {f"{start}-{start + BIN - 1}": count for start, count in figures.lengths.items()}
    title = f"number of captions by words; {max(figures.lengths.values(), default=0):,} at most"
    return bar_chart(lengths, x_label="words", y_label="captions", title=title), (
        f"{figures.near_duplicates:,} of {figures.prompts:,} captions are nearly the same as another, "
        f"{figures.across_splits:,} of them as one in another split{figures.among}.",
        f"Different: {figures.variety}{figures.among}.",
    )


def coverage(cells: Cells) -> tuple[list[tuple[str, Markup]], str]:
    """Heat maps of style by subject, one per content type, and a sentence on all cells.

    Args:
        cells: samples by content, style and subject.

    Returns:
        nothing where no sample has a category.
    """
    if not any(any(cell) for cell in cells):
        return [], ""
    named = Counter({tuple(part or UNNAMED for part in cell): count for cell, count in cells.items()})
    contents, styles, subjects = (
        _most(named, axis, most) for axis, most in ((0, MAPS), (1, LINES), (2, LINES))
    )
    drawn: Counter[tuple[str, ...]] = Counter()
    for cell, count in named.items():
        drawn[
            tuple(
                part if part in kept else OTHERS
                for part, kept in zip(cell, (contents, styles, subjects), strict=True)
            )
        ] += count
    top = max(drawn.values())
    maps = []
    for content in contents:
        counts = {
            (subject, style): drawn[content, style, subject] for style in styles for subject in subjects
        }
        empty = sum(not count for count in counts.values())
        title = (
            f"{content}: {sum(counts.values())} samples by subject and style, {empty} of {len(counts)} cells empty, "
            f"at most {max(counts.values())} in one"
        )
        maps.append((content, heat_map(counts, rows=subjects, columns=styles, top=top, title=title)))
    total = len(contents) * len(styles) * len(subjects)
    return maps, f"{len(drawn)} of {total} cells of content, style and subject have samples."


def _most(cells: Mapping[tuple[str, ...], int], axis: int, most: int) -> list[str]:
    """The names on an axis, in order; where there are too many the commonest, and one for the others."""
    totals: Counter[str] = Counter()
    for cell, count in cells.items():
        totals[cell[axis]] += count
    names = sorted(totals)
    if len(names) <= most:
        return names
    return [*sorted(name for name, _ in totals.most_common(most - 1)), OTHERS]
