"""`preflight`: whether every node of the cluster is fit for a build or a training; a table, the faults, a verdict."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from projector.models.resolve import ModelSources, resolve_models
from projector.network.checkpoint import put_json
from projector.options import TrainOptions
from ray_jobs.building.run import CALLS_AT_ONCE
from ray_jobs.cli.option_errors import options_of
from ray_jobs.cli.run_options import BuildOptions, PreflightOptions
from ray_jobs.cluster.connect import Cluster, connected
from ray_jobs.cluster.crew import crew_for, with_readers
from ray_jobs.cluster.node_checks import CHECKS, Fault, Node, ask_nodes, faults_of, probed
from ray_jobs.cluster.node_probe import TO_BE_FETCHED, Question, glance_at, plain, versions_here
from ray_jobs.jobs.build import check_pictures, pair_settings, shard_bytes
from ray_jobs.jobs.train import check_workers
from ray_jobs.planning.model_placement import check_offloading, choose_placement, needs
from shards.errors import StorageError, UsageError
from shards.stores.local import open_storage

FILE = "preflight.json"


@options_of("build", BuildOptions)
def preflight(options: PreflightOptions, build: BuildOptions, train: TrainOptions) -> int:
    """Ask every node, before any model loads; nothing is left behind but the file that is asked for.

    Args:
        options: where the findings go.
        build: the build that is to run; left out where it has no output.
        train: the training that is to run; left out where it has no output.

    Returns:
        exit code: 0 when every node is fit, 1 otherwise.

    Raises:
        UsageError: nothing to check for, or models that the driver itself cannot find.
    """
    writes = tuple(root for root in (build.output, train.output) if root)
    if not writes:
        raise UsageError(
            "build.output or train.output is needed: the results' root, a local folder or s3://bucket/prefix; "
            "give preflight the options of the job that it is for"
        )
    sources = resolve_models(build.models) if build.output else None
    if sources:
        sources.check_layers(build.layers)
        check_pictures(build, sources)
    with connected() as cluster:
        nodes, faults = survey(cluster, writes, build, train, sources)
    lines = [
        *table(nodes, faults),
        "",
        *(f"fault: {fault}" for fault in faults),
        preflight_verdict(nodes, faults),
    ]
    print("\n".join(lines), flush=True)
    if options.output:
        put_json(open_storage(options.output), FILE, findings(nodes, faults))
    return 1 if faults else 0


def survey(
    cluster: Cluster,
    writes: Sequence[str],
    build: BuildOptions,
    train: TrainOptions,
    sources: ModelSources | None,
) -> tuple[list[Node], list[Fault]]:
    """Ask the nodes, and judge what each says and what they are together.

    Args:
        cluster: what Ray was told of.
        writes: roots that results go to.
        build, train: what is to run; without an output it is left out.
        sources: the build's models; None without a build.
    """
    models = (sources.image, sources.vl) if sources else ()
    question = Question(
        writes=tuple(writes),
        reads=(train.data, *(train.also or ())) if train.output and train.data else (),
        models=models,
        spool=build.spool,
        spool_bytes=CALLS_AT_ONCE * shard_bytes(build, sources) if sources else 0,
        devices=True,
    )
    faults: list[Fault] = []
    with ExitStack() as stack:
        try:
            question = replace(question, probe=stack.enter_context(probed(writes)))
        except (UsageError, StorageError) as error:  # the nodes are asked all the same
            faults.append(Fault("driver", "store", plain(error)))
        nodes = ask_nodes(question, builders_on_gpus=cluster.gpus > 0)
    versions, seen = versions_here(), {model.id: glance_at(model) for model in models}
    faults += [fault for node in nodes for fault in faults_of(node, versions, seen)]
    try:
        if sources:
            faults += crowded(nodes, *placed(build, cluster, sources, nodes))
        if train.output:
            check_workers(train, cluster, train.batch_size)
    except UsageError as error:
        faults.append(Fault("cluster", "GPUs", str(error)))
    return nodes, faults


def placed(
    build: BuildOptions, cluster: Cluster, sources: ModelSources, nodes: Sequence[Node]
) -> tuple[float, float]:
    """Whether the models find their places, as `build` would see it, with the smallest GPU that a node told of.

    Returns:
        bytes that a builder needs on a GPU, and the share of a GPU that it has.

    Raises:
        UsageError: the cluster has not what was asked for, or the models do not fit.
    """
    crew = crew_for(build, cluster)
    wanted = needs(sources, pair_settings(build, on_gpu=crew.gpus > 0))
    share = min(crew.gpus, 1.0)
    smallest = min((device.total for node in nodes for device in node.devices), default=None)
    memory = share * smallest if share and smallest else None
    placement, _ = choose_placement(build.placement, wanted, memory)
    if placement == "offload" and crew.gpus:
        check_offloading(cluster, crew.actors, crew.gpus, wanted)
    if placement == "staged":
        with_readers(crew, build, cluster)
    return wanted.of(placement), share


def crowded(nodes: Sequence[Node], needed: float, share: float) -> list[Fault]:
    """The GPUs that would do, were nothing else on them."""
    return [
        Fault(
            str(node),
            "GPUs",
            f"GPU {number} ({device.name}) has {device.free / 1e9:.0f} of {device.total / 1e9:.0f} GB free, a builder "
            f"needs {needed / 1e9:.0f}; end what holds the rest (nvidia-smi names it)",
        )
        for node in nodes
        for number, device in enumerate(node.devices)
        if share * device.free < needed <= share * device.total
    ]


def table(nodes: Sequence[Node], faults: Sequence[Fault]) -> list[str]:
    """A line for each node, a column for each check."""
    wrong = {(fault.where, fault.check) for fault in faults}
    rows = [["node", *CHECKS]]
    for node in nodes:
        cells = cells_of(node)
        rows.append(
            [str(node), *("FAULT" if (str(node), check) in wrong else cells[check] for check in CHECKS)]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def cells_of(node: Node) -> dict[str, str]:
    """What is said of a node where nothing is wrong, by check; `-` where it was not asked."""
    answer = node.answer
    if answer is None:
        return dict.fromkeys(CHECKS, "no answer")
    gpus = Counter(f"{device.name} {device.total / 1e9:.0f} GB" for device in node.devices)
    fetched = TO_BE_FETCHED in answer.models.values()
    return {
        "GPUs": ", ".join(f"{count} x {name}" for name, count in gpus.items()) or "-",
        "versions": "ok",
        "store": "ok" if answer.exclusive else "ok, overwrites",
        "clock": "-" if answer.clock_ahead is None else f"{answer.clock_ahead:+.0f} s",
        "models": (TO_BE_FETCHED if fetched else "ok") if answer.models else "-",
        "spool": "ok" if answer.spool_free is not None else "-",
    }


def preflight_verdict(nodes: Sequence[Node], faults: Sequence[Fault]) -> str:
    """One line: fit or not, and how much of it."""
    gpus = sum(node.gpus for node in nodes)
    whole = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}, {gpus:g} GPUs"
    if not faults:
        return f"preflight: fit ({whole})"
    places = len({fault.where for fault in faults})
    return (
        f"preflight: not fit ({whole}): {len(faults)} fault{'' if len(faults) == 1 else 's'} in "
        f"{places} place{'' if places == 1 else 's'}"
    )


def findings(nodes: Sequence[Node], faults: Sequence[Fault]) -> dict[str, Any]:
    """What preflight.json holds."""
    return {
        "fit": not faults,
        "faults": [asdict(fault) for fault in faults],
        "nodes": [asdict(node) for node in nodes],
    }
