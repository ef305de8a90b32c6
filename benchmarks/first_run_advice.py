"""What the figures of `first_run.py` say: a sentence for each question, and options for `build` and `train`.

Nothing is recommended that the figures do not carry: where two are apart by less than their interval, the project's
default stays, and the sentence says so.
"""

from collections.abc import Callable, Mapping
from typing import Any

import yaml
from first_run_bench import LAYERS, LOOKED_AT, ROOMY
from first_run_questions import FEWEST_RANKED, rank_correlation

from projector.comparison.scores import interval

DEFAULT_LAYERS = [-8, -6]  # of `build`
SHARD_SECONDS = 600  # docs/performance.md: shards of 5 to 15 device minutes
SMALLEST_SHARD, LARGEST_SHARD = 8, 512
CARRIES = 0.5  # of the pictures recognised by the template's end alone, from which on it carries content
HARDLY_CHANGED = 0.8  # likeness of pictures under a mean end, from which on it makes no difference

Found = Mapping[str, Any]
Result = Mapping[str, Any]


def sentences(result: Result) -> dict[str, str]:
    """A sentence or two for each question that was answered."""
    steps = result["steps"]
    return {
        name: say(steps[name]["found"], result)
        for name, say in SAID.items()
        if "found" in steps.get(name, {})
    }


def recommendation(result: Result) -> str:
    """YAML with the options that follow from what was found, and why; `build` and `train` take it by `--config`."""
    found = {name: step["found"] for name, step in result["steps"].items() if "found" in step}
    build: dict[str, Any] = {
        "height": result["options"]["side"],
        "width": result["options"]["side"],
        "steps": result["options"]["steps"],
        "guidance": 0.0,
    }
    train: dict[str, Any] = {}
    if "speed" in found:
        rate = found["speed"]["samples_per_hour"]
        build["batch_size"] = found["speed"]["batch_size"]
        build["samples_per_shard"] = max(SMALLEST_SHARD, min(LARGEST_SHARD, int(rate * SHARD_SECONDS / 3600)))
    if "layers" in found:
        best, _ = best_layer(found["layers"])
        build["layers"] = list(dict.fromkeys([best, *DEFAULT_LAYERS]))
        train["layer"] = best
    reasons = [f"# {name}: {sentence}" for name, sentence in sentences(result).items()]
    tree = {"models": dict(result["options"]["models"]), "build": build} | ({"train": train} if train else {})
    head = "# From first_run.json. python -m ray_jobs build --config recommendation.yaml --build.output DIR\n"
    return head + "\n".join(reasons) + "\n" + yaml.safe_dump(tree, sort_keys=False, allow_unicode=False)


def best_layer(found: Found) -> tuple[int, str]:
    """The layer that draws most like its references, untrained, if it does so beyond the interval; and why."""
    by_layer = {layer: found[f"normalised{layer}"]["each"]["vl"] for layer in LAYERS}
    best = max(by_layer, key=lambda layer: sum(by_layer[layer]))
    if best == LOOKED_AT:
        return best, "the default is the best of them"
    apart = interval([a - b for a, b in zip(by_layer[best], by_layer[LOOKED_AT], strict=True)])
    if apart["low"] > 0 and len(by_layer[best]) > 1:
        return best, f"{best} beats {LOOKED_AT} by {_plain(apart)}"
    return (
        LOOKED_AT,
        f"{best} is ahead of {LOOKED_AT} by {_plain(apart)}, which is within noise: the default stays",
    )


def _references(found: Found, result: Result) -> str:
    options, count = result["options"], result["count"]
    fewer = (
        "" if count == options["count"] else f" (of {options['count']} wanted; more did not fit the minutes)"
    )
    return (
        f"{count} prompts{fewer}, {options['side']} pixels, {options['steps']} steps, "
        f"{result['seconds_a_picture']:.2f} s a picture in batches of 4. Captions with a known edit: {found['edited']}."
    )


def _speed(found: Found, _result: Result) -> str:
    seconds, peak = found["seconds"], found["peak_gigabytes"]
    memory = (
        f"Most memory: {peak['draw']:.1f} GB while drawing, {peak['read']:.1f} GB while reading"
        if peak["draw"] is not None
        else "A CPU has no memory of its own to measure"
    )
    apart = found["device_gigabytes"] is not None and found["device_gigabytes"] * 1e9 < ROOMY
    return (
        f"{found['samples_per_hour']:,.0f} samples an hour on one {found['device']}, without compiled blocks: "
        f"{seconds['caption']:.3f} s for the caption, {seconds['draw']:.2f} s to draw (batches of "
        f"{found['batch_size']}), {seconds['read']:.2f} s to read. {memory}, {found['host_gigabytes']:.1f} GB of the "
        f"host's{'; here one model at a time was on the device' if apart else ''}."
    )


def _states(found: Found, _result: Result) -> str:
    text = found["sides"]["text"]
    ratio = text["rms_most"] / max(text["rms_median"], 1e-9)
    template = next(iter(found["template"].values()))
    sides = {
        (sink["side"], sink["kind"]): sink for each in found["template"].values() for sink in each["sinks"]
    }
    sinks = "; ".join(
        f"{side} {kind} tokens at {sink['times_median']:.0f} times the median, dimensions {sink['dimensions']}"
        for (side, kind), sink in sides.items()
    )
    outliers = ", ".join(f"{each['outlier_dims']} at {layer}" for layer, each in found["beside_text"].items())
    return (
        f"Constant leading template rows: {template['prefix_tokens']}; rows of the template's end: "
        f"{template['suffix_tokens']}. Strongest text row {ratio:.0f} times the median row. Sinks: {sinks or 'none'}. "
        f"Dimensions with more than twice the text's spread: {outliers}. Standard deviation of all text numbers "
        f"{text['std']:.3g} (61 is what others measured on Qwen3-4B)."
    )


def _graft(found: Found, result: Result) -> str:
    said = f"Alone it gives pictures {_score(found['graft'], result)}."
    if "graft-prompt" in found:
        prompt, both = found["prompt-alone"], found["graft-prompt"]
        said += (
            f" With a prompt behind the picture: {_plain(both['wanted']['vl'])} like what is wanted and "
            f"{_plain(both['reference']['vl'])} like the reference; the prompt alone {_plain(prompt['wanted']['vl'])} "
            f"and {_plain(prompt['reference']['vl'])}."
        )
    return said


def _template_end(found: Found, result: Result) -> str:
    if found["rows"] is None:
        return "The template's end has no fixed number of rows here; nothing was replaced."
    mean, alone = found["mean-end"], found["end-alone"]
    by_itself = alone["recognised"] >= max(CARRIES, 4 / result["count"])
    if by_itself or mean["vl"]["high"] < CARRIES:
        verdict = "It carries content: let the projector predict it, as train.objective response does"
    elif mean["vl"]["low"] > HARDLY_CHANGED:
        verdict = "A mean end changes pictures little"
    else:
        verdict = "Whether it carries content is open; look at the pictures"
    return (
        f"{found['rows']} rows. Replaced by the mean of other prompts' ends, pictures are {_score(mean, result)}; "
        f"without the caption they are {_score(alone, result)}. {verdict}."
    )


def _layers(found: Found, result: Result) -> str:
    each = ", ".join(
        f"{layer}: {_plain(found[f'identity{layer}']['vl'])} as they are, "
        f"{_plain(found[f'normalised{layer}']['vl'])} normalised, {found[f'normalised{layer}']['recognised']:.0%} "
        "recognised"
        for layer in LAYERS
    )
    layer, why = best_layer(found)
    said = f"Likeness to the reference by layer, untrained: {each}. Train on {layer}: {why}."
    if "concat-8" in found:
        behind = max(LAYERS, key=lambda layer: found[f"concat{layer}"]["wanted"]["vl"]["mean"])
        score = found[f"concat{behind}"]
        said += (
            f" Normalised rows behind a prompt do best at {behind}: {_plain(score['wanted']['vl'])} like what is "
            f"wanted, {_plain(score['reference']['vl'])} like the reference (the prompt alone "
            f"{_plain(found['prompt-alone']['wanted']['vl'])} and {_plain(found['prompt-alone']['reference']['vl'])})."
        )
    return said


def _velocities(found: Found, result: Result) -> str:
    errors = {name: sum(each) / len(each) for name, each in found["errors"].items()}
    scores = picture_scores(result)
    names = [name for name in errors if name in scores]
    said = (
        f"{found['pairs']} pairs. The text's own error is {errors['text']:.2g}, which should be next to nothing; the "
        f"graft's {errors['graft']:.2f}. "
    )
    if len(names) < FEWEST_RANKED:
        return f"{said}Too few of the conditionings were drawn to compare with pictures."
    alike = {
        kind: rank_correlation(
            [-errors[name] for name in names], [scores[name][kind]["mean"] for name in names]
        )
        for kind in ("vl", "pixels")
    }
    trust = all(value is not None and value > 0.7 for value in alike.values())
    verdict = "trust it between pictures" if trust else "look at pictures, not at it alone"
    return (
        f"{said}Over {len(names)} conditionings its ranks agree with those of the pictures by {alike['vl']:.2f} (VL) "
        f"and {alike['pixels']:.2f} (pixels), Spearman; so {verdict}."
    )


def picture_scores(result: Result) -> dict[str, Any]:
    """Scores of pictures that conditionings without a prompt gave, by conditioning."""
    found: dict[str, Any] = {}
    for step in ("graft", "template_end", "layers"):
        found |= {
            name: score
            for name, score in result["steps"].get(step, {}).get("found", {}).items()
            if isinstance(score, dict) and "recognised" in score
        }
    return found


def _step_counts(found: Found, result: Result) -> str:
    steps = result["options"]["steps"]
    score = found[f"steps-{steps + 1}"]
    return (
        f"{steps + 1} steps cost {1 / steps:.0%} more and are another trajectory (noise levels "
        f"{_levels(found, steps)} against {_levels(found, steps + 1)}); their pictures are {_score(score, result)} to "
        f"those of {steps}. Likeness cannot say which are better: look. {steps} is recommended, because Z-Image-Turbo "
        "is distilled to 8."
    )


def _levels(found: Found, steps: int) -> list[float]:
    levels: list[float] = found["levels"].get(str(steps)) or found["levels"][steps]
    return [round(level, 2) for level in levels]


def _score(score: Found, result: Result) -> str:
    return (
        f"{_plain(score['vl'])} alike by the VL model, {_plain(score['pixels'])} by pixels, {score['recognised']:.0%} "
        f"recognised (chance {1 / result['count']:.0%})"
    )


def _plain(span: Mapping[str, float]) -> str:
    half = (span["high"] - span["low"]) / 2
    return f"{span['mean']:.2f} ± {half:.2f}"


SAID: dict[str, Callable[[Found, Result], str]] = {
    "references": _references,
    "speed": _speed,
    "states": _states,
    "graft": _graft,
    "template_end": _template_end,
    "layers": _layers,
    "velocities": _velocities,
    "step_counts": _step_counts,
}
