"""What a run reports of itself: events and figures, on standard output, as metrics and in its record."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import ray

from ray_jobs.cli.log import tell, tells_json, utc_now
from ray_jobs.cli.progress import INTERVAL, Progress
from ray_jobs.cluster.node_probe import recorded_packages
from ray_jobs.progress.prometheus import RunGauges
from ray_jobs.progress.snapshot import Event, Snapshot
from shards.dataset.dataset import Dataset
from shards.dataset.progress_figures import Standing, spending_parts, standing
from shards.dataset.run_records import RunRecord, put_run, runs_on_record
from shards.errors import StorageError

RECORD_SECONDS = 60.0  # between records: what a killed driver loses track of


class RunProgress:
    """Reports how far a run is. Commits come from the builders, by way of the monitor, so it asks the store for none.

    Args:
        job: `build` and so on.
        dataset: opened for writing.
        line: for people.
        run: the run's id.
        devices: that each builder holds, its share of readers included.
        gpus: that a device stands for; 0 on CPUs.
        price: of a GPU-hour; None where none is given.
    """

    def __init__(
        self,
        job: str,
        dataset: Dataset,
        line: Progress,
        run: str,
        devices: float,
        gpus: float,
        price: float | None,
    ) -> None:
        self._dataset, self._line, self._devices, self._price = dataset, line, devices, price
        self._commits = {commit.name: commit for commit in dataset.commits()}
        self._made = sum(commit.samples for commit in self._commits.values())
        self._segments = dataset.segments()
        self._others = runs_on_record(dataset.storage)
        begun = utc_now()
        ray_job = ray.get_runtime_context().get_job_id()
        self._run = RunRecord(run, job, ray_job, begun, begun, "", 0, gpus, {}, 0.0, recorded_packages())
        self._metrics = RunGauges(job, dataset.storage.root)
        self._figured = 0.0
        self._note = ""

    def show(self, now: Snapshot, events: Sequence[Event], *, final: bool = False) -> None:
        """Report what happened, and how far the run is.

        Args:
            now: the run.
            events: since the last call.
            final: whether the run is at its end.
        """
        for event in events:
            tell(event.kind, event.text, **event.facts)
            if event.commit is not None:
                self._commits[event.commit.name] = event.commit
        self._metrics.count(events)
        self._run = replace(
            self._run,
            seen=utc_now(),
            builders=now.builders,
            lost={end: round(seconds * self._devices, 3) for end, seconds in now.lost.items()},
            under_way=round(now.under_way * self._devices, 3),
        )
        moment = time.monotonic()
        if final or moment - self._figured >= INTERVAL:
            self._figured = moment
            far, made = self._standing(), self._made + now.made
            self._metrics.show({**asdict(far), "made": made, "builders": now.builders})
            live = [f"{now.failed} failed"] if now.failed and not far.failures else []
            self._note = ", ".join(live + spending_parts(far))
            if tells_json():
                tell("progress", **rounded({**asdict(far), "under_way": made - far.made}))
        if not tells_json():
            self._line.show(now.made + now.failed, self._note, final=final)

    def _standing(self) -> Standing:
        runs = [*self._others, self._run]
        return standing(
            self._commits.values(), self._segments, runs, now=time.time(), price_gpu_hour=self._price
        )

    def record(self, ended: str = "") -> None:
        """Write the run's record; a store that fails is reported, and left to the builders to judge."""
        try:
            self._dataset.require_present()
            put_run(self._dataset.storage, replace(self._run, ended=ended))
        except StorageError as error:
            tell("record", f"the run's record could not be written: {error}")


def rounded(figures: Any) -> Any:
    """Figures, and those sorted by what they are of, with no more digits than they deserve."""
    if isinstance(figures, Mapping):
        return {name: rounded(figure) for name, figure in figures.items()}
    return round(figures, 3) if isinstance(figures, float) else figures


def why_incomplete(job: str, end: Snapshot, missing: int, shards: int) -> str:
    """What ended a run before its plan was whole, and what to do."""
    why = end.stopping or f"{missing} shards could not be made"
    if end.commonest:
        why += f"; most failed by: {end.commonest}"
    if end.lasting:
        return (
            f"not complete: {why}; {missing} of {shards} shards missing. These fail alike every time: mend them in "
            f"the source, or raise {job}.max_failed_fraction and {job}.max_consecutive_failures to leave them out."
        )
    return f"not complete: {why}; {missing} of {shards} shards missing. Run it again to go on."


def summary(dataset: Dataset) -> str:
    """What a dataset holds that is complete."""
    commits = dataset.commits()
    samples, failed = sum(commit.samples for commit in commits), sum(commit.failed for commit in commits)
    size = sum(commit.bytes for commit in commits) / 1e6
    return f"complete: {samples} samples, {failed} failed, {len(commits)} shards, {size:,.1f} MB"
