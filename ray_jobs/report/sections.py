"""What the page says of each kind of file: sentences, drawings and tables, with the details to fold away."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from markupsafe import Markup

from projector.comparison.cases import TEXT
from projector.comparison.outcome import JUDGED
from projector.network.model_card import RANKED_BY
from ray_jobs.report.better import (
    DECIDING,
    PROJECTOR,
    better_table,
    contestants,
    deciding,
    projectors,
)
from ray_jobs.report.charts import frontier_chart, histogram, interval_chart, line_chart, ratio_chart
from ray_jobs.report.pictures import CASES, Grid, grids
from ray_jobs.report.run_files import Run, Training
from ray_jobs.report.run_schema import Comparison, Evaluation, Ladder
from ray_jobs.report.tables import (
    Table,
    kinds_table,
    leads_table,
    methods_table,
    named_dimensions_table,
    restoration_table,
    scores_table,
    short,
    swap_table,
    trainings_table,
    worst_dimensions_table,
)
from ray_jobs.report.verdict import sentence, standings

NAMED_DIMENSIONS = (4, 396)  # the guide's outliers of the published models
BEFORE = "identity"


@dataclass(frozen=True)
class PageSection:
    """A part of the page that tells of one file: sentences, drawings and tables, the details of them folded."""

    title: str
    lead: str = ""
    sentences: list[str] = field(default_factory=list)
    charts: list[Markup] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    more_sentences: list[str] = field(default_factory=list)
    more_charts: list[Markup] = field(default_factory=list)
    more: list[Table] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)


def comparisons(run: Run, notes: list[str]) -> list[PageSection]:
    """Pictures without and with, prompt against reference, and the scores behind them."""
    sections = []
    for folder, comparison in run.comparisons.items():
        name = folder or run.name
        told = (
            f"{comparison.references:,} references" if comparison.references else "",
            f"from {comparison.split}" if comparison.split else "",
            f"blended by {comparison.blend}" if comparison.blend else "",
            f"scored by {comparison.scorer}" if comparison.scorer else "",
            f"{CASES} of {len(comparison.cases)} cases are shown" if len(comparison.cases) > CASES else "",
        )
        sections.append(
            PageSection(
                name,
                lead=", ".join(filter(None, told)).capitalize(),
                charts=_frontier(name, comparison),
                more_sentences=standings(comparison),
                more=list(filter(None, (leads_table(name, comparison), scores_table(name, comparison)))),
                grids=grids(run.storage, folder, comparison, notes),
            )
        )
    return sections


def _frontier(name: str, comparison: Comparison) -> list[Markup]:
    """How well prompt and reference are followed together: a mark for each method, mode and value."""
    series: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for method, by_mode in comparison.methods.items():
        for mode, by_value in by_mode.items():
            for scores in by_value.values():
                ends = [scores[key].mean if key in scores else None for key in JUDGED]
                if ends[0] is not None and ends[1] is not None:
                    called = "" if method == TEXT else mode
                    series.setdefault((method, called), []).append((ends[0], ends[1]))
    if not series:
        return []
    told = "; ".join(
        ", ".join(filter(None, called)) + " " + ", ".join(f"{short(x, 2)} / {short(y, 2)}" for x, y in points)
        for called, points in series.items()
    )
    return [
        frontier_chart(
            series,
            strong=PROJECTOR,
            x_label="adherence to the prompt",
            y_label="fidelity to the reference",
            title=f"Adherence and fidelity in {name}: {told}",
        )
    ]


def drawn(run: Run) -> str:
    """What pictures show that were drawn and read by `evaluate`, and not kept; empty where none were."""
    ours = contestants(run.evaluations)
    if not ours or ours[0].figure != "fidelity" or ours[0].value is None:
        return ""
    best = ours[0]
    return (
        f"By figures alone: pictures drawn under {best.called} show {short(best.value, 2)} of what their references "
        f"show, on {best.evaluation.counted(best.figure)}."
    )


def better(run: Run) -> PageSection:
    """Projectors and baselines in one table, and whether a projector copies its caption."""
    table, figure = better_table(run.evaluations, run.trainings), deciding(run.evaluations)
    counted = dict.fromkeys(
        f"{place}: {evaluation.counted(figure)}" for place, evaluation in run.evaluations.items()
    )
    side = "right" if RANKED_BY[figure] < 0 else "left"
    return PageSection(
        "Methods",
        lead=f"{'; '.join(counted)}. Bars: difference to the best baseline on the same pairs with its 95% interval, "
        f"{side} of the mark is better.",
        sentences=[
            f"{place}: {swap.sentence}."
            for place, evaluation in run.evaluations.items()
            for swap in evaluation.caption_swap.values()
            if swap.sentence
        ],
        tables=[table] if table else [],
    )


def evaluation(name: str, found: Evaluation) -> PageSection:
    """Everything that one eval.json tells, all of it details."""
    parts = (
        f"layer {found.layer}",
        f"text mode {found.text_mode}",
        f"aligned by {found.align}",
    )
    known = (found.layer, found.text_mode, found.align)
    tables = [methods_table(name, found)]
    if found.caption_swap:
        tables.append(swap_table(name, found.caption_swap))
    tables += filter(None, (kinds_table(name, found), named_dimensions_table(name, found)))
    for ours in projectors(found)[:1]:
        tables += filter(None, (worst_dimensions_table(name, found, ours),))
    return PageSection(
        f"All figures of {name}",
        lead=f"{found.counted()}, {found.tokens:,} tokens, "
        + "".join(
            f"{DECIDING[key]} on {count:,} of them, "
            for key, count in found.judged.items()
            if key in DECIDING and count < found.pairs
        )
        + ", ".join(part for part, value in zip(parts, known, strict=True) if value)
        + "; in small type the 95% interval over groups of pairs, where one was measured.",
        charts=_profiles(name, found),
        tables=tables,
    )


def _profiles(name: str, evaluation: Evaluation) -> list[Markup]:
    """Every dimension before and after; nothing where the file has no profile."""
    profiles = evaluation.profile.methods
    if BEFORE not in profiles or PROJECTOR not in profiles:
        return []
    before, after = profiles[BEFORE], profiles[PROJECTOR]
    charts = []
    if before.std_ratio and after.std_ratio:
        title = f"Standard deviation of each dimension over the target's, {name}, before and after"
        for dimension in NAMED_DIMENSIONS:
            if dimension < min(len(before.std_ratio), len(after.std_ratio)):
                ends = (short(before.std_ratio[dimension]), short(after.std_ratio[dimension]))
                title += f"; dimension {dimension} from {ends[0]} to {ends[1]}"
        charts.append(ratio_chart(before.std_ratio, after.std_ratio, named=NAMED_DIMENSIONS, title=title))
    if before.correlation and after.correlation:
        medians = [
            short(evaluation.methods[method].per_dim_correlation) if method in evaluation.methods else "–"
            for method in (BEFORE, PROJECTOR)
        ]
        title = f"Histogram of the dimensions' correlations, {name}: median {medians[0]} before, {medians[1]} after"
        charts.append(
            histogram(
                before.correlation, after.correlation, x_label="correlation with the target", title=title
            )
        )
    return charts


def ladder(name: str, found: Ladder) -> PageSection:
    """The learning curve and its verdict."""
    points = [
        (
            rung.pairs,
            loss.mean,
            loss.mean if loss.low is None else loss.low,
            loss.mean if loss.high is None else loss.high,
        )
        for rung in found.curve
        if (loss := rung.val_loss).mean is not None and rung.pairs > 0
    ]
    steps = [f"{step.arch}, {step.samples:,} samples: {step.sentence}" for step in found.steps]
    if found.layers:
        told = ", ".join(f"{row.layer} {row.text_mode} {short(row.val_loss)}" for row in found.layers)
        steps.append(f"Validation loss of ridge by layer and text mode: {told}.")
    section = PageSection(
        f"Learning curve: {name}",
        sentences=[sentence(found.verdict)] if found.verdict else [],
        more_sentences=steps,
    )
    if points:
        told = "; ".join(f"{short(mean)} with {pairs:,} pairs" for pairs, mean, *_ in points)
        title = f"Validation loss by number of training pairs: {told}"
        section.charts.append(
            interval_chart(points, x_label="training pairs", y_label="validation loss", title=title)
        )
    return section


def training(trainings: Mapping[str, Training]) -> PageSection:
    """What the trainings reached; their curves, and what restoring the spread costs, are details."""
    section = PageSection("Training")
    for key, label in (("val_loss", "validation loss"), ("train_loss", "training loss")):
        series = {}
        for name, training in trainings.items():
            points = [
                (line.epoch, value) for line in training.lines if (value := getattr(line, key)) is not None
            ]
            if points:
                series[name] = points
        if series:
            told = "; ".join(
                f"{name} from {short(p[0][1])} to {short(p[-1][1])}" for name, p in series.items()
            )
            title = f"{label.capitalize()} by epoch: {told}"
            section.more_charts.append(
                line_chart(series, x_label="epoch", y_label=label, title=title, log_y=True)
            )
    section.tables.extend(filter(None, (trainings_table(trainings),)))
    section.more.extend(filter(None, (restoration_table(trainings),)))
    section.more_sentences.extend(
        f"{name}: {training.summary.recommendation}"
        for name, training in trainings.items()
        if training.summary.recommendation
    )
    return section
