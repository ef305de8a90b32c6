"""`build`: plan → images and paired embeddings → committed shards. Runs until the plan is whole, or says why not."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from projector.models import ModelSources, resolve_models
from projector.pairs import PairMaker, PairSettings
from ray_jobs.builder import BuilderSpec, ShardBuilder, to_row
from ray_jobs.cluster import Cluster, StopRequest, check_shared, connected
from ray_jobs.estimate import bytes_per_sample
from ray_jobs.monitor import MAX_ATTEMPTS, Monitor, Snapshot
from ray_jobs.options import BuildOptions, CompareOptions, ExtractOptions
from ray_jobs.progress import Progress, duration
from shards.dataset import Dataset, is_new
from shards.errors import UsageError
from shards.lease import HeldError, Lease, sole_writer
from shards.plan import Plan, PlannedShard, Segment, make_plan
from shards.prompts import PromptSource, builtin_prompts, read_prompts
from shards.retry import plan_retries
from shards.sample import Expected
from shards.spool import Spool, default_spool
from shards.storage import open_storage

BUILDER_CPUS = 0.01  # builders are placed by GPU; a whole CPU each would leave none for Ray Data's own tasks
RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "diffusers",
    "tokenizers",
    "safetensors",
    "pillow",
    "numpy",
    "ray",
)


@dataclass(frozen=True)
class Guard:
    """What may end a run early, or a builder.

    Attributes:
        stop: SIGTERM or Ctrl-C.
        lease: on a root whose store cannot keep two writers apart; None elsewhere.
        stuck_seconds: silence after which a builder is restarted.
    """

    stop: StopRequest
    lease: Lease | None
    stuck_seconds: float

    def reason_to_stop(self) -> str:
        """Why the run should stop; empty while it should not."""
        if self.stop:
            return "stopped by a signal"
        try:
            if self.lease is not None:
                self.lease.check()
        except HeldError as error:
            return str(error)
        return ""


@dataclass(frozen=True)
class Crew:
    """Who builds.

    Attributes:
        actors: builders at work at once.
        gpus: GPUs each one reserves.
    """

    actors: int
    gpus: float


def build(options: BuildOptions) -> int:
    """Build or complete a dataset.

    Args:
        options: what and where.

    Returns:
        exit code: 0 when every planned sample is committed (or recorded as failed, within the limit).

    Raises:
        UsageError: anything wrong with the input, before a model loads.
    """
    if not options.output:
        raise UsageError("build.output is needed: the dataset's root, a local folder or s3://bucket/prefix")
    prompts = prompts_of(options)
    plan_of(
        options, prompts, segments=(options.samples,)
    )  # if prompts run out, that is said before Ray starts
    storage = open_storage(options.output)
    is_new(storage)
    sources = resolve_models(options.models)
    sources.check_layers(options.layers)
    stop = StopRequest()
    with connected() as cluster, stop.heeded(), sole_writer(storage) as lease:
        check_shared(storage.root, cluster)
        crew = crew_for(options, cluster)
        settings = pair_settings(options, on_gpu=crew.gpus > 0)
        dataset = Dataset.create_or_open(
            storage, dataset_settings(options, prompts, sources, settings), recorded_packages()
        )
        dataset.grow(options.samples, append=options.append)
        segments = plan_retries(dataset, options.max_attempts)
        plan = plan_of(options, prompts, segments)
        print(f"{len(plan)} samples in {len(plan.shards)} shards to {storage.root}, on {cluster}", flush=True)
        spec = builder_spec(storage.root, options, sources, settings)
        Spool(Path(spec.spool)).check_room(spec.shard_bytes)
        return complete(
            "build", dataset, plan, options, crew, spec, Guard(stop, lease, options.stuck_seconds)
        )


def complete(
    job: str,
    dataset: Dataset,
    plan: Plan,
    options: BuildOptions | ExtractOptions,
    crew: Crew,
    spec: BuilderSpec,
    guard: Guard,
) -> int:
    """Make what is missing, then check that nothing is.

    Args:
        job: whose options they are.
        dataset: opened for writing.
        plan: all that it should hold.
        options: how many failures are too many.
        crew: who makes it.
        spec: what each one is told.
        guard: what may end the run early.

    Returns:
        exit code.
    """
    todo = dataset.missing(plan)
    todo_samples = sum(len(shard.samples) for shard in todo)
    if len(todo) < len(plan.shards):
        print(f"{len(plan.shards) - len(todo)} shards are there already, {len(todo)} to make", flush=True)
    progress = Progress(job, len(plan), done=len(plan) - todo_samples)
    monitor = start_monitor(options, job)
    # Two builds on one root in the same order would make the same shards side by side; shuffled, they share them.
    random.shuffle(todo)
    there = 0
    if todo:
        with _watched(monitor, progress, guard):
            for row in _run(todo, crew, replace(spec, superseded=plan.superseded), monitor):
                there += row["outcome"] == "there"
                if row["outcome"] == "abandoned":
                    print(
                        f"{row['name']}: given up, its worker died each of {MAX_ATTEMPTS} times", flush=True
                    )
    if there:
        print(f"{there} shards were committed by another build meanwhile", flush=True)
    end: Snapshot = ray.get(monitor.snapshot.remote())
    progress.show(end.made + end.failed, _failed_note(end), final=True)
    dataset.write_manifest()
    missing = dataset.missing(plan)
    if not missing:
        print(_summary(dataset), flush=True)
        return 0
    why = end.stopping or f"{len(missing)} shards could not be made"
    print(f"not complete: {why}; {len(missing)} of {len(plan.shards)} shards missing. Run it again to go on.")
    return guard.stop.exit_code or 1


def start_monitor(options: BuildOptions | ExtractOptions, job: str) -> Any:
    """The run's `Monitor` as an actor beside the driver: anywhere else, a lost node could end the run."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Monitor)
    return actor.options(num_cpus=0, scheduling_strategy=here).remote(
        options.max_failed_fraction, options.max_consecutive_failures, job
    )


def _run(todo: list[PlannedShard], crew: Crew, spec: BuilderSpec, monitor: Any) -> Iterator[dict[str, Any]]:
    """One pass of Ray Data over the missing shards: one row is one shard."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    actors = min(crew.actors, len(todo))
    rows = ray.data.from_items([to_row(shard) for shard in todo], override_num_blocks=len(todo))
    return iter(
        rows.map_batches(
            ShardBuilder,
            fn_constructor_args=(spec, monitor),
            batch_size=1,
            num_cpus=BUILDER_CPUS,
            num_gpus=crew.gpus,
            # One shard in flight per actor: queued behind a slow one, a shard would wait while others idle.
            compute=ActorPoolStrategy(
                min_size=1, max_size=actors, initial_size=actors, max_tasks_in_flight_per_actor=1
            ),
        ).iter_rows()
    )


@contextmanager
def _watched(monitor: Any, progress: Progress, guard: Guard) -> Iterator[None]:
    """Show progress, pass a stop request on and restart stuck builders, from a thread beside the pass."""
    finished = threading.Event()

    def watch() -> None:
        passed_on = False
        while not finished.wait(0.5):
            if not passed_on and (reason := guard.reason_to_stop()):
                passed_on = True
                print(f"{reason}: stopping at the next sample boundary", flush=True)
                ray.get(monitor.stop.remote(reason))
            for stuck in ray.get(monitor.stuck.remote(guard.stuck_seconds)):
                print(
                    f"{stuck.shard}: {stuck.worker} has finished nothing for {duration(stuck.seconds)} "
                    f"(at work on {', '.join(stuck.at_work) or 'nothing it told of'}); restarting it",
                    flush=True,
                )
                ray.kill(stuck.handle, no_restart=False)
            now: Snapshot = ray.get(monitor.snapshot.remote())
            progress.show(now.made + now.failed, _failed_note(now))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _failed_note(now: Snapshot) -> str:
    return f"{now.failed} failed" if now.failed else ""


def _summary(dataset: Dataset) -> str:
    commits = dataset.commits()
    samples, failed = sum(commit.samples for commit in commits), sum(commit.failed for commit in commits)
    size = sum(commit.bytes for commit in commits) / 1e6
    return f"complete: {samples} samples, {failed} failed, {len(commits)} shards, {size:,.1f} MB"


def prompts_of(options: BuildOptions) -> PromptSource:
    """The prompts a run draws on."""
    return (
        read_prompts(Path(options.prompts), options.prompt_column) if options.prompts else builtin_prompts()
    )


def plan_of(options: BuildOptions, prompts: PromptSource, segments: Sequence[Segment]) -> Plan:
    """The plan of a run."""
    return make_plan(
        prompts.prompts,
        seed=options.seed,
        val_fraction=options.val_fraction,
        samples_per_shard=options.samples_per_shard,
        segments=segments,
    )


def crew_for(
    options: BuildOptions | ExtractOptions | CompareOptions, cluster: Cluster, job: str = "build"
) -> Crew:
    """How many builders, with how many GPUs each.

    Raises:
        UsageError: the cluster has not what was asked for.
    """
    gpus = options.gpus_per_actor if options.gpus_per_actor is not None else (1.0 if cluster.gpus else 0.0)
    if gpus > cluster.gpus:
        raise UsageError(
            f"{job}.gpus_per_actor = {gpus:g}: the cluster has {cluster.gpus:g} GPUs; "
            "lower it (0 runs on CPUs) or add nodes with GPUs"
        )
    most = int(cluster.gpus / gpus) if gpus else max(1, int(cluster.cpus))
    if options.actors and gpus and options.actors > most:
        raise UsageError(
            f"{job}.actors = {options.actors} at {gpus:g} GPUs each: the cluster has {cluster.gpus:g} GPUs, "
            f"enough for {most}; lower {job}.actors or {job}.gpus_per_actor"
        )
    return Crew(options.actors or most, gpus)


def arithmetic(dtype: str, *, on_gpu: bool) -> str:
    """A `dtype` option with `auto` resolved."""
    return dtype if dtype != "auto" else ("bfloat16" if on_gpu else "float32")


def pair_settings(options: BuildOptions, *, on_gpu: bool) -> PairSettings:
    """How pairs are made, with `auto` resolved."""
    return PairSettings(
        height=options.height,
        width=options.width,
        steps=options.steps,
        guidance=options.guidance,
        layers=tuple(options.layers),
        text_modes=tuple(options.text_modes),
        vl_tokens=options.vl_tokens,
        max_tokens=options.max_tokens,
        dtype=arithmetic(options.dtype, on_gpu=on_gpu),
        batch_size=options.batch_size,
    )


def builder_spec(
    root: str, options: BuildOptions, sources: ModelSources, settings: PairSettings
) -> BuilderSpec:
    """What every builder is told."""
    expected = Expected(
        text_modes=tuple(options.text_modes),
        layers=tuple(options.layers),
        width=options.width,
        height=options.height,
    )
    shard_bytes = options.samples_per_shard * bytes_per_sample(options, sources.hidden_size)
    maker = partial(PairMaker, sources, settings)
    return BuilderSpec(root, maker, expected, spool_folder(options.spool), shard_bytes)


def spool_folder(spool: str | None) -> str:
    """A `spool` option, or the folder that stands in for it."""
    return spool or str(default_spool())


def dataset_settings(
    options: BuildOptions, prompts: PromptSource, sources: ModelSources, settings: PairSettings
) -> dict[str, Any]:
    """Everything that decides the dataset's bytes; its hash is the fingerprint (FORMAT.md, dataset.json)."""
    return {
        "models": sources.to_json(),
        "dtype": settings.dtype,
        "height": options.height,
        "width": options.width,
        "steps": options.steps,
        "guidance": options.guidance,
        "layers": options.layers,
        "text_modes": options.text_modes,
        "vl_tokens": options.vl_tokens,
        "max_tokens": options.max_tokens,
        "samples_per_shard": options.samples_per_shard,
        "val_fraction": options.val_fraction,
        "seed": options.seed,
        "seed_scheme": "sha256(run seed:sample id)",
        "prompts": {"source": prompts.name, "sha256": prompts.sha256},
    }


def recorded_packages() -> dict[str, str]:
    """Versions of the packages that compute; recorded, not part of the fingerprint."""
    return {package: version(package) for package in RECORDED_PACKAGES}
