"""The way of `build`, `import` and `extract`: builders make what is missing, watched, and the end is checked."""

import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import ActorDiedError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from projector.making.steps import ShardMaker
from ray_jobs.building.builder import ShardBuilder
from ray_jobs.building.failure_budget import FailureBudget
from ray_jobs.building.messages import BuildSpec, Outcome
from ray_jobs.building.monitor import Monitor
from ray_jobs.building.reader import Reader
from ray_jobs.cli.log import tell
from ray_jobs.cli.progress import Progress, repeated
from ray_jobs.cli.run_options import MakingOptions
from ray_jobs.cluster.crew import BUILDER_CPUS, Crew, start_readers
from ray_jobs.cluster.guard import Guard
from ray_jobs.progress.run_progress import RECORD_SECONDS, RunProgress, summary, why_incomplete
from ray_jobs.progress.snapshot import Snapshot
from shards.dataset.dataset import Dataset
from shards.errors import StorageError
from shards.format.plan import Plan, PlannedShard
from shards.stores.spool import Spool
from shards.tools.verify import expected_of

MANIFEST_SECONDS = 600.0  # between manifests: what is read anew, a request a shard, after a driver was killed
CALLS_AT_ONCE = 2  # of a builder: one makes a shard while the other's is published


def complete(
    job: str,
    dataset: Dataset,
    plan: Plan,
    options: MakingOptions,
    crew: Crew,
    maker: Callable[[], ShardMaker],
    shard_bytes: int,
    guard: Guard,
    make_reader: Callable[[], Any] | None = None,
) -> int:
    """Make what is missing, then check that nothing is.

    Args:
        job: whose options they are.
        dataset: opened for writing.
        plan: all that it should hold.
        options: how many failures are too many, and how long a builder may be silent.
        crew: who makes it.
        maker: makes what leads planned samples through the models.
        shard_bytes: what a full shard takes in the spool, about.
        guard: what may end the run early.
        make_reader: loads what the crew's readers read pictures with.

    Returns:
        exit code.
    """
    Spool.at(options.spool).check_room(shard_bytes)
    spec = BuildSpec(
        run=uuid.uuid4().hex,
        root=dataset.storage.root,
        expected=expected_of(dataset),
        spool=options.spool,
        shard_bytes=shard_bytes,
        maker=maker,
        make_reader=make_reader,
        superseded=plan.superseded,
        devices=crew.devices_each,
    )
    todo = dataset.missing(plan)
    if len(todo) < len(plan.shards):
        tell("resumed", f"{len(plan.shards) - len(todo)} shards already exist, {len(todo)} to make")
        dataset.write_manifest()  # what a killed driver left unread is read once, not again by the next resume
    line = Progress(job, len(plan), done=len(plan) - sum(len(shard.samples) for shard in todo))
    progress = RunProgress(job, dataset, line, spec.run, spec.devices, crew.gpus, options.price_gpu_hour)
    # Two builds on one root in the same order would make the same shards side by side; shuffled, they share them.
    random.shuffle(todo)
    monitor = start_monitor(todo, options, job, min(crew.actors, max(1, len(todo))))
    taken = 0
    if todo:
        progress.record()
        readers = start_readers(crew, Reader, spec)
        with _watched(monitor, guard, progress, dataset, options.stuck_seconds), _losing(monitor):
            for row in _run(len(todo), crew, spec, monitor, readers):
                taken += row["outcome"] in (Outcome.TAKEN, Outcome.DUPLICATE)
    if taken:
        tell("shared", f"{taken} shards were committed by another build meanwhile")
    events = ray.get(monitor.take_events.remote())
    end: Snapshot = ray.get(monitor.snapshot.remote())
    progress.show(end, events, final=True)
    dataset.write_manifest()
    missing = dataset.missing(plan)
    if todo:
        progress.record(ended="incomplete" if missing else "complete")
    if not missing:
        tell("complete", summary(dataset) + (f"; most failed by: {end.commonest}" if end.commonest else ""))
        return 0
    tell("incomplete", why_incomplete(job, end, len(missing), len(plan.shards)))
    return guard.stop.exit_code or 1


def start_monitor(todo: Sequence[PlannedShard], options: MakingOptions, job: str, builders: int = 1) -> Any:
    """The run's `Monitor` as an actor beside the driver: anywhere else, a lost node could end the run."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Monitor)
    budget = FailureBudget(job, options.max_failed_fraction, options.max_consecutive_failures)
    return actor.options(num_cpus=0, scheduling_strategy=here).remote(todo, budget, builders)


def _run(
    shards: int, crew: Crew, spec: BuildSpec, monitor: Any, readers: Sequence[Any]
) -> Iterator[dict[str, Any]]:
    """One pass of Ray Data: a row for each shard, which the monitor chooses when a builder is free.

    Ray Data keeps two rows with each builder, so a row that named its shard would let that wait behind a slow one.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A builder has two rows, one of which waits: with both taken, all are busy and another GPU is of use.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    actors, most = min(crew.actors, shards), min(crew.most, shards)
    # As many more as builders may hold: one whose models cannot be loaded keeps its rows until the others are done.
    rows = shards + CALLS_AT_ONCE * most
    pool = ActorPoolStrategy(
        min_size=1,
        max_size=most,
        initial_size=actors,
        max_tasks_in_flight_per_actor=CALLS_AT_ONCE,
        max_concurrent_calls_per_actor=CALLS_AT_ONCE,
        enable_true_multi_threading=True,
    )
    made = ray.data.from_items([{"row": row} for row in range(rows)], override_num_blocks=rows).map_batches(
        ShardBuilder,
        fn_constructor_args=(spec, monitor, readers),
        batch_size=1,
        num_cpus=BUILDER_CPUS,
        num_gpus=crew.gpus,
        compute=pool,
    )
    return iter(made.iter_rows())


@contextmanager
def _losing(monitor: Any) -> Iterator[None]:
    """Say in one line that the monitor is gone; what Ray says then names the builders that called it."""
    try:
        yield
    except RayError as error:
        try:
            ray.get(monitor.snapshot.remote())
        except RayActorError:
            raise StorageError(
                "the run's monitor was killed, or the machine ran out of memory; run it again to go on"
            ) from error
        raise


@contextmanager
def _watched(
    monitor: Any, guard: Guard, progress: RunProgress, dataset: Dataset, stuck_seconds: float
) -> Iterator[None]:
    """Tell how far it is, pass a stop request on and restart stuck builders, from threads beside the pass."""

    def look() -> None:
        with suppress(ActorDiedError):  # of the monitor, which ends the pass: see `_losing`
            # The events first: what a commit says is in the figures of the snapshot then.
            events = ray.get(monitor.take_events.remote())
            now: Snapshot = ray.get(monitor.snapshot.remote())
            progress.show(now, events)
            if not now.stopping and (reason := guard.reason_to_stop()):
                tell("stopping", f"{reason}: stopping at the next sample boundary")
                ray.get(monitor.stop.remote(reason))
            for builder in ray.get(monitor.stuck.remote(stuck_seconds)):
                ray.kill(builder, no_restart=False)

    # A store that is slow to take a record must not keep a stop request waiting: a thread each.
    with (
        repeated(look, 0.5),
        repeated(progress.record, RECORD_SECONDS),
        repeated(dataset.write_manifest, MANIFEST_SECONDS),
    ):
        yield
