"""What the scores of all pictures come to: by method, mode and value, and the projector against the best baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from projector.comparison.cases import PROJECTED, TEXT, Case, Column
from projector.comparison.scores import interval
from projector.evaluation.intervals import level_of_all

JUDGED = ("adherence", "fidelity")
ROUNDING = 1e-9

Table = Mapping[Column, Mapping[str, Mapping[str, float]]]
"""By column and score the mean over a reference's cases, by reference."""


def table_of(
    cases: Sequence[Case],
    columns: Sequence[Sequence[Column]],
    scores: Sequence[Sequence[Mapping[str, float]]],
) -> Table:
    """Sort scores by column, name and reference.

    Args:
        cases: of the comparison.
        columns: of each case.
        scores: of each case's columns.
    """
    found: dict[Column, dict[str, dict[str, list[float]]]] = {}
    for case, of_case, by_column in zip(cases, columns, scores, strict=True):
        for column, entry in zip(of_case, by_column, strict=True):
            for name, value in entry.items():
                by_group = found.setdefault(column, {}).setdefault(name, {})
                by_group.setdefault(case.group, []).append(value)
    return {
        column: {
            name: {group: float(np.mean(values)) for group, values in by_group.items()}
            for name, by_group in by_name.items()
        }
        for column, by_name in found.items()
    }


def by_method(table: Table) -> dict[str, Any]:
    """Mean and interval over references, by method, mode, value and score."""
    found: dict[str, Any] = {}
    for column, by_name in table.items():
        by_mode = found.setdefault(column.method, {}).setdefault(column.mode, {})
        by_mode[column.value_text] = {
            name: interval(list(by_group.values())) for name, by_group in by_name.items()
        }
    return found


def differences(table: Table) -> dict[str, Any]:
    """By mode and value, how far the projector is above the best of what it is held against, on the same references.

    The best one is that with the largest mean of adherence and fidelity; where there is a prompt, the text alone is
    among them. The intervals hold for all modes and values together, 95% by Bonferroni's correction.

    Returns:
        by mode and value `baseline`, its name, and of each score the difference's mean, its interval and `better`,
        whether that lies above 0; differences without spread, such as a single one, are not called better.
    """
    best = {
        column: rival
        for column in table
        if column.method == PROJECTED and (rival := _best_rival(table, column)) is not None
    }
    level = level_of_all(len(best))
    found: dict[str, Any] = {}
    for column, rival in best.items():
        entry: dict[str, Any] = {"baseline": rival.method}
        for name in JUDGED:
            theirs = table[rival].get(name, {})
            ours = table[column].get(name, {})
            if apart := [value - theirs[group] for group, value in ours.items() if group in theirs]:
                ends = interval(apart, level)
                spread = ends["high"] - ends["low"]
                entry[name] = {**ends, "better": ends["low"] > 0 and spread > ROUNDING}
        found.setdefault(column.mode, {})[column.value_text] = entry
    return found


def _best_rival(table: Table, ours: Column) -> Column | None:
    """What the projector is held against in a mode at a value; None where there is nothing."""
    standings = {other: _standing(by_name) for other, by_name in table.items() if _is_rival(other, ours)}
    known = {other: standing for other, standing in standings.items() if standing is not None}
    return max(known, key=lambda other: known[other]) if known else None


def _is_rival(other: Column, ours: Column) -> bool:
    """Whether another method's pictures answer the same question: text needs a prompt, and knows no mode."""
    if other.method == TEXT:
        return ours.mode != "alone"
    return other.method != PROJECTED and (other.mode, other.value) == (ours.mode, ours.value)


def _standing(by_name: Mapping[str, Mapping[str, float]]) -> float | None:
    means = [float(np.mean(list(by_name[name].values()))) for name in JUDGED if name in by_name]
    return float(np.mean(means)) if means else None
