"""The first hour with real weights as one command, before anything is built: no Ray, no network.

    python benchmarks/first_run.py --image DIR --vl DIR --minutes 45 --output DIR

Asks of these very models what the project's defaults rest on: sinks and outliers, the graft, the template's end, VL
layers, velocity errors against pictures, steps, speed and memory; each with 20 prompts, fewer where the minutes are
short. It leaves first_run.json, index.html and recommendation.yaml, which `build` and `train` take by --config. Each
step is saved as it ends, each picture as it is drawn: run the same command again, and only what is missing is done.
"""

import argparse
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from first_run_advice import recommendation, sentences
from first_run_bench import LAYERS, Bench, TimeIsUpError
from first_run_page import page
from first_run_questions import QUESTIONS
from training import hardware

from projector.inference.image_settings import PATCH_PIXELS, TURBO_STEPS, caption_rows, check_image_settings
from projector.models.machine_records import write_whole
from projector.models.resolve import ModelSources, resolve_models
from projector.options import ModelPaths
from projector.steering.reference_size import TOKEN_SIDE
from shards.errors import UsageError
from shards.prompts.builtin import builtin_prompts
from shards.prompts.files import read_prompts
from shards.tools.terminal import visible

RESULT, PAGE, ADVICE = "first_run.json", "index.html", "recommendation.yaml"
FEWEST, MOST = 2, 99  # prompts
PROMPT_ROWS = 256  # of a conditioning, that stay for a prompt and the template beside a picture's


def main(words: Sequence[str]) -> int:
    """Run what is missing; 0 where all was done, 1 where some was not, 2 where it cannot begin."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image", required=True, help="folder of Z-Image-Turbo, as diffusers has it")
    parser.add_argument("--vl", required=True, help="folder of Qwen3-VL-4B-Instruct, as transformers has it")
    parser.add_argument("--output", type=Path, required=True, help="folder for results and pictures")
    parser.add_argument(
        "--minutes", type=float, default=45.0, help="no step begins, no picture is drawn after them"
    )
    parser.add_argument(
        "--count", type=int, default=20, help="prompts; fewer are taken where minutes are short"
    )
    parser.add_argument("--prompts", type=Path, help="file of your own prompts; default: the built-in ones")
    parser.add_argument("--side", type=int, default=1024, help="of the pictures, pixels")
    parser.add_argument("--steps", type=int, default=TURBO_STEPS, help="of denoising")
    options = parser.parse_args(words)
    ends = time.monotonic() + 60 * options.minutes
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        return run(options, ends)
    except UsageError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 2


def run(options: argparse.Namespace, ends: float) -> int:
    """Check what was asked for, go on from what is there, and run the steps.

    Args:
        options: of the command line.
        ends: when the minutes are over, by the monotonic clock.
    """
    for name, folder in (("image", options.image), ("vl", options.vl)):
        if not Path(folder).is_dir():
            raise UsageError(
                f"--{name} = {folder!r}: no such folder; give a model's folder, nothing is downloaded"
            )
    print("checking and hashing the models", flush=True)
    sources = resolve_models(ModelPaths(image=options.image, vl=options.vl))
    prompts = prompts_of(options)
    for warning in check(options, sources):
        print(visible(f"warning: {warning}"), file=sys.stderr)
    result = begin(options, sources, prompts)
    bench = Bench(
        sources,
        options.output,
        prompts,
        side=options.side,
        steps=options.steps,
        count=result["count"],
        left=lambda: ends - time.monotonic(),
    )
    bench.seconds_a_picture = result["seconds_a_picture"]
    for name in QUESTIONS:
        if "found" not in result["steps"][name]:
            result["steps"][name] = step(name, bench)
            result |= {"count": bench.count, "seconds_a_picture": bench.seconds_a_picture}
            save(result, bench.prompts, options.output)
            tell(name, result)
    print(f"page: {visible(str(options.output / PAGE))}")
    return 0 if all("found" in each for each in result["steps"].values()) else 1


def prompts_of(options: argparse.Namespace) -> list[str]:
    """The first `--count` prompts, or UsageError where there are too few."""
    if not FEWEST <= options.count <= MOST:
        raise UsageError(f"--count = {options.count}; expected {FEWEST} to {MOST}")
    source = read_prompts(options.prompts) if options.prompts else builtin_prompts()
    prompts = [prompt.caption for prompt in source.prompts[: options.count]]
    if len(prompts) < options.count:
        raise UsageError(
            f"--prompts = {str(options.prompts)!r}: {len(prompts)} prompts, --count is {options.count}; "
            "give more, or lower --count"
        )
    return prompts


def check(options: argparse.Namespace, sources: ModelSources) -> list[str]:
    """Warnings about settings that do not fit the models; UsageError for those that cannot work."""
    if options.side < TOKEN_SIDE or options.side % PATCH_PIXELS:
        raise UsageError(
            f"--side = {options.side}; expected a multiple of {PATCH_PIXELS} from {TOKEN_SIDE} on"
        )
    if options.steps < 1:
        raise UsageError(f"--steps = {options.steps}; expected at least 1")
    sources.check_layers(LAYERS)
    warnings = check_image_settings(
        sources.image,
        height=options.side,
        width=options.side,
        steps=options.steps,
        guidance=0.0,
        max_tokens=PROMPT_ROWS,
    )
    axes = json.loads((Path(sources.image.path) / "transformer" / "config.json").read_text())["axes_lens"]
    rows = (options.side // TOKEN_SIDE) ** 2 + PROMPT_ROWS  # one for each VL token
    if rows > caption_rows(axes):
        raise UsageError(
            f"--side = {options.side}: a picture's VL tokens and a prompt are {rows} rows, the image model has "
            f"positions for {caption_rows(axes)}; give a smaller side"
        )
    return warnings


def begin(options: argparse.Namespace, sources: ModelSources, prompts: Sequence[str]) -> dict[str, Any]:
    """What an earlier run of the same models and settings left, or a new result."""
    about = {
        "models": {"image": sources.image.path, "vl": sources.vl.path},
        "hashes": hashlib.sha256(json.dumps(sources.to_json(), sort_keys=True).encode()).hexdigest(),
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        **{name: getattr(options, name) for name in ("count", "side", "steps")},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / RESULT
    new = {
        "hardware": hardware(),
        "options": about,
        "count": options.count,
        "seconds_a_picture": 0.0,
        "steps": {name: {"not_done": "not begun"} for name in QUESTIONS},
    }
    if not file.exists():
        return new
    try:
        earlier = json.loads(file.read_text())
        differ = [name for name, value in about.items() if earlier["options"][name] != value]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--output = {str(options.output)!r}: {RESULT} cannot be read ({error}); give another folder, or remove it"
        ) from None
    if differ:
        raise UsageError(
            f"--output = {str(options.output)!r}: holds a run of other {', '.join(differ)}; give another folder"
        )
    return new | earlier


def step(name: str, bench: Bench) -> dict[str, Any]:
    """A step's figures and seconds, why it was not done, or its error."""
    if bench.left() <= 0:
        return {"not_done": "no time was left; run the command again with more --minutes"}
    begun = time.monotonic()
    try:
        found: dict[str, Any] = {"found": QUESTIONS[name](bench)}
    except TimeIsUpError as reason:
        found = {"not_done": f"{reason}; run the command again, it goes on from there"}
    except UsageError:
        raise
    except Exception as error:  # the next step may still say something
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        found = {"error": f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:500]}"}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found | {"seconds": round(time.monotonic() - begun, 1)}


def save(result: dict[str, Any], prompts: Sequence[str], output: Path) -> None:
    """Write all three files, each whole."""
    text = json.dumps(result, indent=1)
    result = json.loads(text)  # numbers as names are texts from here on, in a first run as in a second
    advice = recommendation(result)
    write_whole(output / ADVICE, advice)
    write_whole(output / PAGE, page(result, prompts, advice, output))
    write_whole(output / RESULT, text + "\n")


def tell(name: str, result: dict[str, Any]) -> None:
    """A step's end, for people."""
    done = result["steps"][name]
    said = sentences(json.loads(json.dumps(result))).get(name) or done.get("not_done") or done.get("error")
    print(visible(f"{name} ({done.get('seconds', 0):.0f} s): {said}"), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
