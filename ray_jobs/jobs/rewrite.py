"""`rewrite`: short prompts of a file → long ones in another file, which `build.prompts` takes. Resumes."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from projector.making.prompt_rewriter import Rewriter
from projector.models.model_folder import check_complete
from projector.models.resolve import locate
from ray_jobs.cli.option_errors import options_of
from ray_jobs.cli.progress import Progress
from ray_jobs.cli.run_options import RewriteOptions
from shards.errors import UsageError
from shards.format.splits import normalise_caption
from shards.prompts.categories import AXES
from shards.prompts.files import read_prompts
from shards.prompts.prompt import Prompt


@options_of("rewrite", RewriteOptions)
def rewrite(options: RewriteOptions) -> int:
    """Write the file; what is in it already is not made again.

    Args:
        options: which prompts, by which model, and where to.

    Returns:
        exit code 0.

    Raises:
        UsageError: anything wrong with the input, before a model loads.
    """
    if Path(options.output).suffix != ".jsonl":
        raise UsageError(
            f"rewrite.output = {options.output!r}: is written as JSON lines; give a name in .jsonl"
        )
    source = read_prompts(Path(options.prompts), options.prompt_column, drop_duplicates=True)
    for note in source.notes:
        print(note, flush=True)
    identity, folder, _ = locate("model", options.model)
    output = Path(options.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        done = _written(output, source.prompts, identity, options.words)
    except OSError as error:
        raise UsageError(
            f"rewrite.output = {options.output!r}: cannot be used: {error.strerror or error}; give a file in a folder "
            "that can be written"
        ) from None
    progress = Progress("rewrite", len(source.prompts), done=done, unit="prompts")
    if done < len(source.prompts):
        check_complete(folder, ("config.json", "tokenizer_config.json"), "model")
        try:
            rewriter = Rewriter.from_pretrained(str(folder), options.words)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"rewrite.model = {options.model!r}: {error}; give the folder or hub id of a causal language model"
            ) from None
        there = [record["prompt"] for record in _records_of(output)] if done else []
        taken = set(map(normalise_caption, (*there, *(prompt.caption for prompt in source.prompts))))
        with output.open("a", encoding="utf-8") as file:
            for made, record in enumerate(_records(rewriter, source.prompts[done:], taken, options), start=1):
                _append(file, record | {"model": identity, "words": options.words})
                progress.show(made)
    kept = sum(record["prompt"] == record["original"] for record in _records_of(output))
    progress.show(len(source.prompts) - done, final=True)
    print(f"written: {output}, {len(source.prompts)} prompts, {kept} of them as they were")
    return 0


def _records(
    rewriter: Rewriter, prompts: Sequence[Prompt], taken: set[str], options: RewriteOptions
) -> Iterator[dict[str, str]]:
    """What is written of each prompt; a long one stays, and one of which the model made nothing or what is there."""
    for start in range(0, len(prompts), options.batch_size):
        batch = prompts[start : start + options.batch_size]
        short = [prompt.caption for prompt in batch if len(prompt.caption.split()) < options.words]
        longer = dict(zip(short, rewriter.rewrite(short) if short else (), strict=True))
        for prompt in batch:
            categories = {name: getattr(prompt, name) for name in AXES}
            text = _printable(longer.get(prompt.caption, ""))
            if not text or normalise_caption(text) in taken:
                text = prompt.caption
            taken.add(normalise_caption(text))
            yield {"prompt": text, "original": prompt.caption, **categories}


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())


def _append(file: IO[str], record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _records_of(output: Path) -> list[dict[str, Any]]:
    with output.open(encoding="utf-8", newline="\n") as lines:  # captions may hold other line separators
        return [json.loads(line) for line in lines if line.endswith("\n")]


def _written(output: Path, prompts: Sequence[Prompt], model: str, words: int) -> int:
    """How many prompts are in the output already; half a line that a kill left at its end is cut off.

    Raises:
        UsageError: the file is of other prompts, another model or another length.
    """
    if not output.exists():
        return 0
    try:
        told = [(record["original"], record["model"], record["words"]) for record in _records_of(output)]
    except (ValueError, KeyError, TypeError):
        told = [("", "", 0)]
    if told != [(prompt.caption, model, words) for prompt in prompts[: len(told)]]:
        raise UsageError(
            f"rewrite.output = {str(output)!r}: holds something else than the beginning of these prompts, rewritten "
            f"by {model} to {words} words; give another output"
        )
    content = output.read_bytes()
    if not content.endswith(b"\n"):
        with output.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
    return len(told)
