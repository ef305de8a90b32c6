"""`plan`: what a build would make and need, before any device is touched."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from projector.options import TrainOptions
from ray_jobs.cli.option_errors import options_of
from ray_jobs.cli.run_options import BuildOptions, PlanOptions
from ray_jobs.planning.build_plan import plan_of, prompts_of
from ray_jobs.planning.size_estimate import estimated
from shards.format.plan import Plan, PlannedSample
from shards.format.splits import SPLITS
from shards.prompts.prompt import PromptSource
from shards.prompts.variety import PromptFigures, plan_figures

LONGEST_SHOWN = 160  # characters of a prompt
SCHEMA = pa.schema(
    [
        *((f.name, pa.int64() if f.type is int else pa.string()) for f in fields(PlannedSample)),
        ("key", pa.string()),
    ]
)


@options_of("build", BuildOptions)
def plan(options: PlanOptions, build: BuildOptions, train: TrainOptions) -> int:
    """Print what would be built; write it where asked.

    Args:
        options: whether to write.
        build: what would be built.
        train: what would be trained on it, for its hours.

    Returns:
        exit code 0.
    """
    prompts = prompts_of(build)
    made = plan_of(build, prompts, segments=(build.samples,))
    figures = plan_figures(made)
    estimate: dict[str, Any] = {**estimated(made, build), "prompts": figures.to_json()}
    print(_as_text(build, estimate, figures), flush=True)
    print(_first_prompts(prompts), flush=True)
    if options.calibrate:
        from ray_jobs.jobs.calibrate import calibrate  # brings torch and ray: 300 MB and seconds

        found, lines = calibrate(options, build, train, made, estimate)
        print(lines, flush=True)
        estimate = estimate | {"calibration": asdict(found)}
    if options.output:
        folder = Path(options.output)
        folder.mkdir(parents=True, exist_ok=True)
        _write_parquet(made, folder / "plan.parquet")
        (folder / "plan.json").write_text(json.dumps(estimate, indent=2) + "\n")
        print(f"written: {folder / 'plan.json'}, {folder / 'plan.parquet'}")
    return 0


def _write_parquet(made: Plan, path: Path) -> None:
    """A row per sample, shard by shard: a plan of a million is never in memory."""
    with pq.ParquetWriter(path, SCHEMA) as file:
        for shard in made.shards:
            rows = [{**asdict(sample), "key": sample.key} for sample in shard.samples]
            file.write_table(pa.Table.from_pylist(rows, SCHEMA))


def _as_text(build: BuildOptions, estimate: dict[str, Any], figures: PromptFigures) -> str:
    lines = [
        f"samples        {estimate['samples']} ("
        + ", ".join(f"{estimate[f'{split}_samples']} {split}" for split in SPLITS)
        + ")",
        f"shards         {estimate['shards']} of up to {build.samples_per_shard} samples",
        f"bytes          about {estimate['bytes'] / 1e9:,.1f} GB with the 4B models, "
        f"{estimate['bytes_per_full_shard'] / 1e6:,.0f} MB a full shard",
        f"put requests   about {estimate['put_requests']}",
        *figures.lines(),
        "",
        _coverage_table(figures.cells),
    ]
    return "\n".join(lines)


def _first_prompts(source: PromptSource) -> str:
    """The first three as they were read: a wrong column or delimiter shows here."""
    shown = [f"  {prompt.caption[:LONGEST_SHOWN]!r}" for prompt in source.prompts[:3]]
    return "\n".join([f"first prompts of {source.name}, as read:", *shown])


def _coverage_table(cells: Mapping[tuple[str, str, str], int]) -> str:
    """Counts by content type and style, with the spread over subjects."""
    contents = sorted({cell[0] for cell in cells})
    styles = sorted({cell[1] for cell in cells})
    first = max(len(content) for content in contents) + 2
    widths = [max(len(style), 6) + 2 for style in styles]
    header = " " * first + "".join(style.rjust(width) for style, width in zip(styles, widths, strict=True))
    rows = [
        content.ljust(first)
        + "".join(
            str(sum(count for (c, s, _), count in cells.items() if (c, s) == (content, style))).rjust(width)
            for style, width in zip(styles, widths, strict=True)
        )
        for content in contents
    ]
    subjects = {subject: sum(n for (_, _, s), n in cells.items() if s == subject) for _, _, subject in cells}
    spread = ", ".join(f"{subject or '(none)'} {count}" for subject, count in sorted(subjects.items()))
    return "\n".join([header, *rows, f"subjects: {spread}"])
