"""What a job says to run next can be read by the command line, and names what the job wrote."""

import json
import shlex

import pytest

from projector.options import EvaluateOptions, ModelPaths, TrainOptions
from ray_jobs.__main__ import JOBS
from ray_jobs.cli.parse import parse
from ray_jobs.cli.run_options import BuildOptions, CompareOptions, ReportOptions
from ray_jobs.jobs.next_command import GIVE, next_command


def words_after(options):
    return shlex.split(next_command(options))[3:]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            BuildOptions(output="data/a set/"),
            ["train", "--train.data", "data/a set", "--train.output", "data/a set-projector"],
        ),
        (
            BuildOptions(output="d", layers=[-2], text_modes=["none"], readers=["graft"]),
            [
                *("train", "--train.data", "d", "--train.output", "d-projector", "--train.layer", "-2"),
                *("--train.text_mode", "none", "--train.reader", "graft"),
            ],
        ),
        (TrainOptions(data="d", output="p"), ["evaluate", "--evaluate.checkpoint", "p"]),
        (EvaluateOptions(checkpoint="gone"), ["compare", "--compare.checkpoint", "gone", *GIVE]),
        (
            EvaluateOptions(checkpoint="p", models="mini"),
            ["compare", "--compare.checkpoint", "p", "--compare.models", "mini"],
        ),
        (
            EvaluateOptions(checkpoint="p", models=ModelPaths(image="i", vl="v")),
            [
                "compare",
                "--compare.checkpoint",
                "p",
                "--compare.models.image",
                "i",
                "--compare.models.vl",
                "v",
            ],
        ),
        (CompareOptions(checkpoint="p/"), ["report", "--report.run", "p"]),
        (CompareOptions(checkpoint="p", output="p/two"), ["report", "--report.run", "p"]),
        (CompareOptions(checkpoint="p", output="elsewhere"), ["report", "--report.run", "elsewhere"]),
    ],
)
def test_the_next_command_reads_what_this_one_wrote(options, words):
    assert words_after(options) == words
    assert parse(words, JOBS).job == words[0]


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({"image": {"id": "mini/image"}, "vl": {"id": "mini/vl"}}, ["--compare.models", "mini"]),
        (
            {"image": {"id": "Tongyi-MAI/Z-Image-Turbo"}, "vl": {"id": "Qwen/Qwen3-VL-4B-Instruct"}},
            [
                *("--compare.models.image", "Tongyi-MAI/Z-Image-Turbo"),
                *("--compare.models.vl", "Qwen/Qwen3-VL-4B-Instruct"),
            ],
        ),
        ({"image": "one"}, list(GIVE)),
    ],
)
def test_a_comparison_takes_the_models_that_the_projector_names(tmp_path, models, words):
    (tmp_path / "config.json").write_text(json.dumps({"base_models": models}))
    assert words_after(EvaluateOptions(checkpoint=str(tmp_path)))[3:] == words


def test_a_report_ends_the_chain():
    assert next_command(ReportOptions(run="r")) == ""
