"""`plan`: what a build would make and need, before any device is touched."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ray_jobs.build import plan_of, prompts_of
from ray_jobs.options import BuildOptions, PlanOptions
from shards.plan import Plan, coverage

VL_PIXELS_PER_TOKEN = 32 * 32  # Qwen3-VL: patch 16, 2 x 2 patches merged into one token
HIDDEN_SIZE = 2560  # Qwen3-4B and Qwen3-VL-4B
TEMPLATE_TOKENS = 20  # chat template around image and caption, about
CAPTION_TOKENS = 30  # the built-in prompts' average, about
PNG_BYTES_PER_PIXEL = 1.5  # generated photographs; flat graphics take less
REQUESTS_PER_SHARD = 3  # parquet, tar, commit; a multipart upload of the tar adds its parts


def plan(options: PlanOptions, build: BuildOptions) -> int:
    """Print what would be built; write it where asked.

    Args:
        options: whether to write.
        build: what would be built.

    Returns:
        exit code 0.
    """
    made = plan_of(build, prompts_of(build), segments=(build.samples,))
    estimate = estimated(made, build)
    print(_as_text(made, build, estimate), flush=True)
    if options.output:
        folder = Path(options.output)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{**vars(sample), "key": sample.key} for sample in made.samples]
        pq.write_table(pa.Table.from_pylist(rows), folder / "plan.parquet")
        (folder / "plan.json").write_text(json.dumps(estimate, indent=2) + "\n")
        print(f"written: {folder / 'plan.json'}, {folder / 'plan.parquet'}")
    return 0


def estimated(made: Plan, build: BuildOptions) -> dict[str, int]:
    """Counts and sizes of a plan.

    Args:
        made: the plan.
        build: its settings.

    Returns:
        samples, train and val samples, shards, bytes (estimated for the 4B models), put requests.
    """
    image_tokens = build.height * build.width // VL_PIXELS_PER_TOKEN
    if build.vl_tokens != "all":
        image_tokens = min(image_tokens, int(build.vl_tokens.removeprefix("pooled:")))
    vl_tokens = sum(
        image_tokens + TEMPLATE_TOKENS + (CAPTION_TOKENS if mode == "caption" else 0)
        for mode in build.text_modes
    )
    embeddings = 2 * HIDDEN_SIZE * (CAPTION_TOKENS + TEMPLATE_TOKENS + vl_tokens * len(build.layers))
    per_sample = embeddings + int(build.height * build.width * PNG_BYTES_PER_PIXEL)
    held_out = sum(sample.split == "val" for sample in made.samples)
    return {
        "samples": len(made),
        "train_samples": len(made) - held_out,
        "val_samples": held_out,
        "shards": len(made.shards),
        "bytes": per_sample * len(made),
        "bytes_per_full_shard": per_sample * build.samples_per_shard,
        "put_requests": REQUESTS_PER_SHARD * len(made.shards) + 3,
    }


def _as_text(made: Plan, build: BuildOptions, estimate: dict[str, int]) -> str:
    lines = [
        f"samples        {estimate['samples']} ({estimate['train_samples']} train, {estimate['val_samples']} val)",
        f"shards         {estimate['shards']} of up to {build.samples_per_shard} samples",
        f"bytes          about {estimate['bytes'] / 1e9:,.1f} GB with the 4B models, "
        f"{estimate['bytes_per_full_shard'] / 1e6:,.0f} MB a full shard",
        f"put requests   about {estimate['put_requests']}",
        "",
        _coverage_table(made),
    ]
    return "\n".join(lines)


def _coverage_table(made: Plan) -> str:
    """Counts by content type and style, with the spread over subjects."""
    cells = coverage(made.samples)
    contents = sorted({cell[0] for cell in cells})
    styles = sorted({cell[1] for cell in cells})
    if contents == [""] and styles == [""]:
        return "coverage       the prompts carry no categories"
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
