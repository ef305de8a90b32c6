"""`report`: one self-contained HTML page from the files a run left. Nothing is computed again."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from projector.comparison.cases import TEXT
from projector.comparison.outcome import JUDGED
from ray_jobs.cli.run_options import ReportOptions
from ray_jobs.report.charts import frontier_chart, histogram, interval_chart, line_chart, ratio_chart
from ray_jobs.report.coverage import built
from ray_jobs.report.pictures import Grid, contact_sheet, grids
from ray_jobs.report.run_files import Run, Training, find_run
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
from ray_jobs.report.verdict import PROJECTOR, best_first, projectors, standings, verdict
from shards.dataset.dataset import Dataset
from shards.stores.local import open_storage
from shards.tools.terminal import visible

PAGE = "report.html"
NAMED_DIMENSIONS = (4, 396)  # the guide's outliers of the published models
BEFORE = "identity"


@dataclass(frozen=True)
class PageSection:
    """A part of the page that tells of one file: sentences, drawings, tables."""

    title: str
    lead: str = ""
    sentences: list[str] = field(default_factory=list)
    charts: list[Markup] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    more: list[Table] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)


def report(options: ReportOptions) -> int:
    """Write the page.

    Args:
        options: the run and where the page goes.

    Returns:
        exit code 0.

    Raises:
        UsageError: nothing to report on lies there.
    """
    storage = open_storage(options.run)
    page = render(find_run(storage)).encode("utf-8", "replace")  # a file's name need not be text
    folder, _, name = (options.output or f"{storage.root}/{PAGE}").rpartition("/")
    target = open_storage(folder or ".")
    target.put_bytes(name, page)
    print(f"report: {target.url(name)}", flush=True)
    return 0


def render(run: Run) -> str:
    """The page as HTML; the template escapes every text, and only drawings, style and script count as markup."""
    notes = list(run.notes)
    script = _own("report.js")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_seen
    )
    return environment.from_string(_own("report.html")).render(
        title=f"Projector run: {run.name}",
        written=f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        style=_own("report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        verdict=verdict(run),
        built=built(run.datasets, notes),
        pictures=contact_sheet(run.datasets, notes),
        training=_training(run.trainings),
        ladders=[_ladder(name, ladder) for name, ladder in run.ladders.items()],
        evaluations=[_evaluation(name, run.evaluations[name]) for name in best_first(run.evaluations)],
        comparisons=_comparisons(run, notes),
        versions=[(dataset.storage.root, dataset.fingerprint, dataset.packages) for dataset in run.datasets],
        settings=_settings(run.datasets, run.trainings),
        notes=notes,
    )


def _seen(value: object) -> object:
    """A text from outside with its control characters and bidirectional overrides visible; markup as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _own(name: str) -> Markup:
    """A file of this package, which is markup as it stands."""
    return Markup(Path(__file__).with_name(name).read_text(encoding="utf-8"))  # noqa: S704


def _training(trainings: Mapping[str, Training]) -> PageSection:
    """Curves of all trainings together, what they reached, and what restoring the spread costs."""
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
            section.charts.append(line_chart(series, x_label="epoch", y_label=label, title=title, log_y=True))
    section.tables.extend(filter(None, (trainings_table(trainings), restoration_table(trainings))))
    section.sentences.extend(
        f"{name}: {training.summary.recommendation}"
        for name, training in trainings.items()
        if training.summary.recommendation
    )
    return section


def _evaluation(name: str, evaluation: Evaluation) -> PageSection:
    """Everything that one eval.json tells."""
    parts = (
        f"layer {evaluation.layer}",
        f"text mode {evaluation.text_mode}",
        f"aligned by {evaluation.align}",
    )
    known = (evaluation.layer, evaluation.text_mode, evaluation.align)
    section = PageSection(
        f"Evaluation: {name}",
        lead=f"{evaluation.pairs:,} {evaluation.split} pairs, {evaluation.tokens:,} tokens, "
        + ", ".join(part for part, value in zip(parts, known, strict=True) if value)
        + "; in small type the 95% interval over the pairs, where one was measured.",
        charts=_profiles(name, evaluation),
    )
    ours = projectors(evaluation)
    section.tables.append(methods_table(name, evaluation))
    optional = [kinds_table(name, evaluation), named_dimensions_table(name, evaluation)]
    if ours:
        optional.append(worst_dimensions_table(name, evaluation, ours[0]))
    section.more.extend(filter(None, optional))
    if evaluation.caption_swap:
        section.tables.append(swap_table(name, evaluation.caption_swap))
        section.sentences.extend(swap.sentence for swap in evaluation.caption_swap.values() if swap.sentence)
    return section


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


def _ladder(name: str, ladder: Ladder) -> PageSection:
    """The learning curve and its verdict."""
    points = [
        (
            rung.pairs,
            loss.mean,
            loss.mean if loss.low is None else loss.low,
            loss.mean if loss.high is None else loss.high,
        )
        for rung in ladder.curve
        if (loss := rung.val_loss).mean is not None and rung.pairs > 0
    ]
    sentences = [ladder.verdict] if ladder.verdict else []
    sentences += [f"{step.arch}, {step.samples:,} samples: {step.sentence}" for step in ladder.steps]
    if ladder.layers:
        told = ", ".join(f"{row.layer} {row.text_mode} {short(row.val_loss)}" for row in ladder.layers)
        sentences.append(f"Validation loss of ridge by layer and text mode: {told}.")
    section = PageSection(f"Learning curve: {name}", sentences=sentences)
    if points:
        told = "; ".join(f"{short(mean)} with {pairs:,} pairs" for pairs, mean, *_ in points)
        title = f"Validation loss by number of training pairs: {told}"
        section.charts.append(
            interval_chart(points, x_label="training pairs", y_label="validation loss", title=title)
        )
    return section


def _comparisons(run: Run, notes: list[str]) -> list[PageSection]:
    """Pictures without and with, their scores, and prompt against reference."""
    sections = []
    for folder, comparison in run.comparisons.items():
        name = folder or run.name
        told = (
            f"{comparison.references:,} references" if comparison.references else "",
            f"from {comparison.split}" if comparison.split else "",
            f"blended by {comparison.blend}" if comparison.blend else "",
            f"scored by {comparison.scorer}" if comparison.scorer else "",
        )
        sections.append(
            PageSection(
                f"Without and with: {name}",
                lead=", ".join(filter(None, told)).capitalize(),
                sentences=standings(comparison),
                charts=_frontier(name, comparison),
                tables=list(filter(None, (leads_table(name, comparison), scores_table(name, comparison)))),
                grids=grids(run.storage, folder, comparison, notes),
            )
        )
    return sections


def _frontier(name: str, comparison: Comparison) -> list[Markup]:
    """How well prompt and reference are followed together: a mark for each method, mode and value."""
    series: dict[str, list[tuple[float, float]]] = {}
    for method, by_mode in comparison.methods.items():
        for mode, by_value in by_mode.items():
            for scores in by_value.values():
                ends = [scores[key].mean if key in scores else None for key in JUDGED]
                if ends[0] is not None and ends[1] is not None:
                    called = method if method == TEXT else f"{method}, {mode}"
                    series.setdefault(called, []).append((ends[0], ends[1]))
    if not series:
        return []
    told = "; ".join(
        f"{called} " + ", ".join(f"{short(x, 2)} / {short(y, 2)}" for x, y in points)
        for called, points in series.items()
    )
    return [
        frontier_chart(
            series,
            x_label="adherence to the prompt",
            y_label="fidelity to the reference",
            title=f"Adherence and fidelity in {name}: {told}",
            unit="attributes" in comparison.scorer,
        )
    ]


def _settings(datasets: Iterable[Dataset], trainings: Mapping[str, Training]) -> str:
    shown = {
        "datasets": [
            {"root": dataset.storage.root, "created": dataset.created, "settings": _brief(dataset.settings)}
            for dataset in datasets
        ],
        "trainings": {name: training.config for name, training in trainings.items()},
    }
    return json.dumps(shown, indent=2, ensure_ascii=False)


def _brief(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the long list of file hashes, which dataset.json keeps."""
    models = settings.get("models")
    if not isinstance(models, dict):
        return dict(settings)
    brief = {
        name: {key: value for key, value in model.items() if key != "files"}
        if isinstance(model, dict)
        else model
        for name, model in models.items()
    }
    return {**settings, "models": brief}
