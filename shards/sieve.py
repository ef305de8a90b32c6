"""Which of what a source holds becomes samples, and why the rest is left out. Memory: two hashes a sample."""

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shards.errors import UsageError
from shards.items import Item
from shards.plan import is_held_out, normalise_caption
from shards.source import Found, named, told

NO_PICTURE = "no picture, or an unsafe name"
LONGEST_CAPTION = 10_000  # characters; the text encoder takes some 2,000 of them at 512 tokens


@dataclass(frozen=True)
class Rules:
    """What is taken; fields as in `import`. They decide the catalogue and are part of the fingerprint."""

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


class Filters:
    """The rules' filters, with the columns that they look at.

    Args:
        rules: what the user asks for.
        columns: what the source has.

    Raises:
        UsageError: a filter without its column.
    """

    def __init__(self, rules: Rules, columns: Sequence[str]) -> None:
        self._filters: list[tuple[str, Callable[[Mapping[str, Any]], bool | None]]] = []
        self._present = columns
        self._looked_at: set[str] = set()
        if rules.min_side is not None:
            least = rules.min_side
            width, height = self._sides("import.min_side", least)
            self._add("side", lambda facts: _at_least(_smaller(facts, width, height), least))
        if rules.max_aspect is not None:
            most = rules.max_aspect
            width, height = self._sides("import.max_aspect", most)
            self._add("aspect", lambda facts: _at_most(_aspect(facts, width, height), most))
        for name, least_value, column in (
            ("aesthetic", rules.min_aesthetic, rules.aesthetic_column),
            ("similarity", rules.min_similarity, rules.similarity_column),
        ):
            self._floor(name, least_value, column)
        if rules.language:
            spoken = {language.casefold() for language in rules.language}
            where = self._column(
                "language", list(rules.language), rules.language_column, ("language", "lang")
            )
            self._add("language", lambda facts: _is_one_of(facts.get(where), spoken))
        elif rules.language_column is not None:
            raise _without("language")

    @property
    def columns(self) -> set[str]:
        """What they look at."""
        return self._looked_at

    def objection(self, facts: Mapping[str, Any]) -> str:
        """Why something is left out; empty where it is taken."""
        for name, passes in self._filters:
            verdict = passes(facts)
            if verdict is None:
                return f"{name} not told"
            if not verdict:
                return name
        return ""

    def _add(self, name: str, passes: Callable[[Mapping[str, Any]], bool | None]) -> None:
        self._filters.append((name, passes))

    def _floor(self, name: str, least: float | None, column: str | None) -> None:
        if least is None:
            if column is not None:
                raise _without(name)
            return
        usual = (name, f"{name}_score", f"clip_{name}")
        where = self._column(name, least, column, usual, option=f"import.min_{name}")
        self._add(name, lambda facts: _at_least(_number(facts.get(where)), least))

    def _sides(self, option: str, value: float) -> tuple[str, str]:
        width, height = (self._usual(option, value, (name,)) for name in ("width", "height"))
        return width, height

    def _column(
        self, name: str, value: Any, wanted: str | None, usual: Sequence[str], option: str = ""
    ) -> str:
        if wanted is not None:
            self._looked_at.add(named(wanted, (), self._present, f"import.{name}_column") or "")
            return wanted
        return self._usual(option or f"import.{name}", value, usual, f"; name it with import.{name}_column")

    def _usual(self, option: str, value: Any, usual: Sequence[str], hint: str = "; leave it out") -> str:
        column = named(None, usual, self._present, option)
        if column is None:
            raise UsageError(
                f"{option} = {value!r}: the source has no column named {' or '.join(usual)}{hint}; "
                f"it has {told(self._present)}"
            )
        self._looked_at.add(column)
        return column


def _without(name: str) -> UsageError:
    filter_name = name if name == "language" else f"min_{name}"
    return UsageError(f"import.{name}_column is given and import.{filter_name} is not; give both or neither")


def _number(value: Any) -> float | None:
    """A finite number that stands as a number or as text; None for anything else."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _smaller(facts: Mapping[str, Any], width: str, height: str) -> float | None:
    sides = [_number(facts.get(name)) for name in (width, height)]
    return None if None in sides else min(side for side in sides if side is not None)


def _aspect(facts: Mapping[str, Any], width: str, height: str) -> float | None:
    wide, high = (_number(facts.get(name)) for name in (width, height))
    return max(wide / high, high / wide) if wide and high and wide > 0 < high else None


def _at_least(value: float | None, least: float) -> bool | None:
    return None if value is None else value >= least


def _at_most(value: float | None, most: float) -> bool | None:
    return None if value is None else value <= most


def _is_one_of(value: Any, allowed: set[str]) -> bool | None:
    return value.casefold() in allowed if isinstance(value, str) else None


def caption_problem(caption: Any) -> str:
    """Why something cannot be a caption; empty where it can."""
    if not isinstance(caption, str):
        return "caption missing"
    if not caption.strip():
        return "caption blank"
    if len(caption) > LONGEST_CAPTION:
        return "caption too long"
    if any(unicodedata.category(sign) == "Cc" and sign not in "\t\n\r" for sign in caption):
        return "caption with control characters"
    if any(unicodedata.category(sign) == "Cs" for sign in caption):
        return "caption with lone surrogates"
    return ""


def taken(found: Iterable[Found], rules: Rules, filters: Filters, left_out: Counter[str]) -> Iterator[Item]:
    """Choose what becomes a sample.

    What is chosen follows from what came before it alone, so a longer source changes none of the first.

    Args:
        found: everything, in the source's order.
        rules: what is taken.
        filters: of the rules.
        left_out: counts, by reason, what is not taken.

    Yields:
        items: no picture with a caption twice, no picture in both splits, no normalised caption in both.
    """
    done: set[int] = set()  # pictures, or pictures with their captions, as short hashes
    split_of: dict[int, bool] = {}  # whether a normalised caption is held out
    for each in found:
        reason = caption_problem(each.caption) or ("" if each.place else NO_PICTURE)
        reason = reason or filters.objection(each.facts)
        if reason:
            left_out[reason] += 1
            continue
        caption = normalise_caption(each.caption)
        once = _short(each.picture if rules.captions == "first" else f"{each.picture}\0{caption}")
        if once in done:
            left_out["further caption" if rules.captions == "first" else "duplicate"] += 1
            continue
        held_out = is_held_out(each.picture, rules.val_fraction)
        if split_of.setdefault(_short(caption), held_out) != held_out:
            left_out["caption in the other split"] += 1
            continue
        done.add(once)
        assert each.place is not None, "one without a place was left out"
        yield Item(each.picture, each.caption, each.place)


def _short(text: str) -> int:
    """63 bits of SHA-256: two of a million alike by chance once in ten million sources."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
