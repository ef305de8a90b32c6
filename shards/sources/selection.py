"""Which of what a source holds becomes samples, and why the rest is left out; takes 190 bytes of memory a sample."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shards.format.splits import normalise_caption, split_of
from shards.sources.filters import Filter, Rules
from shards.sources.item import Item
from shards.sources.source import Found

NO_PICTURE = "no picture"
FURTHER = "further caption"
MOST_EXAMPLES = 3  # names of what is left out, for each reason
LONGEST_NAME = 80  # characters of one
LONGEST_CAPTION = 10_000  # characters; the text encoder takes some 2,000 of them at 512 tokens
NO_UTF_8 = re.compile("[\udc80-\udcff]")  # bytes that did not decode, as surrogateescape has them
TYPES = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}


def caption_problem(caption: Any) -> str:
    """Why something cannot be a caption; empty where it can."""
    if caption is None:
        return "caption missing"
    if not isinstance(caption, str):
        return f"caption that is {TYPES.get(type(caption), type(caption).__name__)}, not text"
    if not caption.strip():
        return "caption blank"
    if len(caption) > LONGEST_CAPTION:
        return "caption too long"
    if NO_UTF_8.search(caption):
        return "caption not UTF-8"
    if any(unicodedata.category(sign) == "Cc" and sign not in "\t\n\r" for sign in caption):
        return "caption with control characters"
    if any(unicodedata.category(sign) == "Cs" for sign in caption):
        return "caption with lone surrogates"
    return ""


def taken(
    found: Iterable[Found],
    rules: Rules,
    filters: Sequence[Filter],
    left_out: Counter[str],
    examples: dict[str, list[str]] | None = None,
) -> Iterator[Item]:
    """Choose what becomes a sample.

    What is chosen follows from what came before it alone, so a longer source changes none of the first.

    Args:
        found: everything, in the source's order.
        rules: what is taken.
        filters: of the rules.
        left_out: counts, by reason, what is not taken.
        examples: gets, by reason, the first names of it.

    Yields:
        items: no picture with a caption twice, no picture in two splits, no normalised caption in two.
    """
    done: set[int] = set()  # pictures, or pictures with their captions, as short hashes
    splits: dict[int, str] = {}  # of normalised captions

    def leave_out(each: Found, reason: str) -> None:
        left_out[reason] += 1
        if examples is not None:
            names, name = examples.setdefault(reason, []), each.picture[:LONGEST_NAME]
            if len(names) < MOST_EXAMPLES and name not in names:
                names.append(name)

    for each in found:
        reason = each.problem or caption_problem(each.caption) or ("" if each.place else NO_PICTURE)
        reason = reason or next(filter(None, (one.objection(each.facts) for one in filters)), "")
        if reason or each.place is None:
            leave_out(each, reason)
            continue
        caption = normalise_caption(each.caption)
        once = _short(each.picture if rules.captions == "first" else f"{each.picture}\0{caption}")
        if once in done:
            leave_out(each, FURTHER if rules.captions == "first" else "duplicate")
            continue
        split = split_of(each.picture, rules.val_fraction, rules.test_fraction)
        if splits.setdefault(_short(caption), split) != split:
            leave_out(each, "caption in another split")
            continue
        done.add(once)
        yield Item(each.picture, each.caption, each.place)


def _short(text: str) -> int:
    """63 bits of SHA-256: two of a million alike by chance once in ten million sources."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
