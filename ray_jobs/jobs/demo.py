"""`demo`: the whole chain on the miniature models, one job after the other, each reading what the last one wrote."""

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

ARCHITECTURES: tuple[Arch, ...] = (
    "ridge",
    "linear",
)  # fitted to embeddings, and trained through the image model
SHOWN: Arch = "linear"  # the one that is measured against the control, compared in pictures and exported
REFERENCES = 4  # of the comparison
LAYER = -2
WORKERS = 2  # enough to go through DDP on any machine


def demo(options: DemoOptions) -> int:
    """Build, train two projectors, evaluate each, compare pictures and export one, report.

    Args:
        options: where and how much.

    Returns:
        exit code: that of the first job that failed, else 0.
    """
    tell(
        "demo",
        "the models of this demo are miniatures that draw and read simple scenes: every step is the real one, and its "
        "figures are those of a toy world",
    )
    run = options.output.rstrip("/")
    data = f"{run}/data"
    with connected():  # one cluster for all jobs: starting one takes seconds
        code = build(
            BuildOptions(
                output=data,
                samples=options.samples,
                models="mini",
                samples_per_shard=32,
                layers=[LAYER],
                text_modes=["none"],
                readers=["vl", "graft"],
            )
        )
        for arch in ARCHITECTURES:
            place = f"{run}/{arch}"
            code = code or train(
                TrainOptions(
                    data=data, output=place, arch=arch, layer=LAYER, text_mode="none", workers=WORKERS
                )
            )
            control = "mini" if arch == SHOWN else None
            code = code or evaluate(
                EvaluateOptions(data=data, checkpoint=place, output=place, models=control)
            )
        code = code or compare(CompareOptions(checkpoint=f"{run}/{SHOWN}", models="mini", samples=REFERENCES))
    code = code or export(ExportOptions(checkpoint=f"{run}/{SHOWN}", output=f"{run}/export"))
    return code or report(ReportOptions(run=run))
