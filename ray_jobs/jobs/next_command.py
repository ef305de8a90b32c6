"""What to run after a job: the command that reads what it wrote."""

import shlex
from collections.abc import Mapping
from typing import Any

from projector.network.checkpoint import CONFIG
from projector.options import EvaluateOptions, ModelPaths, TrainOptions
from ray_jobs.cli.run_options import BuildOptions, CompareOptions
from shards.errors import CorruptShardError, StorageError, UsageError
from shards.stores.local import open_storage
from shards.stores.store import read_json_object

MINIATURES = ("mini", "tiny")
GIVE = ("--compare.models.image", "IMAGE_MODEL", "--compare.models.vl", "VL_MODEL")


def next_command(options: object) -> str:
    """The next command as a line for a shell; empty after jobs that end a chain.

    Args:
        options: of the job that has ended well.
    """
    words = _words(options)
    return shlex.join(["python", "-m", "ray_jobs", *words]) if words else ""


def _words(options: object) -> list[str]:
    if isinstance(options, BuildOptions):
        place = options.output.rstrip("/")
        words = ["train", "--train.data", place, "--train.output", f"{place}-projector"]
        usual = TrainOptions()
        if usual.layer not in options.layers:
            words += ["--train.layer", str(options.layers[0])]
        if usual.text_mode not in options.text_modes:
            words += ["--train.text_mode", options.text_modes[0]]
        if usual.reader not in options.readers:
            words += ["--train.reader", options.readers[0]]
        return words
    if isinstance(options, TrainOptions):
        return ["evaluate", "--evaluate.checkpoint", options.output]
    if isinstance(options, EvaluateOptions):
        return ["compare", "--compare.checkpoint", options.checkpoint, *_models(options)]
    if isinstance(options, CompareOptions):
        beside = options.checkpoint.rstrip("/")
        elsewhere = options.output and not options.output.startswith(f"{beside}/")
        return ["report", "--report.run", options.output if elsewhere else beside]
    return []


def _models(options: EvaluateOptions) -> list[str]:
    """The models of a comparison: those of the evaluation, or what the projector's own description names."""
    if isinstance(options.models, str):
        return ["--compare.models", options.models]
    if isinstance(options.models, ModelPaths):
        return ["--compare.models.image", options.models.image, "--compare.models.vl", options.models.vl]
    try:
        named: Mapping[str, Any] = read_json_object(open_storage(options.checkpoint), CONFIG)["base_models"]
        ids = [str(named[role]["id"]) for role in ("image", "vl")]
    except (KeyError, TypeError, UsageError, StorageError, CorruptShardError):
        return list(GIVE)
    family = ids[0].partition("/")[0]
    if family in MINIATURES:
        return ["--compare.models", family]
    return ["--compare.models.image", ids[0], "--compare.models.vl", ids[1]]
