"""`demo`: the whole chain on tiny random models, one job after the other, each reading what the last one wrote."""

from projector.options import Arch, EvaluateOptions, TrainOptions
from ray_jobs.cli.log import tell
from ray_jobs.cli.run_options import BuildOptions, CompareOptions, DemoOptions, ExportOptions, ReportOptions
from ray_jobs.cluster.connect import connected
from ray_jobs.jobs.build import build
from ray_jobs.jobs.compare import compare
from ray_jobs.jobs.evaluate import evaluate
from ray_jobs.jobs.export import export
from ray_jobs.jobs.train import train
from ray_jobs.report.page import report

ARCHITECTURES: tuple[Arch, ...] = ("linear", "mlp", "attention")
SHOWN: Arch = "linear"  # the one that is measured against the control, compared in pictures and exported
REFERENCES = 2  # of the comparison
SIZE = 256  # pixels
WORKERS = 2  # enough to go through DDP on any machine
EPOCHS = 40  # a second or two each at the tiny models' width


def demo(options: DemoOptions) -> int:
    """Build, train three projectors, evaluate each, compare pictures and export one, report.

    Args:
        options: where and how much.

    Returns:
        exit code: that of the first job that failed, else 0.
    """
    tell(
        "demo",
        "the models of this demo are random and a few kilobytes large: every step is the real one, and its figures and "
        "pictures mean nothing",
    )
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
                test_fraction=0.2,
                height=SIZE,
                width=SIZE,
                layers=[-8, -6],
            )
        )
        for arch in ARCHITECTURES:
            place = f"{run}/{arch}"
            code = code or train(
                TrainOptions(data=data, output=place, arch=arch, epochs=EPOCHS, workers=WORKERS)
            )
            control = "tiny" if arch == SHOWN else None
            code = code or evaluate(
                EvaluateOptions(data=data, checkpoint=place, output=place, models=control)
            )
        code = code or compare(
            CompareOptions(checkpoint=f"{run}/{SHOWN}", samples=REFERENCES, height=SIZE, width=SIZE)
        )
    code = code or export(ExportOptions(checkpoint=f"{run}/{SHOWN}", output=f"{run}/export"))
    return code or report(ReportOptions(run=run))
