"""`extract`: an existing dataset → the same pictures and captions with other hidden states, in a dataset of its own.

The plan is what the source holds: same splits, shards, places and keys. Only the vision-language model is loaded.
"""

from functools import partial
from typing import Any

from projector.making.reread import RereadSettings, rereading
from projector.models.resolve import OWN_MODELS, ModelSource, VisionSource, resolve_vision
from projector.models.resolve_readers import resolve_text
from projector.options import GRAFT
from ray_jobs.building.run import complete
from ray_jobs.cli.log import tell
from ray_jobs.cli.option_errors import options_of
from ray_jobs.cli.run_options import BuildOptions, ExtractOptions
from ray_jobs.cluster.crew import crew_for
from ray_jobs.cluster.guard import guarded
from ray_jobs.cluster.node_probe import recorded_packages
from ray_jobs.jobs.build import arithmetic
from ray_jobs.planning.size_estimate import bytes_per_sample
from shards.dataset.dataset import Dataset, is_new
from shards.dataset.read import read_plan
from shards.errors import CorruptShardError, UsageError
from shards.format.plan import Plan, planned_count
from shards.format.statistics import RunningStatistics
from shards.stores.local import open_storage
from shards.tools.gc_and_repair import require_shards


@options_of("extract", ExtractOptions)
def extract(options: ExtractOptions) -> int:
    """Make or complete a dataset of new hidden states.

    Args:
        options: which pictures, how, and where to.

    Returns:
        exit code: 0 when every sample of the source is committed (or recorded as failed, within the limit).

    Raises:
        UsageError: anything wrong with the input, before a model loads.
    """
    source = Dataset.open(open_storage(options.data))
    require_shards(source)
    storage = open_storage(options.output)
    if f"{storage.root}/".startswith(f"{source.storage.root}/"):
        raise UsageError(
            f"extract.output = {options.output!r}: is, or lies in, the dataset that is read; give another root"
        )
    is_new(storage)
    vl = resolve_vision(vl_name(options, source), "vl")
    vl.check_layers(options.layers)
    check_width(vl, source)
    pipeline = pipeline_of(options, source)
    plan = read_plan(source)
    size = shard_bytes(options, source, plan, vl.hidden_size)
    models = [vl.model] + ([pipeline] if pipeline else [])
    with guarded(options, storage, size, models, [source.storage.root]) as (cluster, guard):
        crew = crew_for(options, cluster, "extract")
        settings = reread_settings(options, source, on_gpu=crew.gpus > 0)
        dataset = Dataset.create_or_open(
            storage, extracted_settings(source, vl, settings), recorded_packages()
        )
        follow(dataset, plan, source.storage.root)
        tell(
            "plan",
            f"{len(plan)} samples of {source.storage.root} in {len(plan.shards)} shards to {storage.root}, "
            f"on {cluster}",
        )
        read = partial(rereading, source.storage.root, vl.model, pipeline, settings)
        return complete("extract", dataset, plan, options, crew, read, size, guard)


def vl_name(options: ExtractOptions, source: Dataset) -> str:
    """The model to read with; UsageError where none is named and the source does not say where its own lies."""
    return options.vl or own_family(source, "vl", "extract.vl")


def pipeline_of(options: ExtractOptions, source: Dataset) -> ModelSource | None:
    """The pipeline whose text encoder the graft takes; None without a graft.

    Raises:
        UsageError: none is named, or it has another text encoder than the one that made the text embeddings.
    """
    if GRAFT not in options.readers:
        return None
    made_with = source.settings.get("models", {})
    part = "image" if "image" in made_with else "text"
    text = resolve_text(options.image or own_family(source, part, "extract.image"), "image")
    before, now = (
        {name: digest for name, digest in files.items() if name.startswith("text_encoder/")}
        for files in (made_with.get(part, {}).get("files", {}), text.files)
    )
    if before != now:
        raise UsageError(
            f"extract.image = {text.id!r}: its text encoder is not the one that made the text embeddings in "
            f"{source.storage.root}, and the graft must be of that one; give the pipeline that made them"
        )
    return text


def own_family(source: Dataset, part: str, option: str) -> str:
    """Which of the project's own models made a part of the source; UsageError where another one did."""
    built_with = str(source.settings.get("models", {}).get(part, {}).get("id", "a model it does not name"))
    family = built_with.removesuffix("/vl").removesuffix("/image")
    if family not in OWN_MODELS:
        raise UsageError(
            f"{option} is needed: {source.storage.root} was made with {built_with}, and a dataset does not say where "
            "its model lies; give that model's folder or hub id, or another one"
        )
    return family


def check_width(vl: VisionSource, source: Dataset) -> None:
    """Refuse a model whose hidden states have another width than the text embeddings that are taken over."""
    name = next(commit.name for commit in source.commits() if commit.samples)
    try:
        statistics = source.commit_file(name)["statistics"]["text/caption"]
        width = len(RunningStatistics.from_json(statistics).mean)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptShardError(
            f"{source.storage.root}: the statistics in {name}'s commit are corrupt: {error}; run repair"
        ) from None
    if width != vl.hidden_size:
        raise UsageError(
            f"extract.vl = {vl.model.id!r}: its hidden size is {vl.hidden_size}, that of the text embeddings in "
            f"{source.storage.root} is {width}; use a model of width {width}"
        )


def reread_settings(options: ExtractOptions, source: Dataset, *, on_gpu: bool) -> RereadSettings:
    """How pictures are read, with `auto` resolved and weights rounded as the source's were, whose settings stay."""
    return RereadSettings(
        layers=tuple(options.layers),
        text_modes=tuple(options.text_modes),
        vl_tokens=options.vl_tokens,
        dtype=arithmetic(options.dtype, on_gpu=on_gpu),
        batch_size=options.batch_size,
        quantize=source.settings.get("quantize", "none"),
        readers=tuple(options.readers),
    )


def extracted_settings(source: Dataset, vl: VisionSource, settings: RereadSettings) -> dict[str, Any]:
    """Everything that decides the new dataset's bytes: the source's settings, what is new, and which source."""
    return {
        **source.settings,
        "models": {**source.settings.get("models", {}), "vl": vl.model.to_json()},
        "layers": settings.layers,
        "text_modes": settings.text_modes,
        "readers": settings.readers,
        "vl_tokens": settings.vl_tokens,
        "dtype": settings.dtype,
        "source": {"fingerprint": source.fingerprint},
    }


def shard_bytes(options: ExtractOptions, source: Dataset, plan: Plan, hidden_size: int) -> int:
    """Bytes of the largest new shard, about."""
    size = {name: source.settings[name] for name in ("height", "width") if source.settings.get(name)}
    like = BuildOptions(
        **size,
        latents=source.settings.get("latents", False),
        layers=options.layers,
        text_modes=options.text_modes,
        readers=options.readers,
        vl_tokens=options.vl_tokens,
    )
    return max(len(shard.samples) for shard in plan.shards) * bytes_per_sample(like, hidden_size)


def follow(dataset: Dataset, plan: Plan, source: str) -> None:
    """Record as many samples as the source holds by now.

    Args:
        dataset: the new one.
        plan: what the source holds.
        source: its root, for errors.

    Raises:
        UsageError: the source no longer holds what the new dataset was made from.
    """
    before = planned_count(dataset.segments())
    if len(plan) < before:
        raise UsageError(
            f"extract.data = {source!r}: holds {len(plan)} samples, "
            f"and {dataset.storage.root} was planned for {before}; "
            "complete the source first (build, or this job, makes repaired shards again), or give another output"
        )
    slices = {shard.name: shard.slice_hash for shard in plan.shards}
    stale = [commit.name for commit in dataset.commits() if slices.get(commit.name) != commit.slice_hash]
    if stale:
        raise UsageError(
            f"extract.output = {dataset.storage.root!r}: the source no longer holds what {', '.join(stale[:3])} "
            f"({len(stale)} shards) were made from, as it was repaired since; remove their files in _commit/ there "
            "and run again, or give another output"
        )
    dataset.grow(len(plan), append=True)
