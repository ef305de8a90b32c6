"""`build`: plan → images and paired embeddings → committed shards. Runs until the plan is whole, or says why not."""

from collections.abc import Callable
from functools import partial
from typing import Any

from projector.comparison.comparer import CompareSettings
from projector.inference.image_settings import check_image_settings
from projector.making.generated import PairSettings, PictureReader
from projector.making.shard_maker import FusedMaker, StagedMaker
from projector.making.steps import ShardMaker
from projector.models.resolve import ModelSources, resolve_models
from ray_jobs.building.run import complete
from ray_jobs.cli.log import tell
from ray_jobs.cli.option_errors import options_of
from ray_jobs.cli.run_options import BuildOptions
from ray_jobs.cluster.connect import Cluster
from ray_jobs.cluster.crew import Crew, crew_for, with_readers
from ray_jobs.cluster.guard import guarded
from ray_jobs.cluster.node_probe import recorded_packages
from ray_jobs.planning.build_plan import plan_of, prompts_of
from ray_jobs.planning.model_placement import (
    Placement,
    check_offloading,
    choose_placement,
    device_memory,
    needs,
)
from ray_jobs.planning.size_estimate import bytes_per_sample
from shards.dataset.dataset import Dataset, is_new
from shards.dataset.failed_samples import plan_retries
from shards.format.splits import LEAST_HELD_OUT
from shards.prompts.prompt import PromptSource
from shards.stores.local import open_storage


@options_of("build", BuildOptions)
def build(options: BuildOptions) -> int:
    """Build or complete a dataset.

    Args:
        options: what and where.

    Returns:
        exit code: 0 when every planned sample is committed (or recorded as failed, within the limit).

    Raises:
        UsageError: anything wrong with the input, before a model loads.
    """
    prompts = prompts_of(options)
    plan_of(
        options, prompts, segments=(options.samples,)
    )  # if prompts run out, that is said before Ray starts
    storage = open_storage(options.output)
    is_new(storage)
    sources = resolve_models(options.models)
    sources.check_layers(options.layers)
    check_pictures(options, sources)
    size = shard_bytes(options, sources)
    with guarded(options, storage, size, [sources.image, sources.vl]) as (cluster, guard):
        settings, crew, placement, why = arranged(options, cluster, sources)
        dataset = Dataset.create_or_open(
            storage, dataset_settings(options, prompts, sources, settings), recorded_packages()
        )
        dataset.grow(options.samples, append=options.append)
        plan = plan_of(options, prompts, plan_retries(dataset, options.max_attempts))
        tell("plan", f"{len(plan)} samples in {len(plan.shards)} shards to {storage.root}, on {cluster}")
        if why:
            tell("placement", why)
        make, read = maker_of(placement, sources, settings), partial(PictureReader.load, sources, settings)
        return complete("build", dataset, plan, options, crew, make, size, guard, read)


def arranged(
    options: BuildOptions, cluster: Cluster, sources: ModelSources
) -> tuple[PairSettings, Crew, Placement, str]:
    """How the models of a run are spread over a cluster.

    Returns:
        settings with `auto` resolved, who builds, where the models stand, and why, as a line for people.

    Raises:
        UsageError: the cluster has not what was asked for, or the models do not fit its devices.
    """
    crew = crew_for(options, cluster)
    settings = pair_settings(options, on_gpu=crew.gpus > 0)
    memory = device_memory(cluster, crew.gpus)
    wanted = needs(sources, settings)
    placement, why = choose_placement(options.placement, wanted, memory)
    if placement == "offload" and crew.gpus:
        check_offloading(cluster, crew.actors, crew.gpus, wanted)
    if placement == "staged":
        crew = with_readers(crew, options, cluster)
    return settings, crew, placement, why


def check_pictures(asked: BuildOptions | CompareSettings, sources: ModelSources) -> None:
    """Check size, steps and guidance against the image model's files; prints what does not belong together."""
    for warning in check_image_settings(
        sources.image,
        height=asked.height,
        width=asked.width,
        steps=asked.steps,
        guidance=asked.guidance,
        max_tokens=asked.max_tokens,
    ):
        tell("models", f"warning: {warning}")


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
        batch_size=None if options.batch_size == "auto" else options.batch_size,
        compile=options.compile,
        quantize=options.quantize,
        readers=tuple(options.readers),
        latents=options.latents,
    )


def maker_of(placement: Placement, sources: ModelSources, settings: PairSettings) -> Callable[[], ShardMaker]:
    """What a builder makes samples with."""
    if placement == "staged":
        return partial(StagedMaker.load, sources.image, settings)
    return partial(FusedMaker.load, sources, settings, one_at_a_time=placement == "offload")


def shard_bytes(options: BuildOptions, sources: ModelSources) -> int:
    """Bytes of a full shard, about."""
    return options.samples_per_shard * bytes_per_sample(options, sources.hidden_size)


def dataset_settings(
    options: BuildOptions, prompts: PromptSource, sources: ModelSources, settings: PairSettings
) -> dict[str, Any]:
    """Everything that decides the dataset's bytes; its hash is the fingerprint (FORMAT.md, dataset.json)."""
    return {
        "models": sources.to_json(),
        "dtype": settings.dtype,
        **({} if settings.quantize == "none" else {"quantize": settings.quantize}),
        "height": options.height,
        "width": options.width,
        "steps": options.steps,
        "guidance": options.guidance,
        "layers": options.layers,
        "text_modes": options.text_modes,
        "readers": options.readers,
        "latents": options.latents,
        "vl_tokens": options.vl_tokens,
        "max_tokens": options.max_tokens,
        "samples_per_shard": options.samples_per_shard,
        "val_fraction": options.val_fraction,
        "test_fraction": options.test_fraction,
        "least_held_out": LEAST_HELD_OUT,
        "seed": options.seed,
        "seed_scheme": "sha256(run seed:sample id)",
        "batches": "by length",  # mates move a picture's last bits
        "prompts": {
            "source": prompts.name,
            "sha256": prompts.sha256,
            **({"near_duplicates": options.near_duplicates} if options.prompts else {}),
        },
    }
