"""What one builder does: take a planned shard, make its samples, commit it. Runs inside a Ray Data actor."""

import json
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import numpy as np
import ray
import torch

from projector.making.shard_maker import ShardMaker
from ray_jobs.building.messages import Orders
from ray_jobs.building.monitor import DEATHS_ALONE, DEATHS_FATAL
from ray_jobs.building.shard_output import (
    Finisher,
    FinishSpec,
    Remote,
    ShardLostError,
    ending_with_the_device,
)
from ray_jobs.building.stopwatch import Stopwatch
from ray_jobs.cli.log import utc_now
from shards.dataset.crash_points import crash_point
from shards.dataset.publish import Circumstances, adopt
from shards.errors import CorruptShardError, StorageError, UsageError
from shards.format.commit import Commit, Maker
from shards.format.plan import PlannedSample, PlannedShard
from shards.format.sample import Failure

WAITING_SECONDS = 1.0  # between two looks of a builder that is left out at whether the run is over
BATCHES_BEHIND = 2  # that wait to be written: more would only fill memory


class CannotLoadError(StorageError):
    """A device on which the models cannot be loaded; others may do."""


@dataclass(frozen=True)
class BuilderSpec:
    """Everything a builder needs to know; small and picklable.

    Attributes:
        finish: what to write, and where to.
        maker: makes what leads planned samples through the models; called once the first shard is to be made.
        superseded: keys of samples that are tried again further on in the plan, and so not made where they failed.
        devices: held for each builder, its share of the readers included.
        run: id of the run.
    """

    finish: FinishSpec
    maker: Callable[[], ShardMaker]
    superseded: frozenset[str] = frozenset()
    devices: float = 1.0
    run: str = ""


class ShardBuilder:
    """One process with models in memory; each call makes one shard.

    Two calls run at once: the models are with one of them, while the other one's shard is being published.

    Args:
        spec: what to build with.
        monitor: handle of the run's `Monitor` actor.
        readers: handles of the run's `Reader` actors, where pictures are read elsewhere.
    """

    def __init__(self, spec: BuilderSpec, monitor: Any, readers: Sequence[Any] = ()) -> None:
        self._spec = spec
        self._monitor = monitor
        self._readers = readers
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._device = _device_name()
        self._itself = whereabouts(spec.run)
        self._gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
        self._models = threading.Lock()
        self._left_out = False
        self._here = Finisher(spec.finish)

    @cached_property
    def _maker(self) -> ShardMaker:
        # With the first shard and not in __init__, where an error would be a worker's traceback.
        try:
            maker = self._spec.maker()
        except RuntimeError as error:  # torch's, of a device that is full, broken or occupied
            reason = " ".join(str(error).split())[:500]
            raise CannotLoadError(
                f"the models cannot be loaded on {self._name}, {self._device}: {reason}"
            ) from error
        for note in maker.notes:
            ray.get(self._monitor.note.remote(f"{self._name}, {self._device}: {note}"))
        return maker

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Make one shard, whichever the monitor names.

        Args:
            batch: one row: `ticket`.

        Returns:
            one row: `outcome` (committed, adopted, there by a worker of this run that died since, taken by another
            build before it was begun, duplicate of what another build committed meanwhile, overtaken by a second try
            elsewhere, stopped, refused, or nothing where nothing was left or the models cannot be loaded here) and
            `name` of the shard.
        """
        ticket = int(batch["ticket"][0])
        while True:
            try:
                name, outcome = self._one(ticket)
                while self._left_out and not ray.get(self._monitor.is_finished.remote()):
                    # A ticket given back at once would soon be followed by all others.
                    time.sleep(WAITING_SECONDS)
                return {"name": [name], "outcome": [outcome]}
            except ShardLostError:
                time.sleep(1)  # the reader that had it died and is being restarted: begin anew

    def _one(self, ticket: int) -> tuple[str, str]:
        """Ask for a shard and see it through."""
        with self._models:
            # One thread per builder on a CPU: sums must not depend on how many cores happened to be free. Set here,
            # since each thread of this process has a number of its own.
            torch.set_num_threads(1)
            if self._left_out:
                return "", "nothing"
            itself = ray.get_runtime_context().current_actor
            attempt = uuid.uuid4().hex
            begin = self._monitor.begin.remote(self._name, ticket, itself, attempt, self._itself)
            orders: Orders = ray.get(begin)
            shard = orders.shard
            if shard is None:
                return "", "nothing"
            outcome = self._guarded(
                ticket, attempt, shard.name, lambda: self._make(ticket, attempt, shard, orders)
            )
        if callable(outcome):
            outcome = self._guarded(ticket, attempt, shard.name, outcome)
        return shard.name, outcome

    def _guarded(self, ticket: int, attempt: str, name: str, work: Callable[[], Any]) -> Any:
        """What work returns; "refused", with the run stopped, where the store refuses."""
        try:
            return work()
        except CannotLoadError as error:
            self._left_out = True
            ray.get(self._monitor.leave_out.remote(self._name, ticket, attempt, str(error)))
            return "nothing"
        except (StorageError, CorruptShardError, UsageError) as error:
            # The store's failure is every builder's: the run stops with its words instead of a worker's traceback.
            ray.get(self._monitor.stop.remote(f"{name}: {error}"))
            return self._end(ticket, attempt, "refused")

    def _make(
        self, ticket: int, attempt: str, planned: PlannedShard, orders: Orders
    ) -> str | Callable[[], str]:
        """Make a shard up to its commit; gives what is left to do, or how it ended."""
        if self._here.dataset.is_committed(planned.name):
            commit = self._here.dataset.commit(planned.name)
            outcome = "there" if commit.made_by.run == self._spec.run else "taken"
            return self._found(ticket, attempt, outcome, commit)
        circumstances = Circumstances(
            attempt,
            device=self._device,
            begun=datetime.now(UTC).isoformat(timespec="seconds"),
            gpus=self._gpus,
            made_by=self._itself,
            earlier=orders.earlier,
        )
        adopted = adopt(self._here.dataset, planned.name, planned.slice_hash, circumstances)
        if adopted is not None:
            return self._found(ticket, attempt, "adopted", adopted)
        start = time.monotonic()
        _log("begun", attempt, shard=planned.name)
        where = Remote(self._readers[ticket % len(self._readers)]) if self._readers else self._here
        where.begin(ticket, planned)
        with ExitStack() as unless_made:
            unless_made.callback(where.drop, ticket)
            busy = Stopwatch()
            if not self._write(ticket, attempt, planned, orders, where, busy):
                return self._end(ticket, attempt, "stopped")
            unless_made.pop_all()
        wall = time.monotonic() - start
        held = wall * self._spec.devices
        circumstances = replace(
            circumstances, wall_seconds=wall, device_seconds=held, busy_seconds=busy.seconds
        )
        return partial(self._publish, ticket, where, circumstances)

    def _publish(self, ticket: int, where: Finisher | Remote, circumstances: Circumstances) -> str:
        attempt = circumstances.attempt
        if not ray.get(self._monitor.may_publish.remote(ticket, attempt)):
            where.drop(ticket)
            return self._end(ticket, attempt, "overtaken")
        commit = where.commit(ticket, circumstances)
        if commit.attempt != attempt:  # another build was first: this try was for nothing
            return self._end(ticket, attempt, "duplicate", commit)
        _log("committed", commit.attempt, shard=commit.name)
        return self._end(ticket, attempt, "adopted" if commit.adopted else "committed", commit)

    def _found(self, ticket: int, attempt: str, outcome: str, commit: Commit) -> str:
        """A shard that needed no making counts as far as it is."""
        self._tell(ticket, attempt, commit.samples, commit.failed, ())
        return self._end(ticket, attempt, outcome, commit)

    def _end(self, ticket: int, attempt: str, outcome: str, commit: Commit | None = None) -> str:
        done = outcome in ("committed", "adopted", "there", "taken", "duplicate")
        lost = outcome in ("duplicate", "overtaken", "stopped", "refused")
        told = self._monitor.end.remote(ticket, attempt, done=done, outcome=outcome, lost=lost, commit=commit)
        ray.get(told)
        return outcome

    def _write(
        self,
        ticket: int,
        attempt: str,
        planned: PlannedShard,
        orders: Orders,
        where: Finisher | Remote,
        busy: Stopwatch,
    ) -> bool:
        """Make the samples and have them written; False when the run stops before the shard's end.

        Samples are checked, counted and written behind a thread, while the device is at the next batch.
        """
        apart, given_up = self._suspects(planned, orders)
        most = 1 if apart else BATCHES_BEHIND  # one at a time, where it matters which one kills
        made = failed = 0
        behind: deque[tuple[Future[int], Sequence[PlannedSample]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="writer") as pen:
            for step in self._maker.steps(planned.samples, apart, given_up):
                while behind and (len(behind) >= most or behind[0][0].done()):
                    refused = behind.popleft()[0].result()
                    made, failed = made - refused, failed + refused
                at_work = [sample.id for _, samples in behind for sample in samples]
                at_work += [sample.id for sample in step.samples]
                if not self._tell(ticket, attempt, made, failed, at_work):
                    return False
                for sample in step.samples:
                    crash_point(f"sample-{sample.id}")
                with busy, ending_with_the_device():
                    results = step.run()
                failures = [result for result in results if isinstance(result, Failure)]
                made, failed = made + len(results) - len(failures), failed + len(failures)
                for failure in failures:
                    _log("failed", attempt, shard=planned.name, **asdict(failure))
                if failures:
                    self._monitor.failed_by.remote(_reasons(results, step.samples))
                if results:
                    behind.append((pen.submit(where.write, ticket, results), step.samples))
                    crash_point("mid-shard")
            while behind:
                self._tell(
                    ticket, attempt, made, failed, [sample.id for _, samples in behind for sample in samples]
                )
                refused = behind.popleft()[0].result()
                made, failed = made - refused, failed + refused
        self._tell(ticket, attempt, made, failed, ())
        return True

    def _suspects(self, planned: PlannedShard, orders: Orders) -> tuple[set[str], dict[str, Failure]]:
        """Ids of samples to make alone, as they may kill workers, and why others are not made at all."""
        given_up = {
            sample.id: Failure.from_exception(
                "plan", RuntimeError("failed before; tried again in a later shard")
            )
            for sample in planned.samples
            if sample.key in self._spec.superseded
        }
        for identity, deaths in orders.deaths.items():
            if deaths >= DEATHS_FATAL:
                error = RuntimeError(f"{deaths} workers died while making it")
                given_up[identity] = Failure.from_exception("worker", error)
        return {identity for identity, deaths in orders.deaths.items() if deaths >= DEATHS_ALONE}, given_up

    def _tell(self, ticket: int, attempt: str, made: int, failed: int, at_work: Sequence[str]) -> bool:
        report = self._monitor.report.remote(
            ticket, attempt, made=made, failed=failed, at_work=tuple(at_work)
        )
        return bool(ray.get(report))


def _reasons(results: Sequence[Any], samples: Sequence[PlannedSample]) -> list[tuple[str, str, str]]:
    """Why samples failed: class, message and caption, which is known where a step finishes what it began."""
    captions = [sample.caption for sample in samples] if len(samples) == len(results) else [""] * len(results)
    return [
        (result.error_class, result.message, caption)
        for result, caption in zip(results, captions, strict=True)
        if isinstance(result, Failure)
    ]


def whereabouts(run: str) -> Maker:
    """This actor, by all that leads to its log."""
    here = ray.get_runtime_context()
    job, pid = here.get_job_id(), os.getpid()
    return Maker(
        run=run,
        node=here.get_node_id(),
        host=socket.gethostname(),
        address=ray.util.get_node_ip_address(),
        actor=here.get_actor_id() or "",
        pid=pid,
        job=job,
        # https://docs.ray.io/en/latest/ray-observability/user-guides/configure-logging.html: worker log files
        log=f"worker-{here.get_worker_id()}-{job}-{pid}",
    )


def _log(event: str, attempt: str, **facts: Any) -> None:
    """A line in this worker's own log, where an attempt's id is looked for."""
    print(json.dumps({"time": utc_now(), "event": event, "attempt": attempt, **facts}), flush=True)


def _device_name() -> str:
    """The accelerator Ray gave this actor, or the CPU: `GPU 2 (NVIDIA H200)`, `CPU`."""
    ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    if not ids:
        return "CPU"
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else "declared, no device found"
    return f"GPU {','.join(ids)} ({kind})"
