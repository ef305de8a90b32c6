"""Text for Markdown pages that the Hugging Face hub shows: whatever comes from outside is text there, never markup."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

# What begins markup, HTML, a formula, a mention or a link. As references they are text to every renderer; inside a
# table, too, where a backslash would not save a bar.
SPECIAL = {ord(sign): f"&#{ord(sign)};" for sign in "\\`*_{}[]<>&|~$#!@:\"'"}
LONGEST = 400  # signs of one text; prompts are shorter
UNSEEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")  # control, format (bidirectional overrides), line separators


def inline(value: object) -> str:
    """Any value as one line of plain text, at most `LONGEST` signs of it."""
    seen = "".join(" " if unicodedata.category(sign) in UNSEEN else sign for sign in str(value))
    line = " ".join(seen.split())
    short = line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
    return short.translate(SPECIAL).replace("www.", "www&#46;")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of plain text.

    Args:
        header: our own words, which are not escaped.
        rows: values, each escaped.
    """
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines += [f"| {' | '.join(inline(value) for value in row)} |" for row in rows]
    return "\n".join(lines)


def front_matter(fields: Mapping[str, Any]) -> str:
    """The YAML block that the hub reads; fields without a value are left out."""
    held = {name: value for name, value in fields.items() if value}
    return f"---\n{yaml.safe_dump(held, sort_keys=False, allow_unicode=True)}---\n"
