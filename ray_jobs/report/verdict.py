"""The report's first lines: what a reader who stops there has to know."""

from collections.abc import Mapping
from dataclasses import dataclass

from projector.comparison.outcome import JUDGED
from ray_jobs.report.better import DECIDING, KEPT, PROJECTOR, Contestant, contestants, percent
from ray_jobs.report.pictures import way_of
from ray_jobs.report.run_files import Run
from ray_jobs.report.run_schema import Comparison, Lead
from ray_jobs.report.tables import short
from shards.tools.dataset_card import are_random

MINIATURE = "mini/"  # ids of the models of the miniature world


@dataclass(frozen=True)
class Line:
    """A sentence; `warns` where it names something that should keep the reader from using the projector."""

    text: str
    warns: bool = False


def made_by(run: Run) -> list[Line]:
    """That the models behind the run are random or miniature ones, where they are."""
    told = [dataset.settings.get("models") for dataset in run.datasets]
    told += [training.config.get("base_models") for training in run.trainings.values()]
    if any(map(are_random, told)):
        return [
            Line(
                "The models of this run are random test models: it shows that the program runs, and its figures and "
                "pictures mean nothing.",
                warns=True,
            )
        ]
    if any(map(are_miniature, told)):
        return [
            Line(
                "The models of this run are miniatures that draw and read simple scenes: every step is the real one, "
                "its figures are those of a toy world."
            )
        ]
    return []


def are_miniature(models: object) -> bool:
    """Whether any of the models that settings or a config.json name, by role, is one of the miniature world."""
    named = models.values() if isinstance(models, Mapping) else ()
    ids = (model.get("id") if isinstance(model, Mapping) else model for model in named)
    return any(str(identity).startswith(MINIATURE) for identity in ids)


def verdict(run: Run) -> list[Line]:
    """Does the best projector steer, is it better than the best baseline, does it look at the picture?"""
    ours = contestants(run.evaluations)
    lines = [*made_by(run), _standing(ours, bool(run.evaluations))]
    lines += [
        Line(
            f"{place if name == PROJECTOR else f'{place}/{name}'} only copies its prompt. {sentence(swap.sentence)}",
            warns=True,
        )
        for place, evaluation in run.evaluations.items()
        for name, swap in evaluation.caption_swap.items()
        if swap.copies
    ]
    for place, comparison in run.comparisons.items():
        if said := standings(comparison):
            lines.append(Line(f"In pictures ({place or run.name}): {said[0]}", warns=not _shown(comparison)))
    lines += [Line(sentence(ladder.verdict)) for ladder in run.ladders.values() if ladder.verdict]
    return lines


def standings(comparison: Comparison) -> list[str]:
    """A sentence for each mode, the picture alone first: what the projector's pictures reach, and its lead."""
    return [
        f"{way_of(mode, value)}: {_reached(comparison, mode, value)}; {_lead(lead)}."
        for mode, by_value in comparison.differences.items()
        for value, lead in by_value.items()
        if value in comparison.methods.get(PROJECTOR, {}).get(mode, {})
    ]


def _reached(comparison: Comparison, mode: str, value: str) -> str:
    scores = comparison.methods[PROJECTOR][mode][value]
    return ", ".join(f"{name} {short(scores[name].mean, 2)}" for name in JUDGED if name in scores)


def _lead(lead: Lead) -> str:
    """The paired differences to the best of the others, and which of them are shown."""
    scores = {name: score for name in JUDGED if (score := getattr(lead, name)) is not None}
    told = [
        f"{name} {short(score.mean, 2)} (95% {short(score.low, 2)} to {short(score.high, 2)})"
        for name, score in scores.items()
    ]
    better = [name for name, score in scores.items() if score.better]
    word = "not shown to be above"
    if better:
        word = "above" if len(better) == len(scores) else f"in {better[0]} above"
    return f"{word} {lead.baseline}, the best of the others: by {', '.join(told)}"


def _shown(comparison: Comparison) -> bool:
    """Whether a picture alone, or else the first mode there is, is shown to beat the others."""
    first = next((lead for by_value in comparison.differences.values() for lead in by_value.values()), None)
    score = first and (first.fidelity or first.adherence)
    return bool(score and score.better)


def _standing(ours: list[Contestant], measured: bool) -> Line:
    """The best projector beside the best baseline of the same evaluation."""
    if not ours or ours[0].value is None:
        return Line("No projector was evaluated in this run.", warns=measured)
    best = next((entry for entry in ours if entry.better), ours[0])
    on = f"on {best.evaluation.counted(best.figure)}"
    has = f"{DECIDING[best.figure]} {short(best.value)}"
    if (against := best.against) is None:
        return Line(
            f"{best.called} has {has} {on}; it was not compared with a baseline pair by pair.", warns=True
        )
    baseline = KEPT.get(against.baseline, against.baseline)
    if (shares := best.relative) is None:
        if best.better:  # than a baseline whose figure is 0, of which there are no shares
            return Line(f"{best.called} is better than the best baseline, {baseline}: {has} against 0, {on}.")
        return Line(
            f"{best.called} has {has} {on}: too few to say whether it is better than {baseline}.", warns=True
        )
    apart, low, high = map(percent, shares)
    if best.better:
        return Line(
            f"{best.called} is better than the best baseline, {baseline}: {has}, {apart} (95% {low} to {high}), {on}."
        )
    return Line(
        f"No projector is shown to be better than the best baseline, {baseline}. The best one, {best.called}, has "
        f"{has}, {apart} (95% {low} to {high}), {on}.",
        warns=True,
    )


def sentence(text: str) -> str:
    """Capitalised, with a full stop."""
    text = text.strip()
    if not text:
        return ""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"
