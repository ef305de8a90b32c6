"""The questions of `first_run.py`: each draws, measures and returns figures; none of them judges.

N prompts, T text rows, R rows of a conditioning, D hidden.
"""

import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from first_run_bench import LAYERS, TEXT_LAYER, TOGETHER, Bench, TimeIsUpError
from first_run_states import state_figures
from torch import Tensor

from projector.data.pairs import Conditioning
from projector.evaluation.velocity_error import velocity_error
from projector.inference.compile_and_batch import find_batch_size
from projector.inference.frozen_transformer import pipeline_sigmas
from projector.inference.text_encoder import TextEncoding
from projector.teaching.trajectories import Trajectories
from shards.format.sample import KIND_CAPTION

FEWEST = 4  # prompts, however short the minutes
PICTURES_EACH = (
    22  # that all questions together cost for a prompt, velocities counted as the pictures they take
)
FEWEST_RANKED = 4  # conditionings, for a rank correlation that says something


def references(bench: Bench) -> dict[str, Any]:
    """Draw a picture of each prompt, as many as the minutes allow for; they are what all others are held against."""
    if not bench.seconds_a_picture:
        first = {number: text.embeddings for number, text in enumerate(bench.texts()[:TOGETHER])}
        bench.images().one_step([64] * len(first))  # warm
        for number in first:  # what a run left that ended before it was timed
            bench.file("reference", number).unlink(missing_ok=True)
        begun = time.monotonic()
        bench.draw("reference", first)
        bench.seconds_a_picture = (time.monotonic() - begun) / len(first)
        affordable = int(bench.left() / (bench.seconds_a_picture * PICTURES_EACH))
        bench.count = min(bench.count, max(FEWEST, affordable))
    bench.draw("reference", {number: text.embeddings for number, text in enumerate(bench.texts())})
    return {"edited": len(bench.edited), "folders": ["reference"]}


def speed(bench: Bench) -> dict[str, Any]:
    """Seconds of each part of a sample, samples an hour, and memory, on this device."""
    images = bench.images()
    _forget_peak()
    batch = find_batch_size(images, bench.sources.image)
    texts = (bench.texts() * batch)[:batch]
    begun = time.perf_counter()
    pictures = images.generate([text.embeddings.to(_device(bench)) for text in texts], range(len(texts)))
    draw, draw_peak = (time.perf_counter() - begun) / len(texts), _peak()
    bench.read(pictures[:1])  # warm
    _forget_peak()
    begun = time.perf_counter()
    bench.read(pictures)
    read = (time.perf_counter() - begun) / len(pictures)
    parts = {"caption": bench.seconds_a_caption, "draw": draw, "read": read}
    return {
        "batch_size": batch,
        "seconds": parts,
        "samples_per_hour": 3600 / sum(parts.values()),
        "peak_gigabytes": {"draw": draw_peak, "read": _peak()},
        "host_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "device_gigabytes": torch.cuda.get_device_properties(0).total_memory / 1e9
        if torch.cuda.is_available()
        else None,
    }


def states(bench: Bench) -> dict[str, Any]:
    """Sinks, constant tokens and outlier dimensions, as they are in these models."""
    return state_figures(bench)


def graft(bench: Bench) -> dict[str, Any]:
    """The text encoder with the VL model's eyes: the picture alone, and a prompt behind it that changes something."""
    numbers = range(bench.count)
    alone = {
        number: item.states["none"][TEXT_LAYER]
        for number, item in zip(numbers, bench.read_by_graft(numbers, [""] * bench.count), strict=True)
    }
    bench.draw("graft", alone)
    found: dict[str, Any] = {"graft": bench.scored("graft", numbers), "folders": ["reference", "graft"]}
    if edited := bench.edited:
        draw_wanted(bench)
        read = bench.read_by_graft(edited, [bench.edits[number].prompt for number in edited])
        with_prompt = {
            number: item.states["caption"][TEXT_LAYER] for number, item in zip(edited, read, strict=True)
        }
        bench.draw("graft-prompt", with_prompt)
        found |= beside_prompts(bench, ["prompt-alone", "graft-prompt"])
        found["folders"] += ["wanted", "prompt-alone", "graft-prompt"]
    return found


def draw_wanted(bench: Bench) -> None:
    """Draw what a prompt behind a reference asks for, and what the prompt alone gives."""
    edits = {number: bench.edits[number] for number in bench.edited}
    bench.draw("wanted", {number: bench.text(edit.caption).embeddings for number, edit in edits.items()})
    bench.draw("prompt-alone", {number: bench.text(edit.prompt).embeddings for number, edit in edits.items()})


def beside_prompts(bench: Bench, names: list[str]) -> dict[str, Any]:
    """How alike pictures of a reference and a prompt are to what is wanted, and to the reference."""
    return {
        name: {
            "wanted": bench.scored(name, bench.edited, "wanted"),
            "reference": bench.scored(name, bench.edited),
        }
        for name in names
    }


def template_end(bench: Bench) -> dict[str, Any]:
    """The rows behind the caption: replaced by their mean over the other prompts, and without the caption."""
    texts = bench.texts()
    if len({_end(text) for text in texts}) != 1:
        return {"rows": None}
    bench.draw("mean-end", mean_ends(texts))
    bench.draw("end-alone", ends_alone(texts))
    numbers = range(bench.count)
    return {
        "rows": _end(texts[0]),
        "mean-end": bench.scored("mean-end", numbers),
        "end-alone": bench.scored("end-alone", numbers),
        "folders": ["reference", "mean-end", "end-alone"],
    }


def mean_ends(texts: list[TextEncoding]) -> dict[int, Tensor]:
    """Conditionings whose end is the mean of the other prompts' ends."""
    count = _end(texts[0])
    ends = torch.stack([text.embeddings[len(text.embeddings) - count :] for text in texts])
    others = (ends.sum(0) - ends) / (len(texts) - 1)
    return {
        number: torch.cat([text.embeddings[: len(text.embeddings) - count], others[number]])
        for number, text in enumerate(texts)
    }


def ends_alone(texts: list[TextEncoding]) -> dict[int, Tensor]:
    """Conditionings without their captions."""
    return {number: text.embeddings[text.kind != KIND_CAPTION] for number, text in enumerate(texts)}


def _end(text: TextEncoding) -> int:
    """How many rows stand behind the caption."""
    return len(text.kind) - 1 - int(torch.nonzero(text.kind == KIND_CAPTION)[-1])


def layers(bench: Bench) -> dict[str, Any]:
    """VL layers without training: as they are, normalised by dimension, and so behind a prompt."""
    found: dict[str, Any] = {"folders": ["reference"]}
    numbers = range(bench.count)
    for layer in LAYERS:
        for name, rows in untrained(bench, layer).items():
            bench.draw(name, {number: bench.whole(each, layer) for number, each in enumerate(rows)})
            found[name] = bench.scored(name, numbers)
            found["folders"].append(name)
    if not bench.edited:
        return found
    draw_wanted(bench)
    names = []
    for layer in LAYERS:
        rows = untrained(bench, layer)[f"normalised{layer}"]
        names.append(f"concat{layer}")
        bench.draw(names[-1], {n: behind(bench.text(bench.edits[n].prompt), rows[n]) for n in bench.edited})
    return (
        found
        | beside_prompts(bench, ["prompt-alone", *names])
        | {"folders": [*found["folders"], "wanted", "prompt-alone", *names]}
    )


def untrained(bench: Bench, layer: int) -> dict[str, list[Tensor]]:
    """Rows of each reference that need no training, by name."""
    methods = bench.statistics(layer).baselines()
    return {
        f"{name}{layer}": [
            methods[method].apply(bench.picture_rows(number, layer)).float() for number in range(bench.count)
        ]
        for name, method in (("identity", "identity"), ("normalised", "per_dim_norm"))
    }


def behind(prompt: TextEncoding, rows: Tensor) -> Tensor:
    """(R, D) a prompt's template and own rows, a picture's rows, and the prompt's own end."""
    last = int(torch.nonzero(prompt.kind == KIND_CAPTION)[-1]) + 1
    return torch.cat([prompt.embeddings[:last], rows, prompt.embeddings[last:]])


def velocities(bench: Bench) -> dict[str, Any]:
    """Velocity errors of what the other questions drew from, pair by pair: do they rank as the pictures do?"""
    texts = bench.texts()
    wholes: dict[str, list[Tensor]] = {"text": [text.embeddings for text in texts]}
    if _end(texts[0]) and len({_end(text) for text in texts}) == 1:
        wholes |= {"mean-end": list(mean_ends(texts).values()), "end-alone": list(ends_alone(texts).values())}
    for layer in LAYERS:
        wholes |= {
            name: [bench.whole(each, layer) for each in rows]
            for name, rows in untrained(bench, layer).items()
        }
    read = bench.read_by_graft(range(bench.count), [""] * bench.count)
    wholes["graft"] = [item.states["none"][TEXT_LAYER] for item in read]
    model = bench.frozen()
    errors: dict[str, list[float]] = {name: [] for name in wholes}
    try:
        for number, text in enumerate(texts):
            if bench.left() <= 0:
                break
            path = Trajectories(
                model, iter([Conditioning(text.embeddings, number, bench.prompts[number])]), 1
            )
            for name, each in wholes.items():
                errors[name].append(velocity_error([each[number]], path, model))
    finally:
        bench.drawn_with_again()
    if len(errors["text"]) < min(FEWEST, bench.count):
        raise TimeIsUpError(f"time was up after {len(errors['text'])} of {bench.count} pairs")
    return {"pairs": len(errors["text"]), "errors": errors}


def step_counts(bench: Bench) -> dict[str, Any]:
    """The run's number of steps and one more: noise levels, pictures, seconds."""
    more = bench.steps + 1
    scheduler = bench.images().pipeline.scheduler
    levels = {
        steps: [
            round(float(level), 4) for level in pipeline_sigmas(scheduler, (bench.side // 16) ** 2, steps)
        ]
        for steps in (bench.steps, more)
    }
    bench.draw(f"steps-{more}", {n: text.embeddings for n, text in enumerate(bench.texts())}, steps=more)
    return {
        "levels": levels,
        f"steps-{more}": bench.scored(f"steps-{more}", range(bench.count)),
        "folders": ["reference", f"steps-{more}"],
    }


def rank_correlation(a: list[float], b: list[float]) -> float | None:
    """Spearman's; None where there are too few to say anything."""
    if len(a) < FEWEST_RANKED:
        return None
    ranks = torch.tensor([a, b], dtype=torch.float64).argsort(-1).argsort(-1).double()
    return float(torch.corrcoef(ranks)[0, 1])


def _device(bench: Bench) -> torch.device:
    return bench.images().pipeline.transformer.device


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> float | None:
    """Gigabytes that tensors took at most; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


# In order of worth: what is first is there when the minutes end.
QUESTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "references": references,
    "speed": speed,
    "states": states,
    "graft": graft,
    "template_end": template_end,
    "layers": layers,
    "velocities": velocities,
    "step_counts": step_counts,
}
