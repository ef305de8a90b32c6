"""What a build would cost: a few samples timed on one device, and the cluster as it is played through with that."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from projector.making.steps import ShardMaker
from projector.models.resolve import resolve_models
from projector.options import TrainOptions
from projector.teaching.passes import forward_passes, picture_bytes
from ray_jobs.cli.run_options import BuildOptions, PlanOptions
from ray_jobs.cluster.connect import connected, plain_error
from ray_jobs.cluster.crew import BUILDER_CPUS
from ray_jobs.jobs.build import arranged, check_pictures, maker_of
from ray_jobs.planning.model_placement import BYTES, PROCESS_BYTES, weight_bytes
from ray_jobs.planning.shard_schedule import simulate
from shards.dataset.progress_figures import duration
from shards.errors import UsageError
from shards.format.plan import Plan, PlannedSample
from shards.format.sample import Failure
from shards.format.shard_writer import encode_members

SAMPLES = 4
PROJECTOR_BYTES = (
    0.8e9  # of the largest at width 2560, 50M parameters: weights, gradients and the optimizer's two
)


@dataclass(frozen=True)
class Calibration:
    """What was measured, and what follows for the whole plan.

    Attributes:
        seconds_per_sample: of one builder, after a first batch that is not counted.
        load_seconds: until a builder has its models.
        bytes_per_sample: of the members that were made.
        samples_per_hour: of all builders.
        gpu_hours: held for the whole plan, idle time at its end included; 0 on CPUs.
        wall_seconds: from start to end on the cluster as it is.
        idle: share of the builders' time in which they wait for the last ones.
        bytes: of the whole plan.
        training_hours: of one device that trains on all of the plan through the image model, at most; 0 where the
            training does without it.
        training_bytes: of that device's memory, at least, with one picture at a time; 0 likewise.
        cost: of devices, storage for a month and requests, for those whose prices were given.
    """

    seconds_per_sample: float
    load_seconds: float
    bytes_per_sample: int
    samples_per_hour: float
    gpu_hours: float
    wall_seconds: float
    idle: float
    bytes: int
    training_hours: float
    training_bytes: int
    cost: dict[str, float]


@dataclass(frozen=True)
class Timing:
    """Of a few samples."""

    load: float
    sample: float
    bytes: int


def calibrate(
    options: PlanOptions, build: BuildOptions, train: TrainOptions, plan: Plan, estimate: Mapping[str, Any]
) -> tuple[Calibration, str]:
    """Time a few samples of the plan on one device.

    Args:
        options: prices.
        build: what would be built.
        train: what would be trained on it.
        plan: all of it.
        estimate: of what it takes, as `estimated` gives it.

    Returns:
        the figures, and the lines that tell them.

    Raises:
        UsageError: models or cluster are not fit for the build, or the samples cannot be made.
    """
    sources = resolve_models(build.models)
    sources.check_layers(build.layers)
    check_pictures(build, sources)
    with connected() as cluster:
        settings, crew, placement, _ = arranged(build, cluster, sources)
        # Both halves of a staged build are timed one after the other on one device, which has room for one of them.
        make = maker_of("offload" if placement == "staged" else placement, sources, settings)
        work = ray.remote(num_cpus=BUILDER_CPUS, num_gpus=crew.gpus, max_retries=0)(time_samples)
        try:
            timing: Timing = ray.get(work.remote(make, list(islice(plan, 2 * SAMPLES))))
        except RayError as error:
            raise plain_error(error) from error
    forecast = simulate([len(shard.samples) for shard in plan.shards], [timing.sample] * crew.actors)
    wall = forecast.seconds + timing.load
    gpus = crew.actors * crew.gpus + crew.readers * crew.reader_gpus
    found = Calibration(
        seconds_per_sample=timing.sample,
        load_seconds=timing.load,
        bytes_per_sample=timing.bytes,
        samples_per_hour=3600 * len(plan) / forecast.seconds,
        gpu_hours=wall * gpus / 3600,
        wall_seconds=wall,
        idle=forecast.idle,
        bytes=timing.bytes * len(plan),
        training_hours=training_seconds(build, train, estimate, timing.sample) / 3600,
        training_bytes=training_bytes(build, train, Path(sources.image.path)),
        cost=cost_of(options, wall * gpus / 3600, timing.bytes * len(plan), estimate["put_requests"]),
    )
    return found, cost_lines(found, f"{crew.actors} builders, placement {placement}, on {cluster}")


def time_samples(make: Callable[[], ShardMaker], planned: Sequence[PlannedSample]) -> Timing:
    """Load models and make samples; the first half of them warms up."""
    torch.set_num_threads(1)  # as in builders
    begun = time.monotonic()
    maker = make()
    loaded = time.monotonic() - begun
    half = max(1, len(planned) // 2)
    results: list[Any] = []
    for part in (planned[:half], planned[-half:]):
        begun = time.monotonic()
        results = [result for step in maker.steps(part, (), {}) for result in maker.timed(step.run)[0]]
        seconds = time.monotonic() - begun
    failures = [result for result in results if isinstance(result, Failure)]
    if failures:
        raise UsageError(
            f"a sample of the calibration failed at {failures[0].stage}: {failures[0].message}; "
            "no figure can be given before that is mended"
        )
    size = sum(len(data) for sample in results for data in encode_members(sample).values())
    return Timing(loaded, seconds / half, size // half)


def training_seconds(
    build: BuildOptions, train: TrainOptions, estimate: Mapping[str, Any], sample: float
) -> float:
    """Seconds of one device that trains on a plan: a sample is at most its sampling steps, the rest of it is reading.

    Args:
        build: what would be built.
        train: what would be trained on it.
        estimate: of the plan, with its samples by split.
        sample: seconds that one took.
    """
    passes = forward_passes(train, estimate["train_samples"], estimate["val_samples"], build.steps)
    return passes * sample / (build.steps * (2 if build.guidance > 1 else 1))


def training_bytes(build: BuildOptions, train: TrainOptions, image: Path) -> int:
    """Device memory that a training takes with one picture at a time; 0 without the image model.

    Args:
        build: what would be built.
        train: what would be trained on it.
        image: folder of the image model.
    """
    if train.objective != "response":
        return 0
    config = json.loads((image / "transformer" / "config.json").read_bytes())
    height, width = (train.response_size or side for side in (build.height, build.width))
    number = BYTES["bfloat16" if train.precision == "auto" else train.precision]
    weights, encoder = (
        weight_bytes(image / part, number, number) for part in ("transformer", "text_encoder")
    )
    step = picture_bytes(config, height, width, number) + PROJECTOR_BYTES
    # Captions are encoded before the first step, while no picture is made.
    return int(weights + max(step, encoder if train.compose else 0) + PROCESS_BYTES)


def cost_of(options: PlanOptions, gpu_hours: float, size: int, put_requests: int) -> dict[str, float]:
    """Money by what it goes to, for the prices that were given."""
    priced = {
        "gpus": (options.price_gpu_hour, gpu_hours),
        "storage_month": (options.price_gb_month, size / 1e9),
        "requests": (options.price_1000_puts, put_requests / 1000),
    }
    return {name: price * amount for name, (price, amount) in priced.items() if price is not None}


def cost_lines(found: Calibration, where: str) -> str:
    """The figures as lines for people."""
    lines = [
        f"measured       {found.seconds_per_sample:.2f} s a sample on one builder, models loaded in "
        f"{duration(found.load_seconds)}, {found.bytes_per_sample / 1e6:.2f} MB a sample",
        f"whole plan     {found.samples_per_hour:,.0f} samples an hour, {duration(found.wall_seconds)}, "
        f"{found.gpu_hours:,.2f} GPU-hours ({found.idle:.1%} of them idle at the end), {found.bytes / 1e9:,.2f} GB",
        f"with           {where}",
    ]
    if found.training_hours:
        lines += [
            f"training       at most {duration(3600 * found.training_hours)} of one such device, with train.* as given",
            f"               {found.training_bytes / 1e9:.1f} GB of GPU memory at least; with more, pictures go "
            "through the model together",
        ]
    if found.cost:
        parts = ", ".join(f"{name.replace('_', ' a ')} {amount:,.2f}" for name, amount in found.cost.items())
        lines.append(f"cost           {sum(found.cost.values()):,.2f} ({parts})")
    return "\n".join(lines)
