"""`import`: an external captioned set → a dataset of the same format. No picture is made, so no image model is loaded.

The source is read through once and what is taken of it written down, before anything runs; builders then fetch each
picture from where it lies.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from projector.inference.image_settings import check_max_tokens
from projector.making.imported import ImportSettings, load_import
from projector.models.resolve_readers import ReaderSources, resolve_readers
from ray_jobs.building.run import complete
from ray_jobs.cli.import_options import ImportOptions
from ray_jobs.cli.log import tell
from ray_jobs.cli.option_errors import options_of
from ray_jobs.cli.run_options import PIXEL_MULTIPLE, BuildOptions
from ray_jobs.cluster.connect import Cluster, nodes_without
from ray_jobs.cluster.crew import crew_for
from ray_jobs.cluster.guard import guarded
from ray_jobs.cluster.node_probe import recorded_packages
from ray_jobs.jobs.build import arithmetic
from ray_jobs.planning.size_estimate import bytes_per_sample
from shards.dataset.dataset import Dataset, is_new
from shards.dataset.failed_samples import plan_retries
from shards.errors import UsageError
from shards.format.plan import Plan, Segment, make_plan
from shards.format.splits import LEAST_HELD_OUT
from shards.sources.catalogue import Catalogue, catalogued, told_left_out
from shards.sources.source import Kind, SourceSpec
from shards.sources.survey import survey
from shards.stores.local import open_storage
from shards.stores.spool import Spool


@options_of("import", ImportOptions)
def importing(options: ImportOptions) -> int:
    """Import or complete an import.

    Args:
        options: what, how, and where to.

    Returns:
        exit code: 0 when every planned sample is committed (or recorded as failed, within the limit).

    Raises:
        UsageError: anything wrong with the input, before a model loads.
    """
    spec = spec_of(options)
    storage = open_storage(options.output)
    is_new(storage)
    models = resolve_readers(options.models)
    models.vl.check_layers(options.layers)
    check_max_tokens(Path(models.text.path), options.max_tokens)
    with Spool.at(options.spool).workspace("catalogue") as folder:
        catalogue = catalogued(storage, spec, options.rules, folder)
        samples = samples_of(options, catalogue)
        tell("source", summary_line(catalogue))
        most = options.max_failed_fraction
        if found := survey(spec, catalogue.items(samples), options.max_side, most):
            tell("source", found)
        size = options.samples_per_shard * sample_bytes(options, models.vl.hidden_size)
        with guarded(options, storage, size, [models.text, models.vl.model]) as (cluster, guard):
            check_visible(spec, cluster)
            crew = crew_for(options, cluster, "import")
            settings = import_settings(options, on_gpu=crew.gpus > 0)
            dataset = Dataset.create_or_open(
                storage, imported_settings(options, catalogue, models, settings), recorded_packages()
            )
            catalogue.put(storage)
            dataset.grow(samples, append=options.append)
            plan = plan_of(options, catalogue, plan_retries(dataset, options.max_attempts))
            tell("plan", f"{len(plan)} samples in {len(plan.shards)} shards to {storage.root}, on {cluster}")
            load = partial(load_import, storage.root, spec, models.text, models.vl.model, settings)
            return complete("import", dataset, plan, options, crew, load, size, guard)


def spec_of(options: ImportOptions) -> SourceSpec:
    """The source that is named."""
    assert options.kind is not None
    # Datasets have on record what tars were called first.
    kind: Kind = "webdataset" if options.kind == "tars" else options.kind
    return SourceSpec(kind, options.source, options.images, options.caption_column, options.image_column)


def samples_of(options: ImportOptions, catalogue: Catalogue) -> int:
    """How many samples are planned.

    Raises:
        UsageError: more than the source holds.
    """
    if options.samples is not None and options.samples > len(catalogue):
        raise UsageError(
            f"import.samples = {options.samples}: the source holds {len(catalogue)} to take; ask for at most so many"
        )
    return options.samples or len(catalogue)


def summary_line(catalogue: Catalogue) -> str:
    """What there is to take, as a line for people."""
    left_out = told_left_out(catalogue.record.left_out, catalogue.record.examples)
    return f"the source holds {len(catalogue)} samples to take" + (
        f"; left out: {left_out}" if left_out else ""
    )


def check_visible(spec: SourceSpec, cluster: Cluster) -> None:
    """Make sure that every node sees a local source.

    Raises:
        UsageError: some node does not.
    """
    for place in (spec.root, spec.images):
        local = place and not place.startswith("s3://") and len(cluster.nodes) > 1
        if local and (blind := nodes_without(Path(place), cluster)):
            raise UsageError(
                f"{place} is local to this node: {len(blind)} of {len(cluster.nodes)} nodes do not see it; "
                "use a shared file system or s3://bucket/prefix"
            )


def plan_of(options: ImportOptions, catalogue: Catalogue, segments: Sequence[Segment]) -> Plan:
    """The plan of an import."""
    total = max(segment for segment in segments if isinstance(segment, int))
    return make_plan(
        catalogue.items(total),
        seed=options.seed,
        val_fraction=options.val_fraction,
        test_fraction=options.test_fraction,
        least_held_out=LEAST_HELD_OUT,
        samples_per_shard=options.samples_per_shard,
        segments=segments,
    )


def import_settings(options: ImportOptions, *, on_gpu: bool) -> ImportSettings:
    """How samples are made, with `auto` resolved."""
    return ImportSettings(
        layers=tuple(options.layers),
        text_modes=tuple(options.text_modes),
        vl_tokens=options.vl_tokens,
        max_tokens=options.max_tokens,
        max_side=options.max_side,
        dtype=arithmetic(options.dtype, on_gpu=on_gpu),
        batch_size=options.batch_size,
        readers=tuple(options.readers),
    )


def imported_settings(
    options: ImportOptions, catalogue: Catalogue, models: ReaderSources, settings: ImportSettings
) -> dict[str, Any]:
    """Everything that decides the dataset's bytes; its hash is the fingerprint (FORMAT.md, dataset.json)."""
    return {
        "models": models.to_json(),
        "dtype": settings.dtype,
        "layers": options.layers,
        "text_modes": options.text_modes,
        "readers": options.readers,
        "vl_tokens": options.vl_tokens,
        "max_tokens": options.max_tokens,
        "samples_per_shard": options.samples_per_shard,
        "val_fraction": options.val_fraction,
        "test_fraction": options.test_fraction,
        "least_held_out": LEAST_HELD_OUT,
        "seed": options.seed,
        "seed_scheme": "sha256(run seed:sample id)",
        "import": {
            **catalogue.record.rules,
            "kind": catalogue.record.kind,
            "items": catalogue.record.items,
            "sha256": catalogue.record.sha256,
            "max_side": options.max_side,
        },
    }


def sample_bytes(options: ImportOptions, hidden_size: int) -> int:
    """Bytes of one sample, at most about: those of a square picture of the longest side."""
    side = -(-options.max_side // PIXEL_MULTIPLE) * PIXEL_MULTIPLE
    like = BuildOptions(
        height=side,
        width=side,
        layers=options.layers,
        text_modes=options.text_modes,
        readers=options.readers,
        latents=False,
        vl_tokens=options.vl_tokens,
    )
    return bytes_per_sample(like, hidden_size)
