"""Drawings and tables of the report."""

import re

from projector.network.model_card import FIGURES
from ray_jobs.report import coverage as coverage_module
from ray_jobs.report.bars import difference_bar
from ray_jobs.report.charts import (
    frontier_chart,
    heat_map,
    histogram,
    interval_chart,
    line_chart,
    ratio_chart,
)
from ray_jobs.report.coverage import OTHERS, coverage
from ray_jobs.report.tables import COLUMNS
from report_example import (
    HOSTILE,
)


def test_no_column_repeats_the_cosine_under_another_name():
    """RMSNorm without weights scales rows, so the cosine after it is the cosine."""
    assert [name for name in (*FIGURES, *COLUMNS) if "cosine" in name] == ["cosine_similarity"] * 2


def test_the_ticks_of_a_narrow_range_are_all_different():
    svg = str(line_chart({"a": [(1, 0.2023), (9, 0.2131)]}, x_label="x", y_label="y", title="t"))
    ticks = [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg) if text.startswith("0.2")]
    assert len(ticks) > 3
    assert len(set(ticks)) == len(ticks)
    assert not re.search(r"<[^>]*\d\.\d{3}[^>]*>", svg)  # what only places things stays short


def test_charts_draw_hostile_labels_as_they_stand():
    labels = [HOSTILE, "_hidden", "$\\frac{$", "\ud800\x1b[2J", "🦊 עברית", "x" * 100]
    drawings = [
        line_chart(
            {label: [(1, 2), (2, 0)] for label in labels}, x_label="x", y_label="y", title=t, log_y=True
        )
        for t in (HOSTILE, '" onload="alert(1)')
    ]
    counts = {(labels[0], labels[1]): 2}
    drawings += [
        heat_map(counts, rows=labels, columns=labels, top=2, title=HOSTILE),
        ratio_chart([None, 1.0, -1.0, 0.0], [None] * 4, named=(1, 396), title=HOSTILE),
        histogram([None], [], x_label="x", title=HOSTILE),
        interval_chart([(1, 2, 2, 2)], x_label="x", y_label="y", title=HOSTILE),
        frontier_chart(
            {(label, label): [(0.1, 0.2)] for label in labels},
            strong="",
            x_label="x",
            y_label="y",
            title=HOSTILE,
        ),
    ]
    for svg in drawings:
        assert svg.startswith('<svg role="img" aria-label="')
        assert "<script" not in svg
        assert 'onload="' not in svg
    assert "$\\frac{$" in drawings[0]
    assert "_hidden" in drawings[0]
    assert "\x1b" not in drawings[0]


def test_bars_end_at_the_edge_and_take_no_text():
    drawn = [
        difference_bar(value, value - 0.1, value + 0.1, 0.5, good=value < 0) for value in (-0.3, 0.0, 9.0)
    ]
    assert [float(re.search(r'cx="([\d.]+)"', bar)[1]) for bar in drawn] == [27.0, 60.0, 115.0]
    assert ['class="bar good"' in bar for bar in drawn] == [True, False, False]


def test_many_categories_are_drawn_as_others(monkeypatch):
    monkeypatch.setattr(coverage_module, "MAPS", 2)
    monkeypatch.setattr(coverage_module, "LINES", 3)
    maps, told = coverage({(f"content {i}", f"style {i}", f"subject {i}"): i + 1 for i in range(50)})
    assert [name for name, _ in maps] == ["content 49", OTHERS]
    assert told == "3 of 18 cells of content, style and subject have samples."
    assert "content 49: 50 samples by subject and style, 8 of 9 cells empty, at most 50 in one" in maps[0][1]
    assert coverage({("", "", ""): 3}) == ([], "")
