"""The report's first lines: what a reader who stops there has to know."""

from collections.abc import Mapping
from dataclasses import dataclass

from projector.comparison.outcome import JUDGED
from ray_jobs.report.pictures import way_of
from ray_jobs.report.run_files import Run
from ray_jobs.report.run_schema import Comparison, Evaluation, Figures, Lead
from ray_jobs.report.tables import ranked, short
from shards.tools.dataset_card import are_random

PROJECTOR = "projector"


@dataclass(frozen=True)
class Line:
    """A sentence; `warns` where it names something that should keep the reader from using the projector."""

    text: str
    warns: bool = False


def projectors(evaluation: Evaluation) -> list[str]:
    """The methods of an evaluation that are trained projectors, best first."""
    return [name for name in ranked(evaluation) if name == PROJECTOR or name in evaluation.caption_swap]


def verdict(run: Run) -> list[Line]:
    """Does the best projector beat doing nothing, does it look at the picture, would more data pay?"""
    lines = [_standing(run.evaluations)]
    told = [dataset.settings.get("models") for dataset in run.datasets]
    told += [training.config.get("base_models") for training in run.trainings.values()]
    if any(map(are_random, told)):
        lines.insert(
            0,
            Line(
                "The models of this run are random test models: it shows that the program runs, and its figures and "
                "pictures mean nothing.",
                warns=True,
            ),
        )
    lines += [
        Line(
            f"{_called(place, name)} only copies its prompt. {_sentence(swap.sentence)}",
            warns=True,
        )
        for place, evaluation in run.evaluations.items()
        for name, swap in evaluation.caption_swap.items()
        if swap.copies
    ]
    best = _best(run.evaluations)
    if best:
        place, name = best
        swap = run.evaluations[place].caption_swap.get(name)
        if swap and swap.sentence and not swap.copies:
            lines.append(Line(_sentence(swap.sentence)))
    for place, comparison in run.comparisons.items():
        if said := standings(comparison):
            lines.append(Line(f"In pictures ({place or run.name}): {said[0]}", warns=not _shown(comparison)))
    lines += [Line(_sentence(ladder.verdict)) for ladder in run.ladders.values() if ladder.verdict]
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
    """The paired differences to the best of the others, and whether they are shown."""
    told = [
        f"{name} {short(score.mean, 2)} (95% {short(score.low, 2)} to {short(score.high, 2)})"
        for name in JUDGED
        if (score := getattr(lead, name)) is not None
    ]
    return f"above {lead.baseline}, the best of the others, by {', '.join(told)}"


def _shown(comparison: Comparison) -> bool:
    """Whether a picture alone, or else the first mode there is, is shown to beat the others."""
    first = next((lead for by_value in comparison.differences.values() for lead in by_value.values()), None)
    score = first and (first.fidelity or first.adherence)
    return bool(score and comparison.references > 1 and score.low is not None and score.low > 0)


def best_first(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Places of the evaluations, those of the better projectors first; last those without one."""
    scored = [place for _, place, _ in _scored(evaluations)]
    return list(dict.fromkeys([*scored, *evaluations]))


def _best(evaluations: Mapping[str, Evaluation]) -> tuple[str, str] | None:
    """Place and name of the projector with the smallest standardised error of all."""
    scored = _scored(evaluations)
    return scored[0][1:] if scored else None


def _scored(evaluations: Mapping[str, Evaluation]) -> list[tuple[float, str, str]]:
    """Standardised error, place and name of every projector, the smallest error first."""
    return sorted(
        (error, place, name)
        for place, evaluation in evaluations.items()
        for name in projectors(evaluation)
        if (error := evaluation.methods[name].mse_standardized) is not None
    )


def _standing(evaluations: Mapping[str, Evaluation]) -> Line:
    """The best projector beside the best baseline of the same evaluation."""
    best = _best(evaluations)
    if best is None:
        return Line("No projector was evaluated in this run.", warns=bool(evaluations))
    place, name = best
    evaluation = evaluations[place]
    ours = evaluation.methods[name]
    trained = projectors(evaluation)
    baselines = {
        method: figures.mse_standardized
        for method, figures in evaluation.methods.items()
        if method not in trained and figures.mse_standardized is not None
    }
    called = _called(place, name)
    said = f"{_told(ours)} on {evaluation.pairs:,} {evaluation.split} pairs"
    if "identity" in baselines and ours.mse_standardized is not None:
        said += f"; doing nothing (identity) has {_told(evaluation.methods['identity'])}"
    if not baselines:
        return Line(f"{called} was evaluated without baselines: {said}.", warns=True)
    winner = min(baselines, key=lambda method: (baselines[method], method))
    error = ours.mse_standardized
    if error is not None and error < baselines[winner]:
        doubts = [
            doubt
            for name in sorted(baselines, key=lambda name: (baselines[name], name))
            if (doubt := _doubt(ours, evaluation.methods[name], name))
        ]
        if not doubts:
            return Line(f"{called} is the best projector and beats every baseline: {said}.")
        return Line(
            f"{called} has the least error, but is not shown to be better than {'; nor than '.join(doubts)}. It has "
            f"{said}.",
            warns=True,
        )
    return Line(
        f"No projector beats the baseline {winner} (standardised MSE {short(baselines[winner])}). "
        f"The best one, {called}: {said}.",
        warns=True,
    )


def _told(figures: Figures) -> str:
    return f"standardised MSE {short(figures.mse_standardized)}, correlation {short(figures.per_dim_correlation)}"


def _doubt(ours: Figures, other: Figures, name: str) -> str:
    """The name of a method that a projector is not shown to beat, and why; empty where it is.

    Intervals of both errors may overlap where one method is better on nearly every pair, so what counts is the
    interval of their difference on the same pairs, where eval.json holds it.
    """
    paired = ours.differences.get(name)
    if paired is not None and paired.interval is not None:
        low, high = paired.interval
        if low is None or high is None or high < 0:
            return ""
        return f"{name} (paired difference of the errors {short(paired.difference)}, 95% {short(low)} to {short(high)})"
    ends = [figures.intervals.get("mse_standardized") for figures in (ours, other)]
    (low, high), (other_low, other_high) = (end or (None, None) for end in ends)
    if low is None or high is None or other_low is None or other_high is None:
        return ""
    return f"{name} (their 95% intervals overlap)" if low <= other_high and other_low <= high else ""


def _called(place: str, name: str) -> str:
    """The run's folder names a projector; one that was measured beside it also has a name of its own."""
    return place if name == PROJECTOR else f"{place}/{name}"


def _sentence(text: str) -> str:
    """Capitalised, with a full stop."""
    text = text.strip()
    if not text:
        return ""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"
