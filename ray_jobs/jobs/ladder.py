"""`ladder`: linear on few pairs, MLP on more, attention on most, from one dataset that grows; is more data worth it?

Each step builds what its dataset still lacks, trains, evaluates and is judged; a step that fails its gate ends the
climb before more pairs are made. What is finished is not done again.
"""

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from projector.data.dataset_pairs import training_pairs
from projector.data.drawn import drawn
from projector.evaluation.learning_curve import PowerLaw, fit_curve
from projector.network.checkpoint import EVALUATION, SUMMARY, put_json
from projector.options import Arch, EvaluateOptions, TrainOptions
from projector.training.loop import FINISHED
from projector.training.loop import train as run_training
from ray_jobs.cli.option_errors import options_of
from ray_jobs.cli.progress import Progress
from ray_jobs.cli.run_options import BuildOptions, LadderOptions
from ray_jobs.cluster.connect import Cluster, connected, plain_error
from ray_jobs.jobs.build import build as run_build
from ray_jobs.jobs.evaluate import evaluate
from ray_jobs.jobs.ladder_gates import judge, ladder_verdict
from ray_jobs.jobs.train import train as run_train
from ray_jobs.report.run_files import LADDER
from shards.dataset.dataset import Dataset
from shards.errors import UsageError
from shards.stores.local import open_storage
from shards.stores.store import Storage, read_json_object

STEPS: tuple[Arch, ...] = ("linear", "mlp", "attention")
FEWEST_PAIRS = 8  # of a point on the learning curve
OWN = ("output", "data", "samples", "append", "arch", "max_samples")  # what the ladder decides
# What attempts may differ in.
FREE = ("actors", "gpus_per_actor", "price_gpu_hour", "spool", "workers", "log", "cache")


@options_of("train", TrainOptions)
def ladder(options: LadderOptions, build: BuildOptions, train: TrainOptions) -> int:
    """Climb as far as it pays, then draw the learning curve.

    Args:
        options: where, how many pairs at each step, and what a failed gate does.
        build: how pairs are made; output, samples and append are the ladder's own.
        train: how projectors are trained; data, output, arch and max_samples are the ladder's own.

    Returns:
        exit code: of the first job that failed, else 0, also where a gate ended the climb.

    Raises:
        UsageError: anything wrong with the input, or an output of other options.
    """
    refuse_own(build, train)
    root = options.output.rstrip("/")
    storage = open_storage(root)
    record = record_of(storage, options, build, train)
    with connected() as cluster:
        steps: list[dict[str, Any]] = []
        # Test pairs: those of the first step, so that all steps are measured on the same.
        tested: int | None = None
        for arch, samples in zip(STEPS, options.samples, strict=False):
            if not is_done(storage, arch):
                code = climb(root, arch, samples, build, train, tested)
                if code:
                    return code
            summary, evaluation = (
                read_json_object(storage, f"{arch}/{name}") for name in (SUMMARY, EVALUATION)
            )
            tested = tested or int(evaluation["pairs"])
            gate = judge(arch, summary, evaluation)
            steps.append({"arch": arch, "samples": samples, **gate.as_json()})
            put_json(storage, LADDER, record | {"steps": steps})
            print(f"{arch}, {samples} samples: {gate.sentence}", flush=True)
            if not gate.passed and options.gates == "stop":
                break
        findings = concluded(root, options, train, cluster, steps)
    put_json(storage, LADDER, record | {"steps": steps} | findings)
    for row in findings["layers"]:
        print(f"layer {row['layer']}, text mode {row['text_mode']}: validation loss {row['val_loss']:.4g}")
    print(findings["verdict"], flush=True)
    return 0


def refuse_own(build: BuildOptions, train: TrainOptions) -> None:
    """Raise UsageError where something is given that the ladder decides."""
    for section, given in (("build", build), ("train", train)):
        for name in sorted(given.model_fields_set & set(OWN)):
            raise UsageError(
                f"{section}.{name} = {getattr(given, name)!r}: the ladder decides it; use ladder.output and "
                "ladder.samples, and leave it out"
            )


def record_of(
    storage: Storage, options: LadderOptions, build: BuildOptions, train: TrainOptions
) -> dict[str, Any]:
    """What ladder.json begins with; UsageError where one lies there of other options."""
    given = {
        section: {name: value for name, value in model.model_dump(mode="json").items() if name not in OWN}
        for section, model in (("build", build), ("train", train))
    }
    given["ladder"] = {"samples": options.samples}
    if not storage.stat(LADDER):
        return {"options": given}
    earlier = read_json_object(storage, LADDER).get("options", {})
    for section, values in given.items():
        for name, value in values.items():
            before = earlier.get(section, {}).get(name, value)
            if before != value and name not in FREE:
                raise UsageError(
                    f"{section}.{name} = {value!r}: the ladder in {storage.root} was begun with {before!r}; "
                    "use that, or give another ladder.output"
                )
    return {"options": given}


def is_done(storage: Storage, arch: Arch) -> bool:
    """Whether a step has been trained and evaluated; its dataset may have grown since."""
    summary, evaluation = f"{arch}/{SUMMARY}", f"{arch}/{EVALUATION}"
    if not (storage.stat(summary) and storage.stat(evaluation)):
        return False
    return read_json_object(storage, summary).get("stopped") == FINISHED


def climb(
    root: str, arch: Arch, samples: int, build: BuildOptions, train: TrainOptions, tested: int | None
) -> int:
    """One step: more pairs, a projector, its evaluation on the first `tested` test pairs."""
    data, place = f"{root}/data", f"{root}/{arch}"
    code = run_build(build.model_copy(update={"output": data, "samples": samples, "append": True}))
    code = code or run_train(train.model_copy(update={"data": data, "output": place, "arch": arch}))
    return code or evaluate(EvaluateOptions(data=data, checkpoint=place, output=place, max_samples=tested))


def concluded(
    root: str, options: LadderOptions, train: TrainOptions, cluster: Cluster, steps: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What the pairs of all steps show: the learning curve, the layers, and whether more data pays."""
    curve, fit = learning_curve(root, options, train, cluster)
    dataset = Dataset.open(open_storage(f"{root}/data"))
    return {
        "curve": curve,
        "fit": fit_json(fit),
        "layers": layer_losses(root, train, cluster, dataset),
        "verdict": ladder_verdict(curve, fit, seconds_per_sample(dataset), steps, options.samples),
    }


def learning_curve(
    root: str, options: LadderOptions, train: TrainOptions, cluster: Cluster
) -> tuple[list[dict[str, Any]], PowerLaw | None]:
    """Validation loss by number of pairs, each seed on pairs of its own draw, all on the same held-out pairs.

    Returns:
        the points, fewest pairs first, and the curve through them; None where it is not known.
    """
    data = f"{root}/data"
    whole = len(training_pairs(train.model_copy(update={"data": data}), "train"))
    numbers = sorted({whole >> halved for halved in range(options.curve_points)})
    runs = [
        train.model_copy(
            update={
                "data": data,
                "output": f"{root}/curve/{options.curve_arch}-{pairs}-{seed}",
                "arch": options.curve_arch,
                "objective": "embedding" if options.curve_arch == "ridge" else train.objective,
                "max_samples": pairs,
                "seed": seed,
            }
        )
        for pairs in numbers
        if pairs >= FEWEST_PAIRS
        for seed in range(options.curve_seeds if pairs < whole else 1)  # all pairs can be drawn once
    ]
    losses: dict[int, list[float]] = {}
    for run, loss in zip(runs, side_by_side(runs, cluster, "learning curve"), strict=True):
        losses.setdefault(int(run.max_samples or 0), []).append(loss)
    curve = [
        {
            "pairs": pairs,
            "val_loss": {"mean": sum(values) / len(values), "low": min(values), "high": max(values)},
            "losses": values,
        }
        for pairs, values in sorted(losses.items())
    ]
    return curve, fit_curve(losses)


def layer_losses(root: str, train: TrainOptions, cluster: Cluster, dataset: Dataset) -> list[dict[str, Any]]:
    """Ridge's validation loss for every layer and text mode that the shards hold, the least first."""
    ways = [(layer, mode) for layer in dataset.settings["layers"] for mode in dataset.settings["text_modes"]]
    runs = [
        train.model_copy(
            update={
                "data": f"{root}/data",
                "output": f"{root}/layers/{layer}-{mode}",
                "arch": "ridge",
                "objective": "embedding",
                "layer": layer,
                "text_mode": mode,
            }
        )
        for layer, mode in ways
    ]
    rows = [
        {"layer": layer, "text_mode": mode, "val_loss": loss}
        for (layer, mode), loss in zip(ways, side_by_side(runs, cluster, "layers"), strict=True)
    ]
    return sorted(rows, key=lambda row: row["val_loss"])


def side_by_side(runs: Sequence[TrainOptions], cluster: Cluster, label: str) -> list[float]:
    """Train each with one worker, as many at once as the cluster has GPUs, or else CPUs; their validation losses."""
    work = ray.remote(num_cpus=0.01 if cluster.gpus else 1, num_gpus=1 if cluster.gpus else 0)(_train_alone)
    references = [work.remote(run.model_dump(mode="json")) for run in runs]
    progress, waiting = Progress(label, len(runs), unit="trainings"), list(references)
    try:
        while waiting:
            _, waiting = ray.wait(waiting)
            progress.show(len(runs) - len(waiting), final=not waiting)
        losses: list[float] = ray.get(references)
    except RayError as error:
        raise plain_error(error) from error
    return losses


def _train_alone(given: dict[str, Any]) -> float:
    """One training on pairs that its seed draws; gone on with, or over at once, where an earlier run left off."""
    options = TrainOptions.model_validate(given)
    pairs = training_pairs(options, "train")
    pairs = drawn(pairs, options.max_samples or len(pairs), options.seed)
    summary = run_training(options, pairs, training_pairs(options, "val"))
    return float(summary["best_val_loss"])


def seconds_per_sample(dataset: Dataset) -> float:
    """Device seconds that a sample took, by the commits."""
    commits = dataset.commits()
    made = sum(commit.samples for commit in commits)
    return sum(commit.device_seconds for commit in commits) / made if made else 0.0


def fit_json(fit: PowerLaw | None) -> dict[str, Any] | None:
    """The curve's parameters and their intervals."""
    return None if fit is None else {name: vars(estimate) for name, estimate in vars(fit).items()}
