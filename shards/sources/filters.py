"""Conditions on what a source says of a picture: its size, its language, its scores."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shards.errors import OptionError
from shards.sources.source import column_list, named


@dataclass(frozen=True)
class Rules:
    """What is taken of a source; fields as in `import`. They decide the catalogue and are part of the fingerprint."""

    captions: Literal["first", "all"] = "first"
    caption_column: str | None = None
    image_column: str | None = None
    min_side: int | None = None
    max_aspect: float | None = None
    language: tuple[str, ...] = ()
    language_column: str | None = None
    min_aesthetic: float | None = None
    aesthetic_column: str | None = None
    min_similarity: float | None = None
    similarity_column: str | None = None
    val_fraction: float = 0.05
    test_fraction: float = 0.05


@dataclass(frozen=True)
class Filter:
    """One condition.

    Attributes:
        name: what is looked at.
        columns: where it stands.
        read: a column's value as the condition takes it; None where it says nothing.
        passes: the condition, on the columns' values in order.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Any], Any]
    passes: Callable[..., bool]

    def objection(self, facts: Mapping[str, Any]) -> str:
        """Why a picture is left out; empty where it passes."""
        values = [self.read(facts.get(column)) for column in self.columns]
        if None in values:
            return f"{self.name} not told"
        return "" if self.passes(*values) else self.name


def filters_of(rules: Rules, columns: Sequence[str]) -> tuple[Filter, ...]:
    """The filters that the rules ask for.

    Args:
        rules: what the user asks for.
        columns: what the source says of a picture.

    Raises:
        UsageError: a filter without its column, or a column without its filter.
    """
    found: list[Filter] = []
    if rules.min_side is not None:
        sides = _sides("min_side", rules.min_side, columns)
        found.append(Filter("side", sides, _number, lambda *both: min(both) >= rules.min_side))
    if rules.max_aspect is not None:
        sides = _sides("max_aspect", rules.max_aspect, columns)
        found.append(
            Filter("aspect", sides, _number, lambda *both: max(both) <= rules.max_aspect * min(both))
        )
    for name, least, wanted in (
        ("aesthetic", rules.min_aesthetic, rules.aesthetic_column),
        ("similarity", rules.min_similarity, rules.similarity_column),
    ):
        option = f"min_{name}"
        if _is_asked(option, least, name, wanted):
            where = _column(option, least, (name, f"{name}_score"), columns, name, wanted)
            found.append(Filter(name, (where,), _number, lambda value, least=least: value >= least))
    if _is_asked("language", rules.language or None, "language", rules.language_column):
        spoken = {language.casefold() for language in rules.language}
        where = _column(
            "language",
            list(rules.language),
            ("language", "lang"),
            columns,
            "language",
            rules.language_column,
        )
        found.append(Filter("language", (where,), _word, spoken.__contains__))
    return tuple(found)


def _is_asked(option: str, value: object, name: str, wanted: str | None) -> bool:
    if value is None and wanted is not None:
        raise OptionError(
            f"{name}_column = {wanted!r}: without {option} nothing is filtered by it; give both or neither"
        )
    return value is not None


def _sides(option: str, value: object, columns: Sequence[str]) -> tuple[str, str]:
    return _column(option, value, ("width",), columns), _column(option, value, ("height",), columns)


def _column(
    option: str,
    value: object,
    usual: Sequence[str],
    columns: Sequence[str],
    name: str = "",
    wanted: str | None = None,
) -> str:
    column = named(wanted, usual, columns, f"{name}_column")
    if column is None:
        hint = f"name it with {name}_column" if name else f"leave {option} out"
        raise OptionError(
            f"{option} = {value!r}: the source has no column {' or '.join(usual)}; "
            f"it has {column_list(columns)}; {hint}"
        )
    return column


def _number(value: Any) -> float | None:
    """A finite number that stands as a number or as text."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _word(value: Any) -> str | None:
    return value.casefold() if isinstance(value, str) else None
