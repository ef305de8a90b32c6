"""`report`: one self-contained HTML page from the files a run left. Nothing is computed again."""

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import jinja2

from projector.checkpoint import CONFIG, METRICS
from projector.evaluation import EVALUATION
from ray_jobs.charts import heat_map, line_chart
from ray_jobs.options import ReportOptions
from shards.dataset import DATASET, Dataset
from shards.errors import UsageError
from shards.info import details
from shards.objects import Storage, read_json_object
from shards.preview import contact_sheet
from shards.read import read_samples
from shards.storage import open_storage

PAGE = "report.html"
PICTURES = 24  # on the contact sheet: a screenful
COLUMNS = {
    "mse_standardized": "MSE (standardised)",
    "mse": "MSE (raw)",
    "per_dim_correlation": "correlation",
    "r2": "R²",
    "cosine_similarity": "cosine",
    "rms_cosine": "cosine after RMSNorm",
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "sliced_wasserstein": "sliced Wasserstein",
    "outlier_dims": "dims > 2x",
    "collapsed_dims": "dims < 0.5x",
}
SMALLER_IS_BETTER = "mse_standardized"


@dataclass(frozen=True)
class Training:
    """One trained projector: the lines of its metrics.jsonl, and its config.json."""

    lines: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What lies under a run's root.

    Attributes:
        name: last part of the root.
        datasets: in it; where it has none, those that its projectors were trained on.
        trainings: trained projectors, by name.
        evaluations: parsed eval.json files, by the projector's name.
    """

    name: str
    datasets: tuple[Dataset, ...]
    trainings: Mapping[str, Training]
    evaluations: Mapping[str, dict[str, Any]]


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
    page = render(find_run(storage)).encode()
    folder, _, name = (options.output or f"{storage.root}/{PAGE}").rpartition("/")
    target = open_storage(folder or ".")
    target.put_bytes(name, page)
    print(f"report: {target.url(name)}", flush=True)
    return 0


def find_run(storage: Storage) -> Run:
    """Look at what lies under a run's root, itself and two levels down: deeper are shards and checkpoints."""
    places: dict[str, set[str]] = {}
    for entry in storage.list():
        place, _, name = entry.key.rpartition("/")
        if place.count("/") < 2:
            places.setdefault(place, set()).add(name)
    run_name = storage.root.rstrip("/").rpartition("/")[2]

    def having(name: str) -> dict[str, str]:
        return {place or run_name: _join(place, name) for place, names in places.items() if name in names}

    trainings = {
        name: Training(_lines(storage, key), _config(storage, key.removesuffix(METRICS) + CONFIG))
        for name, key in having(METRICS).items()
    }
    evaluations = {name: read_json_object(storage, key) for name, key in having(EVALUATION).items()}
    roots = [_join(storage.root, key.removesuffix(DATASET)).rstrip("/") for key in having(DATASET).values()]
    if not roots:
        told = {str(training.config.get("options", {}).get("data", "")) for training in trainings.values()}
        roots = sorted(told - {""})
    if not (roots or trainings or evaluations):
        raise UsageError(
            f"report.run = {storage.root!r}: no {DATASET}, {METRICS} or {EVALUATION} there or two levels down; "
            "give the root that holds a run's outputs"
        )
    return Run(run_name, tuple(Dataset.open(open_storage(root)) for root in roots), trainings, evaluations)


def _join(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _lines(storage: Storage, key: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.get_bytes(key).decode().splitlines()]


def _config(storage: Storage, key: str) -> dict[str, Any]:
    return read_json_object(storage, key) if storage.stat(key) else {}


def render(run: Run) -> str:
    """The page as HTML; every text that came from outside is escaped by the template."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files("ray_jobs").joinpath("report.html").read_text(encoding="utf-8"))
    return template.render(
        title=f"Projector run: {run.name}",
        written=f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        verdict=verdict(run.evaluations),
        facts=_facts(run.datasets),
        coverage=_coverage(run.datasets),
        contact_sheet=_pictures(run.datasets),
        curves=_curves(run.trainings),
        evaluations=[_table(name, result) for name, result in run.evaluations.items()],
        settings=_settings(run.datasets, run.trainings),
    )


def verdict(evaluations: Mapping[str, dict[str, Any]]) -> str:
    """One sentence: does the best projector beat doing nothing?"""
    scored = {
        name: result["methods"]["projector"][SMALLER_IS_BETTER]
        for name, result in evaluations.items()
        if "projector" in result["methods"]
    }
    if not scored:
        return "No projector was evaluated in this run."
    best = min(scored, key=scored.__getitem__)
    methods = evaluations[best]["methods"]
    baselines = {name: values[SMALLER_IS_BETTER] for name, values in methods.items() if name != "projector"}
    winner = min(baselines, key=baselines.__getitem__)
    compared = (
        f"standardised MSE {scored[best]:.3f}, correlation {methods['projector']['per_dim_correlation']:.3f} "
        f"on {evaluations[best]['pairs']} held-out pairs; doing nothing (identity) has "
        f"{methods['identity'][SMALLER_IS_BETTER]:.3f} and {methods['identity']['per_dim_correlation']:.3f}"
    )
    if scored[best] < baselines[winner]:
        return f"{best} is the best projector and beats every baseline: {compared}."
    return (
        f"No projector beats the baseline {winner} (standardised MSE {baselines[winner]:.3f}). "
        f"The best one, {best}: {compared}."
    )


def _facts(datasets: Iterable[Dataset]) -> dict[str, str]:
    commits = [commit for dataset in datasets for commit in dataset.commits()]
    if not commits:
        return {}
    held_out = sum(commit.samples for commit in commits if commit.split == "val")
    return {
        "pairs": f"{sum(commit.samples for commit in commits):,}",
        "held out": f"{held_out:,}",
        "failed": f"{sum(commit.failed for commit in commits):,}",
        "shards": f"{len(commits):,}",
        "MB": f"{sum(commit.bytes for commit in commits) / 1e6:,.1f}",
        "device seconds": f"{sum(commit.device_seconds for commit in commits):,.0f}",
    }


def _coverage(datasets: Iterable[Dataset]) -> str:
    counts: Counter[tuple[str, str]] = Counter()
    for dataset in datasets:
        for cell in details(dataset)["coverage"]:
            counts[cell["content"], cell["style"]] += cell["samples"]
    if not counts or set(counts) == {("", "")}:
        return ""
    rows = sorted({content for content, _ in counts})
    columns = sorted({style for _, style in counts})
    return heat_map(counts, rows=rows, columns=columns, title="Samples by content type and style")


def _pictures(datasets: Iterable[Dataset]) -> str:
    """A contact sheet as base64 WebP; empty without a dataset."""
    for dataset in datasets:
        samples = [
            sample for sample, _ in zip(read_samples(dataset, tensors=()), range(PICTURES), strict=False)
        ]
        if samples:
            buffer = io.BytesIO()
            contact_sheet(samples).save(buffer, format="WEBP", quality=82)
            return base64.b64encode(buffer.getvalue()).decode()
    return ""


def _curves(trainings: Mapping[str, Training]) -> list[str]:
    """Validation and training loss by epoch, all trainings together."""
    charts = []
    for key, label in (("val_loss", "validation loss"), ("train_loss", "training loss")):
        series = {}
        for name, training in trainings.items():
            points = [(line["epoch"], line[key]) for line in training.lines if line.get(key) is not None]
            if points:
                series[name] = points
        if series:
            title = f"{label.capitalize()} by epoch for {', '.join(series)}"
            charts.append(line_chart(series, x_label="epoch", y_label=label, title=title))
    return charts


def _table(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """One table of methods, best first."""
    methods = sorted(result["methods"].items(), key=lambda item: item[1][SMALLER_IS_BETTER])
    columns = {key: label for key, label in COLUMNS.items() if any(key in values for _, values in methods)}
    rows = [
        {
            "method": method,
            "best": index == 0,
            "cells": [_number(values.get(key)) for key in columns],
        }
        for index, (method, values) in enumerate(methods)
    ]
    return {
        "title": f"Evaluation: {name}",
        "subtitle": f"{result['pairs']} held-out pairs, {result['tokens']} tokens, layer {result['layer']}, "
        f"text mode {result['text_mode']}; smallest error first",
        "columns": list(columns.values()),
        "rows": rows,
    }


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _settings(datasets: Iterable[Dataset], trainings: Mapping[str, Training]) -> str:
    shown = {
        "datasets": [
            {
                "root": dataset.storage.root,
                "fingerprint": dataset.fingerprint,
                "settings": _short(dataset.settings),
            }
            for dataset in datasets
        ],
        "trainings": {name: training.config for name, training in trainings.items()},
    }
    return json.dumps(shown, indent=2, ensure_ascii=False)


def _short(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the long list of file hashes, which dataset.json keeps."""
    models = {
        name: {key: value for key, value in model.items() if key != "files"}
        if isinstance(model, dict)
        else model
        for name, model in settings.get("models", {}).items()
    }
    return {**settings, "models": models}
