"""Is a projector better than doing nothing, than ridge, than the graft? One list of methods over all evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from projector.network.model_card import FIGURES, RANKED_BY
from ray_jobs.report.bars import difference_bar
from ray_jobs.report.run_files import Training
from ray_jobs.report.run_schema import Difference, Evaluation, Figures, Number
from ray_jobs.report.tables import Cell, Table, number, ranked

PROJECTOR = "projector"
# What decides, and what the page calls it.
DECIDING = {name: FIGURES[name] for name in RANKED_BY} | {"mse_standardized": "standardised MSE"}
KEPT = {
    "ridge": "ridge",
    "identity": "doing nothing",
    "no_input": "no picture",
    "vl_caption": "a written caption",
}
LEVEL = 0.05
MOST = 1.0  # of the baseline's figure: bars end there


@dataclass(frozen=True)
class Contestant:
    """A method in one evaluation.

    Attributes:
        called: what the page calls it; a projector by its run's folder.
        place: of the evaluation.
        method: its name there.
        figures: what was measured.
        ours: whether it is a trained projector.
        evaluation: that it is part of.
        figure: name of the one that decides.
        better: whether it is shown to be better than the best baseline, all projectors of the page counted.
    """

    called: str
    place: str
    method: str
    figures: Figures
    ours: bool
    evaluation: Evaluation
    figure: str
    better: bool = False

    @property
    def value(self) -> Number:
        """Of the figure that decides."""
        value: Number = getattr(self.figures, self.figure)
        return value

    @property
    def against(self) -> Difference | None:
        """Its difference to the best baseline; None for that baseline itself, and in files of earlier versions."""
        return self.figures.against.get(self.figure)

    @property
    def relative(self) -> tuple[float, float, float] | None:
        """Difference to the best baseline and its ends, as shares of that baseline's figure; None where unknown."""
        found = self.against
        if found is None or found.difference is None or found.interval is None:
            return None
        low, high = found.interval
        baseline = self.evaluation.methods.get(found.baseline)
        whole = getattr(baseline, self.figure) if baseline else None
        if low is None or high is None or not whole:
            return None
        return found.difference / whole, low / whole, high / whole


def projectors(evaluation: Evaluation) -> list[str]:
    """The methods of an evaluation that are trained projectors, best first."""
    return [name for name in ranked(evaluation) if name == PROJECTOR or name in evaluation.caption_swap]


def deciding(evaluations: Mapping[str, Evaluation]) -> str:
    """The figure that decides on this page: the first that is known of every projector, else of any."""
    measured = [e.methods[name] for e in evaluations.values() for name in projectors(e)]
    known = {name: [getattr(figures, name) is not None for figures in measured] for name in DECIDING}
    of_all, of_some = ([name for name in DECIDING if enough(known[name])] for enough in (all, any))
    return (of_all or of_some or ["mse_standardized"])[0]


def contestants(evaluations: Mapping[str, Evaluation]) -> list[Contestant]:
    """Every trained projector of all evaluations, the best first, those without the figure last."""
    figure = deciding(evaluations)
    named = [(place, name) for place, evaluation in evaluations.items() for name in projectors(evaluation)]
    found = []
    for place, name in named:
        evaluation = evaluations[place]
        against = evaluation.methods[name].against.get(figure)
        alone = len(projectors(evaluation)) == len(named)  # then its interval counts all projectors
        better = bool(
            against
            and against.better
            and (alone or (against.p is not None and against.p * len(named) < LEVEL))
        )
        called = place if name == PROJECTOR else f"{place}/{name}"
        found.append(
            Contestant(called, place, name, evaluation.methods[name], True, evaluation, figure, better=better)
        )
    return sorted(found, key=_order)


def baselines(best: Contestant) -> list[Contestant]:
    """The baselines of a projector's evaluation that a reader asks for: the best one, ridge, doing nothing."""
    evaluation, ours = best.evaluation, projectors(best.evaluation)
    against = best.against
    found = [
        Contestant(KEPT.get(name, name), best.place, name, figures, False, evaluation, best.figure)
        for name, figures in evaluation.methods.items()
        if name not in ours and (name in KEPT or (against and name == against.baseline))
    ]
    return sorted(found, key=_order)


def better_table(evaluations: Mapping[str, Evaluation], trainings: Mapping[str, Training]) -> Table | None:
    """Projectors and baselines together, best first, with the difference to the best baseline as a bar."""
    ours = contestants(evaluations)
    if not ours:
        return None
    entries = sorted([*ours, *baselines(ours[0])], key=_order)
    ends = [abs(end) for entry in ours if (shares := entry.relative) for end in shares]
    scale = min(MOST, 1.2 * max(ends, default=MOST)) or MOST
    figure = ours[0].figure
    known = [key for key in DECIDING if any(getattr(entry.figures, key) is not None for entry in entries)]
    shown = [figure, *(key for key in known if key != figure)]
    rows = []
    for entry in entries:
        figures = entry.figures
        columns = [number(getattr(figures, key), figures.intervals.get(key)) for key in shown]
        columns += [number(figures.per_dim_correlation), number(figures.recall_at_1)]
        rows.append([_named(entry, trainings), _difference(entry, entries, scale), *columns])
    best = next((entry.against.baseline for entry in ours if entry.against), "")
    said = f"difference to {KEPT.get(best, best) or 'the best baseline'}"
    heads = ["method", said, *(DECIDING[key] for key in shown), "correlation", "recall@1"]
    return Table("Projectors and baselines, best first", heads, rows, marked=entries.index(ours[0]))


def _named(entry: Contestant, trainings: Mapping[str, Training]) -> Cell:
    """A method's name and what it is."""
    if not entry.ours:
        return Cell(entry.called, entry.called, "baseline")
    config = trainings[entry.place].config if entry.place in trainings else {}
    reader = "the graft" if config.get("reader") == "graft" else ""
    kind = f"projector of {reader}" if reader else "projector"
    return Cell(
        entry.called, entry.called, f"{kind}, {'better' if entry.better else 'not shown to be better'}"
    )


def _difference(entry: Contestant, entries: Sequence[Contestant], scale: float) -> Cell:
    """The difference to the best baseline in percent, as text and bar."""
    shares = entry.relative
    if shares is None:
        is_best = any(
            found.against and found.against.baseline == entry.method for found in entries if found.ours
        )
        return Cell("the best baseline", "0") if is_best and not entry.ours else Cell("–")
    value, low, high = shares
    bar: Markup = difference_bar(value, low, high, scale, good=entry.better)
    return Cell(percent(value), repr(value), f"{percent(low)} to {percent(high)}", bar)


def percent(share: float) -> str:
    """A signed percentage of three digits at most."""
    value = 100 * share
    said = f"{value:+.{0 if abs(value) >= 10 else 1}f}%"
    return "0%" if said in ("+0.0%", "-0.0%") else said.replace("-", "\N{MINUS SIGN}")


def _order(entry: Contestant) -> tuple[bool, float, str]:
    return entry.value is None, RANKED_BY[entry.figure] * (entry.value or 0.0), entry.called
