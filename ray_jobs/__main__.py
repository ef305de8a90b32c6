"""`python -m ray_jobs JOB`: reads the command line, runs the job, answers with an exit code."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from projector.options import EvaluateOptions, TrainOptions
from ray_jobs.cli.import_options import ImportOptions
from ray_jobs.cli.log import start_log, tell
from ray_jobs.cli.parse import Job, as_yaml, parse
from ray_jobs.cli.run_options import (
    BuildOptions,
    CompareOptions,
    DemoOptions,
    ExportOptions,
    ExtractOptions,
    LadderOptions,
    PlanOptions,
    PreflightOptions,
    ReportOptions,
    RewriteOptions,
    WatchedOptions,
)
from ray_jobs.cli.signals import noting_signals
from ray_jobs.cluster.address import protect_local_ray
from shards.tools.terminal import exit_code, visible_output

PLACE = "a local folder or s3://bucket/prefix"
JOBS = {
    job.name: job
    for job in (
        Job(
            "plan",
            "Print what a build would make: samples, shards, coverage, bytes, requests.",
            {"plan": PlanOptions, "build": BuildOptions, "train": TrainOptions},
            first=("calibrate", "price_gpu_hour", "output"),
        ),
        Job(
            "rewrite",
            "Make the short prompts of a file long with a local language model; resumes.",
            {"rewrite": RewriteOptions},
            needs={
                "prompts": "a prompt file (.txt .tsv .csv .json .jsonl .parquet)",
                "model": "the folder or hub id of an instruction-tuned language model",
                "output": "the .jsonl file to write",
            },
        ),
        Job(
            "preflight",
            "Check every node of the cluster before a build or a training: devices, versions, store, models, spool.",
            {"preflight": PreflightOptions, "build": BuildOptions, "train": TrainOptions},
        ),
        Job(
            "build",
            "Generate images, extract paired embeddings, commit shards; resumes.",
            {"build": BuildOptions},
            first=(
                "output",
                "samples",
                "prompts",
                "models",
                "layers",
                "text_modes",
                "height",
                "width",
                "append",
                "actors",
            ),
            needs={"output": f"the dataset's root, {PLACE}"},
        ),
        Job(
            "extract",
            "Read an existing dataset's images again: other layers, text modes or VL model; resumes.",
            {"extract": ExtractOptions},
            first=("data", "output", "vl", "layers", "text_modes", "actors"),
            needs={
                "data": "the root of the dataset whose pictures are read again",
                "output": f"the new dataset's root, {PLACE}",
            },
        ),
        Job(
            "import",
            "Take over an external captioned set (folder, COCO, LAION tars, parquet) as a dataset; resumes.",
            {"import": ImportOptions},
            module="jobs.importing",  # `import` is a keyword
            function="importing",
            first=("source", "kind", "output", "models", "layers", "samples", "images", "actors"),
            needs={
                "source": "COCO annotations, or the folder of pictures, tars or parquet files, local or s3://",
                "kind": "folder, coco, tars or parquet",
                "output": f"the dataset's root, {PLACE}",
            },
        ),
        Job(
            "train",
            "Train a projector on the shards with Ray Train.",
            {"train": TrainOptions},
            first=(
                "data",
                "output",
                "arch",
                "objective",
                "layer",
                "epochs",
                "learning_rate",
                "batch_size",
                "workers",
                "max_samples",
                "also",
            ),
            needs={"data": f"the dataset's root, {PLACE}", "output": f"where the projector goes, {PLACE}"},
        ),
        Job(
            "evaluate",
            "Measure projectors on test pairs against every baseline.",
            {"evaluate": EvaluateOptions},
            first=("data", "checkpoint", "output", "others", "models", "workers"),
            needs={"checkpoint": "the folder of a trained projector"},
        ),
        Job(
            "compare",
            "Make pictures with and without the projector and score them; resumes.",
            {"compare": CompareOptions},
            first=("checkpoint", "output", "models", "prompts", "images", "methods", "alphas"),
            needs={"checkpoint": "the folder of a trained projector"},
        ),
        Job(
            "ladder",
            "Linear on few pairs, MLP on more, attention on most, a learning curve, a verdict; resumes.",
            {"ladder": LadderOptions, "build": BuildOptions, "train": TrainOptions},
            first=("output",),
            needs={"output": f"the run's root, {PLACE}"},
        ),
        Job(
            "report",
            "Write one HTML page from a run's files.",
            {"report": ReportOptions},
            module="report.page",
        ),
        Job(
            "export",
            "Write a folder to publish: weights, config, card.",
            {"export": ExportOptions},
            needs={
                "checkpoint": "the folder of a trained projector",
                "output": f"the folder to write, {PLACE}",
            },
        ),
        Job("demo", "The whole chain on the miniature models.", {"demo": DemoOptions}),
    )
}


# Options that name where results are or go: they must mean the same place in every process and after the job.
PLACES = ("pictures", "output", "data", "checkpoint", "run", "source", "images")


def with_lasting_paths(options: BaseModel) -> BaseModel:
    """Options whose relative local places are made absolute.

    Workers have other current folders than the driver. A job submitted with `--working-dir` runs in a copy that
    Ray removes some day, so there a relative place is taken from the home folder instead, and the job says so.
    """
    lasting = {}
    for name in PLACES:
        place = getattr(options, name, "")
        if (
            isinstance(place, str)
            and place
            and "://" not in place
            and not Path(place).expanduser().is_absolute()
        ):
            submitted = (
                "working_dir_files" in Path.cwd().parts
            )  # where Ray unpacks a submitted working folder
            lasting[name] = str((Path.home() if submitted else Path.cwd()) / place)
            if submitted:
                tell(
                    "place",
                    f"{name} {place!r} is {lasting[name]}: the working folder of a submitted job does not last",
                )
    return options.model_copy(update=lasting)


def main(argv: Sequence[str]) -> int:
    """Run one job.

    Args:
        argv: the words after `python -m ray_jobs`.

    Returns:
        exit code: 0 success, 1 failed run, 2 usage error, 143 after SIGTERM.
    """
    with visible_output(), noting_signals() as arrived:
        try:
            return exit_code(lambda: _run(argv))
        except SystemExit:
            if number := arrived():
                print(f"stopped by {signal.Signals(number).name}", file=sys.stderr)
                return 128 + number
            raise


def _run(argv: Sequence[str]) -> int:
    invocation = parse(argv, JOBS)
    if invocation.print_config:
        print(as_yaml(invocation.options), end="")
        return 0
    JOBS[invocation.job].require(invocation.options)
    start_log(next((o.log for o in invocation.options.values() if isinstance(o, WatchedOptions)), "text"))
    protect_local_ray()
    job = JOBS[invocation.job].load()
    options = [with_lasting_paths(each) for each in invocation.options.values()]
    code = int(job(*options))
    if code == 0 and len(options) == 1:
        from ray_jobs.jobs.next_command import next_command  # as late as the job itself: it imports as much

        if command := next_command(options[0]):
            print(f"next: {command}", flush=True)
    return code


def console() -> None:
    """The command `zimage-projector`."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    console()
