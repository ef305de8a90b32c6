"""What a build would make: its prompts and its plan. Loads neither torch nor ray, which take 300 MB."""

from collections.abc import Sequence
from pathlib import Path

from ray_jobs.cli.log import tell
from ray_jobs.cli.run_options import BuildOptions
from shards.errors import UsageError
from shards.format.plan import Plan, Segment, make_plan
from shards.format.splits import LEAST_HELD_OUT
from shards.prompts.builtin import builtin_prompts
from shards.prompts.files import read_prompts, without_near_duplicates
from shards.prompts.prompt import PromptSource
from shards.scenes.prompts import scene_source


def prompts_of(options: BuildOptions) -> PromptSource:
    """The prompts a run draws on; prints what was left out of the user's."""
    if not options.prompts and options.models == "mini":
        return scene_source(options.samples)
    if not options.prompts:
        return builtin_prompts(options.language)
    if options.language != "en":
        raise UsageError(
            f"build.language = {options.language!r}: is that of the built-in prompts, and build.prompts names others; "
            "leave one of the two out"
        )
    source = read_prompts(
        Path(options.prompts), options.prompt_column, drop_duplicates=options.duplicates == "drop"
    )
    if options.near_duplicates == "drop":
        source = without_near_duplicates(source, options.samples)
    for note in source.notes:
        tell("prompts", note)
    return source


def plan_of(options: BuildOptions, prompts: PromptSource, segments: Sequence[Segment]) -> Plan:
    """The plan of a run."""
    return make_plan(
        prompts.prompts,
        seed=options.seed,
        val_fraction=options.val_fraction,
        test_fraction=options.test_fraction,
        least_held_out=LEAST_HELD_OUT,
        samples_per_shard=options.samples_per_shard,
        segments=segments,
    )
