"""The report's tables, as rows of cells that the template draws and the reader sorts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from projector.comparison.outcome import JUDGED
from ray_jobs.report.run_files import Training
from ray_jobs.report.run_schema import (
    CaptionSwap,
    Comparison,
    Dimension,
    Evaluation,
    Figures,
    Interval,
    Number,
    Score,
)

SMALLER_IS_BETTER = "mse_standardized"
COLUMNS = {
    "fidelity": "fidelity",
    "velocity_error": "velocity error",
    "mse_standardized": "MSE (standardised)",
    "r2": "R²",
    "per_dim_correlation": "correlation",
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "rms_r2": "R² after RMSNorm",
    "cosine_similarity": "cosine",
    "sliced_wasserstein": "sliced Wasserstein",
    "std_ratio_range": "std ratio, min to max",
    "outlier_dims": "dims > 2x",
    "collapsed_dims": "dims < 0.5x",
    "mse": "MSE (raw)",
}
SWAPPED = ("own", "image", "caption", "takes_own", "takes_other")
SUMMARY_COLUMNS = ("mse_standardized", "r2", "per_dim_correlation", "recall_at_1")  # where little room is


@dataclass(frozen=True)
class Cell:
    """A field: its text, what it is sorted by (empty: last), an interval or the like in small type, and a drawing."""

    text: str
    order: str = ""
    detail: str = ""
    drawing: Markup | None = None


@dataclass(frozen=True)
class Table:
    """A table: its caption, which also names it to screen readers, its column titles, and its rows.

    Attributes:
        marked: index of the row in bold type, -1 for none.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    marked: int = -1


def number(value: Number, interval: Interval = None) -> Cell:
    """A figure with three digits and, where known, its interval."""
    if value is None:
        return Cell("–")
    detail = f"{short(interval[0])} to {short(interval[1])}" if interval else ""
    return Cell(short(value), repr(value), detail)


def span(interval: Interval) -> Cell:
    """The ends of a range, sorted by how far the range reaches."""
    low, high = interval or (None, None)
    if low is None or high is None:
        return Cell("–")
    return Cell(f"{short(low)} to {short(high)}", repr(high - low))


def short(value: Number, digits: int = 3) -> str:
    """So many digits, integers whole."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1 else f"{value:.{digits}g}"


def word(text: str) -> Cell:
    """Text, sorted as text."""
    return Cell(text, text)


def ranked(evaluation: Evaluation) -> list[str]:
    """Names of the methods, smallest standardised error first: as the file ranks them."""
    listed = [name for name in evaluation.ranking if name in evaluation.methods]
    rest = sorted(
        evaluation.methods.keys() - set(listed),
        key=lambda name: (
            evaluation.methods[name].mse_standardized is None,
            evaluation.methods[name].mse_standardized,
            name,
        ),
    )
    return listed + rest


def methods_table(name: str, evaluation: Evaluation) -> Table:
    """Every method with every figure that any of them has."""
    methods = [(method, evaluation.methods[method]) for method in ranked(evaluation)]
    keys = [key for key in COLUMNS if any(getattr(figures, key) is not None for _, figures in methods)]
    rows = [[word(method), *(_figure(figures, key) for key in keys)] for method, figures in methods]
    return Table(
        f"Methods of {name}, smallest standardised error first",
        ["method", *(COLUMNS[key] for key in keys)],
        rows,
        marked=0,
    )


def kinds_table(name: str, evaluation: Evaluation) -> Table | None:
    """The figures of image tokens and caption tokens apart; None where only one kind was measured."""
    keys = [*SUMMARY_COLUMNS]
    rows = [
        [word(method), word(kind), *(_figure(figures, key) for key in keys)]
        for method in ranked(evaluation)
        for kind, figures in evaluation.methods[method].by_kind.items()
    ]
    if len({row[1].text for row in rows}) < 2:
        return None
    return Table(f"By kind of VL token, {name}", ["method", "kind", *(COLUMNS[key] for key in keys)], rows)


def named_dimensions_table(name: str, evaluation: Evaluation) -> Table | None:
    """The dimensions that are outliers in the published models, under every method that tells of them."""
    rows = [
        [word(method), number(_index(dimension)), *_of_dimension(figures)]
        for method in ranked(evaluation)
        for dimension, figures in evaluation.methods[method].dimensions.items()
    ]
    return _dimensions("Published outlier dimensions", name, rows)


def worst_dimensions_table(name: str, evaluation: Evaluation, method: str) -> Table | None:
    """The dimensions that one method does worst on."""
    rows = [
        [word(method), number(figures.dimension), *_of_dimension(figures)]
        for figures in evaluation.methods[method].worst_dimensions
    ]
    return _dimensions("Worst dimensions", name, rows)


def _dimensions(title: str, name: str, rows: Sequence[Sequence[Cell]]) -> Table | None:
    columns = ["method", "dimension", "std ratio", "correlation", "R²"]
    return Table(f"{title}, {name}", columns, rows) if rows else None


def _of_dimension(figures: Dimension) -> list[Cell]:
    return [number(figures.std_ratio), number(figures.correlation), number(figures.r2)]


def _index(text: str) -> Number:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _figure(figures: Figures, key: str) -> Cell:
    value = getattr(figures, key)
    return span(value) if key == "std_ratio_range" else number(value, figures.intervals.get(key))


def swap_table(name: str, swaps: Mapping[str, CaptionSwap]) -> Table:
    """How often each projector finds the picture's own caption, and the one that was put beside it."""
    columns = [
        "projector",
        "own caption, input untouched",
        "own caption, another in the input",
        "that other caption",
        "share of the own caption in the output",
        "share of the other caption",
        "chance",
        "pairs",
    ]
    rows = [
        [
            word(projector),
            *(number(getattr(swap, key), swap.intervals.get(key)) for key in SWAPPED),
            number(swap.chance),
            number(swap.pairs),
        ]
        for projector, swap in swaps.items()
    ]
    return Table(f"Caption swap of {name}: recall@1 and shares", columns, rows)


def scores_table(name: str, comparison: Comparison) -> Table | None:
    """Automatic scores of the pictures by method, mode and value."""
    rows_of = [
        (method, mode, value, scores)
        for method, by_mode in comparison.methods.items()
        for mode, by_value in by_mode.items()
        for value, scores in by_value.items()
    ]
    found = dict.fromkeys(score for *_, scores in rows_of for score in scores)
    names = [
        *(score for score in JUDGED if score in found),
        *(score for score in found if score not in JUDGED),
    ]
    rows = [
        [word(method), word(mode), word(value), *(_score(scores.get(key)) for key in names)]
        for method, mode, value, scores in rows_of
    ]
    columns = ["method", "mode", "value", *(key.replace("_", " ") for key in names)]
    return Table(f"Scores of the pictures in {name}", columns, rows) if names else None


def leads_table(name: str, comparison: Comparison) -> Table | None:
    """How far the projector is above the best of the others, on the same references."""
    rows = [
        [word(mode), word(value), word(lead.baseline), *(_score(getattr(lead, key)) for key in JUDGED)]
        for mode, by_value in comparison.differences.items()
        for value, lead in by_value.items()
    ]
    columns = ["mode", "value", "best of the others", *JUDGED]
    title = f"Projector above the best of the others in {name}: paired differences, 95% for all rows together"
    return Table(title, columns, rows) if rows else None


def _score(score: Score | None) -> Cell:
    return number(score.mean, (score.low, score.high)) if score else Cell("–")


def trainings_table(trainings: Mapping[str, Training]) -> Table | None:
    """What each training reached, by what it learns, smallest validation loss first."""
    rows = [
        [
            word(name),
            word(summary.arch),
            word(summary.objective),
            number(summary.parameters),
            number(summary.train_pairs),
            number(summary.best_val_loss),
            number(summary.ridge_val_loss),
            number(summary.best_epoch),
            number(summary.seconds),
            word(summary.device),
        ]
        for name, summary in sorted(
            ((name, training.summary) for name, training in trainings.items() if training.summary.arch),
            key=lambda item: (
                item[1].objective,
                item[1].best_val_loss is None,
                item[1].best_val_loss,
                item[0],
            ),
        )
    ]
    columns = [
        "training",
        "network",
        "learns",
        "parameters",
        "pairs",
        "validation loss",
        "ridge's validation loss",
        "best epoch",
        "seconds",
        "device",
    ]
    title = "Trainings (losses on val pairs, which chose penalty and epoch; those of one kind of learning compare)"
    return Table(title, columns, rows) if rows else None


def restoration_table(trainings: Mapping[str, Training]) -> Table | None:
    """The trade of error against spread: what each strength of restoration costs and brings."""
    rows = [
        [
            word(name),
            number(row.strength),
            number(row.val_loss),
            span(row.std_ratio_range),
            number(row.dims_outside),
        ]
        for name, training in trainings.items()
        for row in training.summary.restoration
    ]
    columns = [
        "training",
        "train.restore",
        "validation loss",
        "std ratio, min to max",
        "dims outside 0.5x to 2x",
    ]
    return Table("Error against spread, on val pairs", columns, rows) if rows else None


def failures_table(causes: Iterable[tuple[str, str, int]]) -> Table | None:
    """Tries that failed, by stage and class of error, most first."""
    rows = [
        [word(stage), word(error), number(tries)]
        for stage, error, tries in sorted(causes, key=lambda cause: -cause[2])
    ]
    return Table("Failures by class", ["stage", "error", "tries"], rows) if rows else None
