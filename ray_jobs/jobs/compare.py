"""`compare`: pictures with and without the projector, a grid for each reference and prompt, scores in compare.json."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image

from projector.comparison.blockiness import SMALLEST
from projector.comparison.cases import Case
from projector.comparison.comparer import Comparer, CompareSettings, CompareSpec, check_prompts
from projector.comparison.scores import load_scorers
from projector.making.generated import PairSettings
from projector.models.resolve import MINIATURE, ModelSources, resolve_models
from projector.network.checkpoint import CONFIG, WEIGHTS, put_json
from projector.network.projector import Projector
from projector.options import GRAFT, SCENE_PIXELS
from ray_jobs.cli.option_errors import options_of
from ray_jobs.cli.progress import Progress
from ray_jobs.cli.run_options import CompareOptions
from ray_jobs.cluster.connect import Cluster, StopRequest, connected
from ray_jobs.cluster.crew import Crew, crew_for
from ray_jobs.cluster.node_checks import check_nodes
from ray_jobs.cluster.workers import Work, spread, start_workers
from ray_jobs.jobs.build import arithmetic, check_pictures
from ray_jobs.jobs.compare_inputs import cases_to_make, check_fit, known_of, modes_of, scorer_of
from ray_jobs.jobs.compare_outcome import CaseWork, comparison, print_summary, put_grids
from ray_jobs.planning.model_placement import check_offloading, device_memory, needs
from shards.dataset.dataset import fingerprint_of, setting_differences
from shards.errors import AlreadyExistsError, NotFoundError, UsageError
from shards.format.sample import as_png
from shards.stores.local import open_storage
from shards.stores.store import Storage, json_object, read_json_object

COMPARISON = "compare.json"
CASES = "cases.json"
SETTINGS = "compare-settings.json"
SIDE = 1024  # pixels, after trainings on pictures of many sizes


@options_of("compare", CompareOptions)
def compare(options: CompareOptions) -> int:
    """Make or complete a comparison.

    Args:
        options: which projector, of what, where to.

    Returns:
        exit code: 0 when every picture is there and compare.json is written.

    Raises:
        UsageError: anything wrong with the input, before a model loads.
    """
    projector = Projector.from_pretrained(options.checkpoint)
    storage = open_storage(options.output or f"{options.checkpoint.rstrip('/')}/compare")
    sources = resolve_models(options.models)
    check_fit(projector, sources)
    check_pictures(settings_of(options, projector, on_gpu=False), sources)
    siglip = scorer_of(options)
    load_scorers(options.scorers)
    modes = modes_of(options, projector)
    cases = cases_to_make(options, projector, modes)
    check_prompts([case.prompt for case, _ in cases if case.prompt], sources, options.max_tokens)
    reference, suffix = known_of(options, projector, modes)
    work = [(case, case.columns(options.methods, modes, options.alphas)) for case, _ in cases]
    stop = StopRequest()
    with connected() as cluster, stop.heeded():
        check_nodes(cluster, writes=[storage.root], models=[sources.image, sources.vl])
        crew = crew_for(options, cluster, "compare")
        settings = settings_of(options, projector, on_gpu=crew.gpus > 0)
        claim(storage, identity_of(options, settings, sources))
        put_references(storage, cases)
        spec = CompareSpec(
            storage.root,
            open_storage(options.checkpoint).root,
            sources,
            siglip,
            tuple(options.scorers),
            settings,
            reference,
            suffix,
            attributes=sources.image.id == MINIATURE,
            one_at_a_time=one_at_a_time(
                cluster,
                crew,
                sources,
                settings,
                projector,
                grafted=GRAFT in options.methods and projector.reader != GRAFT,
            ),
        )
        print(
            f"{len({case.group for case, _ in cases})} references, {len(cases)} cases, "
            f"{sum(len(columns) for _, columns in work)} pictures, to {storage.root}, on {cluster}",
            flush=True,
        )
        scores = complete(storage, work, crew, spec, stop)
    if scores is None:
        print("not complete: stopped by a signal. Run it again to go on.", flush=True)
        return stop.exit_code or 1
    result = comparison(options, modes, work, spec, scores)
    put_json(storage, COMPARISON, result)
    put_grids(storage, [case for case, _ in work])
    print_summary(result)
    return 0


def settings_of(options: CompareOptions, projector: Projector, *, on_gpu: bool) -> CompareSettings:
    """How pictures are made, with `auto` and sizes that were not given resolved."""
    trained_on, otherwise = projector.picture_size, SCENE_PIXELS if options.models == "mini" else SIDE
    return CompareSettings(
        height=options.height or max(SMALLEST, trained_on.get("height", otherwise)),
        width=options.width or max(SMALLEST, trained_on.get("width", otherwise)),
        steps=options.steps,
        guidance=options.guidance,
        max_tokens=options.max_tokens,
        dtype=arithmetic(options.dtype, on_gpu=on_gpu),
        blend=options.blend,
    )


def one_at_a_time(
    cluster: Cluster,
    crew: Crew,
    sources: ModelSources,
    settings: CompareSettings,
    projector: Projector,
    *,
    grafted: bool,
) -> bool:
    """Whether a worker's GPU has room for only one of the models at a time, by the rules of a build.

    Raises:
        UsageError: it has not even that, or the machine's memory has no room for the others.
    """
    like = PairSettings(
        height=settings.height,
        width=settings.width,
        steps=settings.steps,
        guidance=settings.guidance,
        layers=(projector.layer,),
        text_modes=("none",),
        vl_tokens=projector.vl_tokens,
        max_tokens=settings.max_tokens,
        dtype=settings.dtype,
        batch_size=1,
        quantize=projector.quantize,
        readers=("vl", "graft") if grafted else ("vl",),
    )
    memory, wanted = device_memory(cluster, crew.gpus), needs(sources, like)
    if memory is None or wanted.of("fused") <= memory:
        return False
    if (weights := wanted.of("offload") - wanted.beside) > memory:
        raise UsageError(
            f"compare.gpus_per_actor: the largest model takes {weights / 1e9:.1f} GB, a worker has {memory / 1e9:.0f} "
            "GB of a GPU; give each worker more of one, or use larger GPUs"
        )
    check_offloading(cluster, crew.actors, crew.gpus, wanted, "compare")
    print(
        f"one model at a time: all would take {wanted.of('fused') / 1e9:.0f} GB of {memory / 1e9:.0f} GB a worker",
        flush=True,
    )
    return True


def identity_of(options: CompareOptions, settings: CompareSettings, sources: ModelSources) -> dict[str, Any]:
    """Everything that decides a picture besides what its key says: reference, prompt, method, mode and value."""
    checkpoint = open_storage(options.checkpoint)
    decisive = {key: value for key, value in asdict(settings).items() if key != "max_tokens"}
    return {
        **decisive,
        "rows": "of the whole conditioning",  # earlier versions had other files, rows and noise
        "seed": options.seed,
        "data": options.data or "the checkpoint's",
        "checkpoint": {
            name: hashlib.sha256(checkpoint.get_bytes(name)).hexdigest() for name in (CONFIG, WEIGHTS)
        },
        "models": sources.to_json(),
    }


def claim(storage: Storage, settings: Mapping[str, Any]) -> None:
    """Write down what the output's pictures are made with, or make sure that it is the same as before.

    Raises:
        UsageError: the output holds pictures made otherwise; names each difference.
    """
    mine = {"fingerprint": fingerprint_of(settings), "settings": dict(settings)}
    try:
        theirs = read_json_object(storage, SETTINGS)
    except NotFoundError:
        try:
            storage.put_bytes(SETTINGS, json_object(mine), create_only=True)
            return
        except AlreadyExistsError:  # another run was first
            theirs = read_json_object(storage, SETTINGS)
    if theirs.get("fingerprint") != mine["fingerprint"]:
        found = "; ".join(setting_differences(theirs.get("settings"), settings))
        raise UsageError(
            f"{storage.root} holds pictures made with other settings: {found}; "
            f"use those, choose another compare.output, or delete that folder's pictures and {SETTINGS}"
        )


def put_references(storage: Storage, cases: Sequence[tuple[Case, Image.Image]]) -> None:
    """Put the reference pictures that are not there yet."""
    for case, picture in cases:
        if storage.stat(case.reference) is None:
            storage.put_bytes(case.reference, as_png(picture))


def complete(
    storage: Storage, work: Sequence[CaseWork], crew: Crew, spec: CompareSpec, stop: StopRequest
) -> list[list[dict[str, float]]] | None:
    """Make the pictures that are missing, list them in cases.json, then score all.

    Returns:
        scores by case and picture, in the order of the work; None when stopped by a signal.
    """
    there = {entry.key for entry in storage.list("pictures/")}
    wanted = [(case, column) for case, columns in work for column in columns]
    todo: list[Work] = [
        ("make", (case, column)) for case, column in wanted if case.picture(column) not in there
    ]
    workers = start_workers(CompareWorker, spec, min(crew.actors, max(len(todo), len(work))), crew.gpus)
    progress = Progress("compare", len(wanted), done=len(wanted) - len(todo), unit="pictures")
    made = 0
    for made, _ in enumerate(spread(workers, todo, stop), start=1):
        if made < len(todo):
            progress.show(made)
    progress.show(made, final=True)
    if made < len(todo):
        return None
    put_json(storage, CASES, listed(work))
    scores = dict(spread(workers, [("judge", one) for one in work], stop))
    return [scores[index] for index in range(len(work))] if len(scores) == len(work) else None


def listed(work: Sequence[CaseWork]) -> list[dict[str, Any]]:
    """The content of cases.json: every picture, so that others can judge it."""
    return [
        {
            "case": case.name,
            "reference": case.reference,
            "prompt": case.prompt,
            **column._asdict(),
            "file": case.picture(column),
        }
        for case, columns in work
        for column in columns
    ]


class CompareWorker(Comparer):
    """A `Comparer` in a process of its own."""

    def __init__(self, spec: CompareSpec) -> None:
        torch.set_num_threads(
            1
        )  # as builders do: pictures must not depend on how many cores happened to be free
        super().__init__(spec)
