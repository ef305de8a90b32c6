"""A run's figures as Ray exports them to Prometheus, each under `ray_` and its name; `cluster/grafana-dashboard.json`
draws them.

Ray adds the session, the node and the process; a dataset's root tells runs apart. They vanish with the run: what lasts
stands in commits and records (`shards.dataset.progress_figures`).
"""

import os
import string
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from ray.util.metrics import Counter, Gauge, Histogram

from ray_jobs.progress.snapshot import Event

TAGS = ("dataset", "task")  # not `job`: Prometheus itself calls what it scrapes so
# Seconds; shards are meant to take 5 to 15 minutes.
SHARD_SECONDS = [1.0, 5.0, 15.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0]
GAUGES = {  # name: (figure, what it is)
    "pairs_planned": ("planned", "pairs planned in all"),
    "pairs_made": ("made", "pairs made, those in shards under way included"),
    "pairs_per_hour": ("recent_pairs_per_hour", "pairs an hour since the last pause, by commits"),
    "pairs_seconds_left": ("seconds_left", "seconds until all are made at that rate"),
    "pairs_builders": ("builders", "builders at work"),
    "pairs_device_seconds": ("device_seconds", "device seconds that committed shards took"),
    "pairs_busy_ratio": ("busy", "share of them in which the device had work"),
    "pairs_gpu_hours": (
        "gpu_hours",
        "GPU-hours of shards, of attempts that were aborted and of those under way",
    ),
    "pairs_cost": ("cost", "their cost, where a price is given"),
}
SORTED_GAUGES = {  # name: (figure, what it is sorted by, what it is)
    "pairs_failed": (
        "failures",
        "cause",
        "samples that could not be made, those made in a later try included",
    ),
    "pairs_lost_device_seconds": ("lost", "end", "device seconds of attempts that were aborted"),
}
EVENTS = "pairs_events"
SECONDS = "pairs_shard_seconds"
PLAIN = string.punctuation.replace("%", "") + " "  # stays as it is in a label, as letters and digits do


def label(text: str) -> str:
    """A text as a label's value: Ray's metrics take ASCII only, so everything else is percent-encoded as in a URL."""
    return quote(os.fsencode(text), safe=PLAIN)


class RunGauges:
    """The metrics of a run, in the process that makes them.

    Args:
        task: `build` and so on.
        root: of the dataset.
    """

    def __init__(self, task: str, root: str) -> None:
        self._tags = {"dataset": label(root), "task": task}
        self._gauges = {name: Gauge(name, text, TAGS) for name, (_, text) in GAUGES.items()}
        self._sorted = {
            name: Gauge(name, text, (*TAGS, key)) for name, (_, key, text) in SORTED_GAUGES.items()
        }
        self._events = Counter(EVENTS, "what happened to attempts at shards", (*TAGS, "event"))
        self._seconds = Histogram(SECONDS, "seconds from a try's begin to its commit", SHARD_SECONDS, TAGS)

    def count(self, events: Iterable[Event]) -> None:
        """Add events."""
        for event in events:
            self._events.inc(1, {**self._tags, "event": event.kind})
            if event.kind == "committed":
                self._seconds.observe(event.facts["seconds"], self._tags)

    def show(self, figures: Mapping[str, Any]) -> None:
        """Set what can go up and down, to the figures that are known by now."""
        for name, (figure, _) in GAUGES.items():
            if figures[figure] is not None:
                self._gauges[name].set(figures[figure], self._tags)
        for name, (figure, by, _) in SORTED_GAUGES.items():
            for key, value in figures[figure].items():
                self._sorted[name].set(value, {**self._tags, by: label(key)})
