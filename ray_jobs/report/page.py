"""`report`: one self-contained HTML page from the files a run left. Nothing is computed again."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ray_jobs.cli.run_options import ReportOptions
from ray_jobs.report import sections
from ray_jobs.report.coverage import built
from ray_jobs.report.pictures import contact_sheet
from ray_jobs.report.run_files import Run, Training, find_run
from ray_jobs.report.verdict import verdict
from shards.dataset.dataset import Dataset
from shards.stores.local import open_storage
from shards.tools.terminal import visible

PAGE = "report.html"
# The questions that the page answers, in this order: anchor, words where little room is, and in full.
QUESTIONS = (
    ("steer", "Steers", "Does it steer?"),
    ("better", "Better", "Is it better than doing nothing, than ridge, than the graft?"),
    ("data", "Data", "Can I trust the data?"),
    ("more", "More data", "Is more data worth it?"),
    ("made", "Made", "How was it made?"),
)

CASES_SEEN = 3  # of a comparison, before the reader asks for more


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
        questions=QUESTIONS,
        cases=CASES_SEEN,
        verdict=verdict(run),
        comparisons=sections.comparisons(run, notes),
        drawn=sections.drawn(run),
        better=sections.better(run),
        evaluations=[sections.evaluation(*found) for found in run.evaluations.items()],
        built=built(run.datasets, notes),
        pictures=contact_sheet(run.datasets, notes),
        ladders=[sections.ladder(*found) for found in run.ladders.items()],
        training=sections.training(run.trainings),
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
