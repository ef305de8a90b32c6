"""Drawings of the report as inline SVG: text stays text, and colours follow the page's light or dark theme."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("svg")  # the backend that needs no display; before pyplot is imported
import matplotlib.pyplot as plt

INK = "#0b0c0d"  # stands for the page's text colour; replaced by `currentColor` in the SVG
SERIES = (
    "#2f7ed8",
    "#d9822b",
    "#3a9d5d",
    "#a05cc9",
    "#c94f5c",
    "#7a8290",
)  # readable on white and on near-black


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    title: str,
    log_y: bool = False,
) -> str:
    """Curves over a shared axis.

    Args:
        series: points (x, y) by name.
        x_label, y_label: axis titles with unit.
        title: text alternative of the drawing.
        log_y: logarithmic y axis; points at or below zero are left out.

    Returns:
        an `<svg>` element with `role="img"` and the title as its label.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    for colour, (name, points) in zip(_colours(len(series)), series.items(), strict=True):
        kept = [(x, y) for x, y in points if y > 0 or not log_y]
        axes.plot([x for x, _ in kept], [y for _, y in kept], color=colour, label=name, linewidth=1.8)
    if log_y:
        axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return _as_svg(figure, title)


def bar_chart(values: Mapping[str, float], *, x_label: str, title: str, log_x: bool = False) -> str:
    """Horizontal bars, one per name, with the value written at the end."""
    figure, axes = plt.subplots(figsize=(6.4, 0.6 + 0.36 * len(values)))
    names = list(values)[::-1]
    bars = axes.barh(names, [values[name] for name in names], color=SERIES[0], height=0.62)
    axes.bar_label(bars, fmt="%.3g", padding=4, color=INK, fontsize=9)
    if log_x:
        axes.set_xscale("log")
    axes.margins(x=0.14)
    axes.set_xlabel(x_label)
    return _as_svg(figure, title)


def heat_map(
    counts: Mapping[tuple[str, str], int], *, rows: Sequence[str], columns: Sequence[str], title: str
) -> str:
    """A table of counts with shading; cells without a count are hatched."""
    figure, axes = plt.subplots(figsize=(1.9 + 0.95 * len(columns), 0.9 + 0.4 * len(rows)))
    grid = [[counts.get((row, column), 0) for column in columns] for row in rows]
    top = max(max(row) for row in grid) or 1
    for y, row in enumerate(grid):
        for x, count in enumerate(row):
            alpha = 0.12 + 0.68 * count / top
            axes.add_patch(
                mpl.patches.Rectangle((x, y), 0.96, 0.94, color=SERIES[0], alpha=alpha if count else 0.0)
            )
            axes.text(x + 0.48, y + 0.47, str(count), ha="center", va="center", fontsize=9)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.set_xticks([x + 0.48 for x in range(len(columns))], columns, rotation=20, ha="right")
    axes.set_yticks([y + 0.47 for y in range(len(rows))], rows)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return _as_svg(figure, title)


def _colours(count: int) -> list[str]:
    return [SERIES[index % len(SERIES)] for index in range(count)]


def _as_svg(figure: Any, title: str) -> str:
    """Close a figure and turn it into an element that inherits the page's colour and font."""
    for axes in figure.axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(INK)
        axes.tick_params(colors=INK, labelsize=9)
        for text in (*axes.texts, axes.xaxis.label, axes.yaxis.label):
            text.set_color(INK)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
