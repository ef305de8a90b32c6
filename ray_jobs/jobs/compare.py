"""`compare`: pictures with and without the projector, one grid per reference, and their scores in compare.json."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image

from projector.comparison.cases import Case, as_webp
from projector.comparison.comparer import Comparer, CompareSettings, CompareSpec, check_prompts, columns_of
from projector.comparison.scores import interval, load_scorers
from projector.making.generated import PairSettings
from projector.models.resolve import ModelSources, resolve_models
from projector.network.checkpoint import CONFIG, WEIGHTS, put_json
from projector.network.projector import Projector
from ray_jobs.building.model_placement import check_offloading, device_memory, needs
from ray_jobs.cli.progress import Progress
from ray_jobs.cli.run_options import CompareOptions
from ray_jobs.cluster.connect import Cluster, StopRequest, connected
from ray_jobs.cluster.crew import Crew, crew_for
from ray_jobs.cluster.node_checks import check_nodes
from ray_jobs.cluster.workers import Work, spread, start_workers
from ray_jobs.jobs.build import arithmetic, check_pictures
from ray_jobs.jobs.compare_inputs import cases_of, check_fit, pictures_of, reference_of, scorer_of
from shards.dataset.dataset import fingerprint_of, setting_differences
from shards.errors import AlreadyExistsError, NotFoundError, UsageError
from shards.stores.local import open_storage
from shards.stores.store import Storage, json_object, read_json_object

COMPARISON = "compare.json"
SETTINGS = "compare-settings.json"


def compare(options: CompareOptions) -> int:
    """Make or complete a comparison.

    Args:
        options: which projector, of what, where to.

    Returns:
        exit code: 0 when every picture is there and compare.json is written.

    Raises:
        UsageError: anything wrong with the input, before a model loads.
    """
    if not options.checkpoint:
        raise UsageError("compare.checkpoint is needed: the folder of a trained projector")
    projector = Projector.from_pretrained(options.checkpoint)
    storage = open_storage(options.output or f"{options.checkpoint.rstrip('/')}/compare")
    sources = resolve_models(options.models, "compare.models")
    check_fit(projector, sources)
    check_pictures(options, sources, "compare")
    siglip = scorer_of(options)
    load_scorers(options.scorers)
    pictures = pictures_of(options, projector)
    check_prompts([prompt for _, prompt in pictures], sources, options.max_tokens)
    reference = reference_of(options, projector)
    cases = cases_of(pictures, options.seed)
    stop = StopRequest()
    with connected() as cluster, stop.heeded():
        check_nodes(cluster, writes=[storage.root], models=[sources.image, sources.vl])
        crew = crew_for(options, cluster, "compare")
        settings = settings_of(options, on_gpu=crew.gpus > 0)
        claim(storage, identity_of(options, settings, sources))
        put_references(storage, cases, pictures)
        checkpoint = open_storage(options.checkpoint).root
        spec = CompareSpec(
            storage.root,
            checkpoint,
            sources,
            siglip,
            tuple(options.scorers),
            settings,
            reference,
            one_at_a_time(cluster, crew, sources, settings, projector),
        )
        print(
            f"{len(cases)} references, {len(columns_of(options.methods, options.alphas))} pictures each, "
            f"to {storage.root}, on {cluster}",
            flush=True,
        )
        scores = complete(options, storage, cases, crew, spec, stop)
    if scores is None:
        print("not complete: stopped by a signal. Run it again to go on.", flush=True)
        return stop.exit_code or 1
    result = comparison(options, cases, spec, scores)
    put_json(storage, COMPARISON, result)
    print_summary(result)
    return 0


def settings_of(options: CompareOptions, *, on_gpu: bool) -> CompareSettings:
    """How pictures are made, with `auto` resolved."""
    return CompareSettings(
        height=options.height,
        width=options.width,
        steps=options.steps,
        guidance=options.guidance,
        max_tokens=options.max_tokens,
        dtype=arithmetic(options.dtype, on_gpu=on_gpu),
        blend=options.blend,
    )


def one_at_a_time(
    cluster: Cluster, crew: Crew, sources: ModelSources, settings: CompareSettings, projector: Projector
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
    """Everything that decides a picture besides what its key says: reference, method and alpha."""
    checkpoint = open_storage(options.checkpoint)
    decisive = {key: value for key, value in asdict(settings).items() if key != "max_tokens"}
    return {
        **decisive,
        "blended": "caption rows, by area",  # earlier versions mixed template rows too, and read single tokens
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


def put_references(
    storage: Storage, cases: Sequence[Case], pictures: Sequence[tuple[Image.Image, str]]
) -> None:
    """Put the reference pictures that are not there yet."""
    for case, (picture, _) in zip(cases, pictures, strict=True):
        if storage.stat(case.reference) is None:
            storage.put_bytes(case.reference, as_webp(picture))


def complete(
    options: CompareOptions,
    storage: Storage,
    cases: Sequence[Case],
    crew: Crew,
    spec: CompareSpec,
    stop: StopRequest,
) -> list[list[dict[str, float]]] | None:
    """Make the pictures that are missing, then score all.

    Returns:
        scores by case and picture, in the order of `columns_of`; None when stopped by a signal.
    """
    columns = columns_of(options.methods, options.alphas)
    there = {entry.key for entry in storage.list("pictures/")}
    wanted = [(case, column) for case in cases for column in columns]
    todo: list[Work] = [
        ("make", (case, *column)) for case, column in wanted if case.picture(*column) not in there
    ]
    workers = start_workers(CompareWorker, spec, min(crew.actors, max(len(todo), len(cases))), crew.gpus)
    progress = Progress("compare", len(wanted), done=len(wanted) - len(todo), unit="pictures")
    made = 0
    for made, _ in enumerate(spread(workers, todo, stop), start=1):
        if made < len(todo):
            progress.show(made)
    progress.show(made, final=True)
    scores: dict[int, Any] = {}
    judging: list[Work] = [("judge", (case, options.methods, options.alphas)) for case in cases]
    if made == len(todo):
        scores = dict(spread(workers, judging, stop))
    return [scores[index] for index in range(len(cases))] if len(scores) == len(cases) else None


class CompareWorker(Comparer):
    """A `Comparer` in a process of its own."""

    def __init__(self, spec: CompareSpec) -> None:
        torch.set_num_threads(
            1
        )  # as builders do: pictures must not depend on how many cores happened to be free
        super().__init__(spec)


def comparison(
    options: CompareOptions,
    cases: Sequence[Case],
    spec: CompareSpec,
    scores: Sequence[Sequence[Mapping[str, float]]],
) -> dict[str, Any]:
    """The content of compare.json."""
    columns = columns_of(options.methods, options.alphas)
    methods: dict[str, dict[str, Any]] = {}
    for number, (method, alpha) in enumerate(columns):
        of_column = [by_column[number] for by_column in scores]
        methods.setdefault(method, {})[str(alpha)] = {
            name: interval([entry[name] for entry in of_column]) for name in of_column[0]
        }
    references = [
        {
            "name": case.name,
            "prompt": case.prompt,
            "seed": case.seed,
            "reference": case.reference,
            "grid": case.grid,
            "pictures": [
                {"method": method, "alpha": alpha, "file": case.picture(method, alpha), "scores": dict(entry)}
                for (method, alpha), entry in zip(columns, by_column, strict=True)
            ],
        }
        for case, by_column in zip(cases, scores, strict=True)
    ]
    return {
        "alphas": options.alphas,
        "blend": options.blend,
        "checkpoint": spec.checkpoint,
        "settings": asdict(spec.settings) | {"seed": options.seed, "models": spec.models.to_json()},
        "scorer": spec.siglip.id if spec.siglip else "none",
        "interval": "95%, Student's t over references",
        "references": references,
        "methods": methods,
    }


def print_summary(result: Mapping[str, Any]) -> None:
    """Mean scores, a line per method and alpha."""
    for method, by_alpha in result["methods"].items():
        for alpha, scores in by_alpha.items():
            told = ", ".join(f"{name} {found['mean']:.3f}" for name, found in scores.items())
            print(f"{method:>14} at alpha {alpha}: {told}", flush=True)
