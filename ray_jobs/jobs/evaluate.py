"""`evaluate`: projectors and every baseline on the test pairs, one table, the winner plain."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from projector.data.pairs import PairSource
from projector.evaluation.caption_control import WrittenCaptions
from projector.evaluation.contest import ByKey, Contest, Measured
from projector.evaluation.evaluator import (
    MAIN,
    dataset_of,
    evaluate_checkpoint,
    grafted_pairs,
    load_projectors,
    measured_pairs,
)
from projector.models.resolve import ModelSources, resolve_models
from projector.network.checkpoint import EVALUATION, put_json
from projector.options import EvaluateOptions
from ray_jobs.cli.option_errors import options_of
from ray_jobs.cli.progress import Progress
from ray_jobs.cli.signals import signals_exit
from ray_jobs.cluster.connect import Cluster, connected, plain_error
from shards.dataset.dataset import Dataset
from shards.errors import UsageError
from shards.stores.local import open_storage

CONTROL = "vl_caption"  # the control's name among the methods
PAIRS_AT_A_TIME = 32  # between two looks at the progress
WITH_THE_IMAGE_MODEL = ("fidelity", "velocity_error")
COLUMNS = ("mse_standardized", "per_dim_correlation", "recall_at_1", "sliced_wasserstein")


@options_of("evaluate", EvaluateOptions)
def evaluate(options: EvaluateOptions) -> int:
    """Measure and write eval.json.

    Args:
        options: data, checkpoint, output.

    Returns:
        exit code 0.

    Raises:
        UsageError: anything wrong with the input, before a model loads.
    """
    models = None if options.models is None else resolve_models(options.models)
    output = open_storage(options.output or options.checkpoint)
    projectors = load_projectors(options)
    if models is not None and models.hidden_size != projectors[MAIN].width:
        raise UsageError(
            f"evaluate.models: their hidden size is {models.hidden_size}, the projector's {projectors[MAIN].width}; "
            "give the models of the dataset"
        )
    if options.workers == 1 and models is None:
        with signals_exit():
            result = evaluate_checkpoint(options, projectors, measure=_alone)
    else:
        with connected() as cluster, signals_exit():
            check_workers(options.workers, cluster, on_gpus=models is not None)
            gpus = 1.0 if cluster.gpus and models is not None else 0.0
            result = evaluate_checkpoint(
                options,
                projectors,
                measure=lambda contest, pairs, _: _shared(contest, pairs, options, models, gpus),
            )
    put_json(output, EVALUATION, result)
    for line in lines(result):
        print(line, flush=True)
    return 0


def lines(result: dict[str, Any]) -> Iterator[str]:
    """What the job prints: all methods by standardised error, each projector against the best one, the caption swap."""
    measured = {figure for figures in result["methods"].values() for figure in figures}
    columns = [*(name for name in WITH_THE_IMAGE_MODEL if name in measured), *COLUMNS]
    yield f"{'method':>14}" + "".join(f"{name:>22}" for name in columns)
    for name in result["ranking"]:
        figures = result["methods"][name]
        yield f"{name:>14}" + "".join(f"{figures.get(column, float('nan')):>22.4f}" for column in columns)
    groups = f" in {result['groups']} groups" if result["groups"] < result["pairs"] else ""
    fewer = [f"{name} on {count}" for name, count in result["judged"].items() if count < result["pairs"]]
    yield f"on {result['pairs']} {result['split']} pairs{groups}{', ' * bool(fewer)}{', '.join(fewer)}:"
    for name in result["caption_swap"] or (MAIN,):
        yield from (
            compared(name, figure, found)
            for figure, found in result["methods"][name].get("against", {}).items()
        )
    yield from (swap["sentence"] for swap in result["caption_swap"].values())


def compared(name: str, figure: str, found: Mapping[str, Any]) -> str:
    """A projector and the best baseline in one sentence; better is said only where the interval says so."""
    word = "is better than" if found["better"] else "is not shown to be better than"
    ends = "too few groups of pairs for an interval"
    if "interval" in found:
        low, high = found["interval"]
        ends = f"95% {low:.3g} to {high:.3g}"
    return f"{name} {word} {found['baseline']}: {figure} {found['difference']:+.3g} ({ends})"


def check_workers(workers: int, cluster: Cluster, *, on_gpus: bool) -> None:
    """Raise UsageError where the cluster has too few CPUs, or GPUs for models, for the workers."""
    have = cluster.gpus if on_gpus and cluster.gpus else cluster.cpus
    if workers > have:
        raise UsageError(f"evaluate.workers = {workers}: the cluster has {cluster}; at most {int(have)} fit")


def _alone(contest: Contest, pairs: PairSource, grafted: PairSource | None) -> Measured:
    """Measure all pairs in this process."""
    progress = Progress("evaluate", len(pairs), unit="pairs")
    measured = contest.measure(pairs, range(len(pairs)), grafted=grafted, on_progress=progress.show)
    progress.show(len(pairs), final=True)
    return measured


def _shared(
    contest: Contest, pairs: PairSource, options: EvaluateOptions, models: ModelSources | None, gpus: float
) -> Measured:
    """Share the pairs over workers, each of which goes through a part of its own, and merge what they measured."""
    worker = ray.remote(num_cpus=1, num_gpus=gpus)(EvaluateWorker)
    given = ray.put(contest)
    cuts = [len(pairs) * index // options.workers for index in range(options.workers + 1)]
    workers, running = [], []
    for first, last in pairwise(cuts):
        workers.append(worker.remote(given, options, models))
        for start in range(first, last, PAIRS_AT_A_TIME):
            running.append(workers[-1].measure.remote(range(start, min(start + PAIRS_AT_A_TIME, last))))
    try:
        _wait(running, len(pairs))
        whole, *others = ray.get([each.measured.remote() for each in workers])
    except RayError as error:  # a worker's sums die with it, so it is not restarted
        raise plain_error(error) from error
    for part in others:  # in order: sums are added up alike every time
        whole.merge(part)
    measured: Measured = whole
    return measured


def _wait(running: list[Any], pairs: int) -> None:
    """Wait for all parts and show how many pairs are done."""
    progress = Progress("evaluate", pairs, unit="pairs")
    done = 0
    while running:
        finished, running = ray.wait(running)
        done += sum(ray.get(finished))
        progress.show(done, final=not running)


class EvaluateWorker:
    """Measures parts of the pairs, with the control's models where they are given.

    Args:
        contest: what is compared.
        options: which pairs.
        models: of the control; None for no control.
    """

    def __init__(self, contest: Contest, options: EvaluateOptions, models: ModelSources | None) -> None:
        projector = load_projectors(options)[MAIN]
        self._contest, self._pairs = contest, measured_pairs(options, projector)
        self._grafted = grafted_pairs(options, projector)
        self._by_key: dict[str, ByKey] = {}
        if models is not None:
            on_gpu = torch.cuda.is_available()
            self._by_key[CONTROL] = WrittenCaptions.from_pretrained(
                models,
                Dataset.open(open_storage(dataset_of(options, projector))),
                options.split,
                device="cuda" if on_gpu else "cpu",
                dtype=torch.bfloat16 if on_gpu else torch.float32,
            )
        self._measured = self._measure(range(0))

    def measure(self, part: range) -> int:
        """Measure some pairs; returns how many."""
        self._measured.merge(self._measure(part))
        return len(part)

    def measured(self) -> Measured:
        """What was measured so far."""
        return self._measured

    def _measure(self, part: range) -> Measured:
        return self._contest.measure(self._pairs, part, by_key=self._by_key, grafted=self._grafted)
