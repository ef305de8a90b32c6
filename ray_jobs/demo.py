"""`demo`: the whole chain on tiny random models, one job after the other, each reading what the last one wrote."""

from projector.options import Arch, EvaluateOptions, TrainOptions
from ray_jobs.build import build
from ray_jobs.cluster import connected
from ray_jobs.evaluate import evaluate
from ray_jobs.options import BuildOptions, DemoOptions, ReportOptions
from ray_jobs.report import report
from ray_jobs.train import train

ARCHITECTURES: tuple[Arch, ...] = ("linear", "mlp", "attention")
WORKERS = 2  # enough to go through DDP on any machine
EPOCHS = 40  # a second or two each at the tiny models' width


def demo(options: DemoOptions) -> int:
    """Build, train three projectors, evaluate each, report.

    Args:
        options: where and how much.

    Returns:
        exit code: that of the first job that failed, else 0.
    """
    run = options.output.rstrip("/")
    data = f"{run}/data"
    with connected():  # one cluster for all jobs: starting one takes seconds
        code = build(
            BuildOptions(
                output=data,
                samples=options.samples,
                models="tiny",
                samples_per_shard=16,
                val_fraction=0.2,
                height=256,
                width=256,
                layers=[-8, -6],
            )
        )
        for arch in ARCHITECTURES:
            code = code or train(
                TrainOptions(data=data, output=f"{run}/{arch}", arch=arch, epochs=EPOCHS, workers=WORKERS)
            )
            code = code or evaluate(
                EvaluateOptions(data=data, checkpoint=f"{run}/{arch}", output=f"{run}/{arch}")
            )
    return code or report(ReportOptions(run=run))
