"""A matplotlib figure as inline SVG: text stays text, and colours follow the page's light or dark theme.

Every label may come from outside: markup and TeX in it are drawn as they are.
"""

import hashlib
import html
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK = "#0b0c0d"  # stands for the page's text colour; replaced by `currentColor` in the SVG
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same drawing has the same bytes
    "font.family": "sans-serif",
    "text.parse_math": False,
    "path.simplify": False,  # drops what has no length
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.labelsize": 11,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.frameon": False,
    "legend.fontsize": 11,
}
SIZE = (4.8, 2.9)  # inches; in a column of the page, and on a phone, text then has about its size
LONGEST_LABEL = 32  # characters


def draw(paint: Callable[[Axes], None], title: str, size: tuple[float, float] = SIZE) -> Markup:
    """A painted figure as an element that inherits the page's colour and font."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph", UserWarning
        )  # only measured: the browser has its own fonts
        figure = Figure(figsize=size)
        paint(figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = _own_ids(re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL), title)
    # A hundredth of a point is less than any screen shows; what stands between the tags are the ticks' own numbers.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1))  # noqa: S704


def _own_ids(svg: str, title: str) -> str:
    """Ids that no other drawing of the page has; those that nothing refers to go."""
    mark = "c" + hashlib.sha256((title + svg).encode("utf-8", "replace")).hexdigest()[:10]
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([\w-]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{mark}{found[1]}"' if found[1] in used else "", svg)
    return svg.replace('xlink:href="#', f'href="#{mark}').replace("url(#", f"url(#{mark}")


def plain(labels: Sequence[str]) -> list[str]:
    """Labels as one printable line each, none too long."""
    shown = [
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in label) for label in labels
    ]
    return [label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…" for label in shown]


def legend(axes: Axes, handles: Sequence[Artist], names: Sequence[str] | Mapping[str, object]) -> None:
    """Names below the axes, where they cover nothing; a name may begin with an underscore, which hides others."""
    labels = ["\N{ZERO WIDTH SPACE}" * label.startswith("_") + label for label in plain(list(names))]
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(-0.02, -0.2), ncols=2)


def logarithmic(axes: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers."""
    (axes.set_yscale if which == "y" else axes.set_xscale)("log")
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())
