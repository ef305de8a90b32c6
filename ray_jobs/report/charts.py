"""The report's charts, each an `<svg>` element with a title for those who do not see it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, product
from typing import Any

from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ray_jobs.report.drawing import INK, draw, legend, logarithmic, plain

SERIES = (
    "#2f7ed8",
    "#c8741f",
    "#35945a",
    "#a05cc9",
    "#c94f5c",
    "#7a8290",
)  # contrast of at least 3 on white and on near-black
BEFORE, AFTER = SERIES[1], SERIES[0]
OUTLIER, COLLAPSED = 2.0, 0.5  # the std ratios beyond which eval.json counts a dimension
BINS = 40
CROWDED = 500  # dimensions, above which their dots are drawn small

Points = Sequence[tuple[float, float]]
Values = Sequence[float | None]


def line_chart(
    series: Mapping[str, Points], *, x_label: str, y_label: str, title: str, log_y: bool = False
) -> Markup:
    """Curves over a shared axis.

    Args:
        series: points (x, y) by name.
        x_label, y_label: axis titles with unit.
        title: text alternative of the drawing.
        log_y: logarithmic y axis; points at or below zero are left out.

    Returns:
        an `<svg>` element with `role="img"` and the title as its label.
    """

    def paint(axes: Axes) -> None:
        lines = []
        for (dash, colour), points in zip(_looks(), series.values(), strict=False):
            kept = [(x, y) for x, y in points if y > 0 or not log_y]
            x, y = [x for x, _ in kept], [y for _, y in kept]
            lines += axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.8)
        if log_y:
            logarithmic(axes, "y")
        axes.set(xlabel=x_label, ylabel=y_label)
        if len(series) > 1:
            legend(axes, lines, series)

    return draw(paint, title)


def interval_chart(
    points: Sequence[tuple[float, float, float, float]], *, x_label: str, y_label: str, title: str
) -> Markup:
    """A curve with a vertical interval at each point, over a logarithmic x axis.

    Args:
        points: x, y, and the low and high end of y.
        x_label, y_label: axis titles with unit.
        title: text alternative of the drawing.

    Returns:
        an `<svg>` element, see `line_chart`.
    """

    def paint(axes: Axes) -> None:
        x, y, low, high = zip(*points, strict=True)
        axes.plot(x, y, color=SERIES[0], marker="o", markersize=5, linewidth=1.8)
        axes.vlines(x, low, high, color=SERIES[0], linewidth=1.4)
        logarithmic(axes, "x")
        axes.set(xlabel=x_label, ylabel=y_label)

    return draw(paint, title)


def frontier_chart(
    series: Mapping[tuple[str, str], Points], *, strong: str, x_label: str, y_label: str, title: str
) -> Markup:
    """Two scores against each other: a colour for each method, a mark for each mode, values of one dial joined.

    Args:
        series: points (x, y) by method and mode; a series of one point is a mark.
        strong: the method that is drawn over the others.
        x_label, y_label: axis titles.
        title: text alternative of the drawing.

    Returns:
        an `<svg>` element, see `line_chart`.
    """
    methods = list(dict.fromkeys(method for method, _ in series))
    modes = list(dict.fromkeys(mode for _, mode in series if mode))
    colours = dict(zip(methods, cycle(SERIES), strict=False))
    marks = dict(zip(modes, cycle("osD^v"), strict=False)) | {"": "*"}

    def paint(axes: Axes) -> None:
        for (method, mode), points in series.items():
            ours = method == strong
            look: Any = {
                "color": colours[method],
                "marker": marks[mode],
                "markersize": 9 if ours or not mode else 5,
            }
            look |= {
                "linewidth": 2.0 if ours else 0.8,
                "alpha": 1.0 if ours or not mode else 0.55,
                "zorder": 2 + ours,
            }
            axes.plot([x for x, _ in points], [y for _, y in points], **look)
        axes.set(xlabel=x_label, ylabel=y_label)
        lines = [Line2D([], [], color=colours[method], linewidth=3) for method in methods]
        lines += [Line2D([], [], color=INK, marker=marks[mode], linewidth=0) for mode in modes]
        legend(axes, lines, [*methods, *modes])

    return draw(paint, title)


def ratio_chart(before: Values, after: Values, *, named: Sequence[int], title: str) -> Markup:
    """Std ratio of every dimension before and after, on a logarithmic axis.

    Args:
        before, after: std of the outputs over std of the targets, by dimension; None where the target never moves.
        named: dimensions that get a label.
        title: text alternative of the drawing.

    Returns:
        an `<svg>` element, see `line_chart`.
    """

    def paint(axes: Axes) -> None:
        dots = []
        size = 1.8 if max(len(before), len(after)) > CROWDED else 3.0
        for values, colour in ((before, BEFORE), (after, AFTER)):
            kept = [(i, value) for i, value in enumerate(values) if value is not None and value > 0]
            # One path of lines without length, whose round ends are the dots: markers would take an element each.
            x = [part for i, _ in kept for part in (i, i, float("nan"))]
            y = [part for _, value in kept for part in (value, value, float("nan"))]
            dots += axes.plot(x, y, color=colour, linewidth=size, solid_capstyle="round", alpha=0.85)
            for dimension in named:
                value = values[dimension] if dimension < len(values) else None
                if value:
                    axes.plot([dimension], [value], "o", color=colour, markersize=6, markeredgecolor=INK)
                    _note(axes, f"{dimension}: {value:.3g}", dimension, value, len(values))
        for level in (COLLAPSED, 1.0, OUTLIER):
            axes.axhline(level, color=INK, linewidth=0.8, linestyle="-" if level == 1 else ":", alpha=0.6)
        logarithmic(axes, "y")
        axes.set(xlabel="dimension", ylabel="std, output over target")
        legend(axes, dots, ("before (identity)", "after (projector)"))

    return draw(paint, title)


def histogram(before: Values, after: Values, *, x_label: str, title: str) -> Markup:
    """How two sets of values are distributed, over the same bins.

    Args:
        before, after: values, None where there is none.
        x_label: axis title.
        title: text alternative of the drawing.

    Returns:
        an `<svg>` element, see `line_chart`.
    """

    def paint(axes: Axes) -> None:
        kept = [[value for value in values if value is not None] for values in (before, after)]
        together = kept[0] + kept[1]
        span = (min(together), max(together)) if together else (0.0, 1.0)
        bars: list[Artist] = []
        for values, colour in zip(kept, (BEFORE, AFTER), strict=True):
            _, _, patches = axes.hist(
                values, BINS, range=span, histtype="stepfilled", color=colour, alpha=0.65, edgecolor=colour
            )
            bars.append(patches[0])  # type: ignore[index,arg-type]
        axes.set(xlabel=x_label, ylabel="dimensions")
        legend(axes, bars, ("before (identity)", "after (projector)"))

    return draw(paint, title)


def bar_chart(counts: Mapping[str, int], *, x_label: str, y_label: str, title: str) -> Markup:
    """A bar for each count.

    Args:
        counts: by what stands below the bar.
        x_label, y_label: axis titles.
        title: text alternative of the drawing.

    Returns:
        an `<svg>` element, see `line_chart`.
    """

    def paint(axes: Axes) -> None:
        axes.bar(plain(list(counts)), list(counts.values()), color=SERIES[0], alpha=0.65)
        axes.set(xlabel=x_label, ylabel=y_label)

    return draw(paint, title)


def heat_map(
    counts: Mapping[tuple[str, str], int],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    top: int,
    title: str,
) -> Markup:
    """A table of counts with shading; cells without a count are hatched.

    Args:
        counts: by row and column.
        rows, columns: in the order in which they are drawn.
        top: the count that gets the darkest shade, the same for charts that stand beside each other.
        title: text alternative of the drawing.

    Returns:
        an `<svg>` element, see `line_chart`.
    """

    def paint(axes: Axes) -> None:
        for (y, row), (x, column) in product(enumerate(rows), enumerate(columns)):
            count = counts.get((row, column), 0)
            look: dict[str, Any] = {
                "color": SERIES[0],
                "alpha": 0.12 + 0.53 * count / max(top, 1),
                "linewidth": 0,
            }
            if not count:
                look = {"facecolor": "none", "edgecolor": SERIES[-1], "hatch": "////", "linewidth": 0}
            axes.add_patch(Rectangle((x, y), 0.96, 0.94, **look))
            axes.text(x + 0.48, y + 0.47, str(count) if count else "", ha="center", va="center", fontsize=11)
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        axes.set_xticks([x + 0.48 for x in range(len(columns))], plain(columns), rotation=20, ha="right")
        axes.set_yticks([y + 0.47 for y in range(len(rows))], plain(rows))
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)

    return draw(paint, title, size=(1.4 + 0.62 * len(columns), 0.7 + 0.32 * len(rows)))


def _looks() -> Iterator[tuple[str, str]]:
    """Dashes and colours, without end."""
    return cycle(product(("-", "--", ":", "-."), SERIES))


def _note(axes: Axes, text: str, x: float, y: float, width: int) -> None:
    """A label beside a point, on the side that has room."""
    right = x > width / 2
    axes.annotate(
        text,
        (x, y),
        xytext=(-7 if right else 7, 5),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=11,
        fontweight="bold",
    )
