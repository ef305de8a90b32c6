"""Where a user's prompt stands in the prompt space, guessed from its words where its file does not say."""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

UNCATEGORISED = "uncategorised"
AXES = ("content", "style", "subject")
WORD = re.compile(r"[\w-]+")


def guess(*texts: str) -> dict[str, str]:
    """Guess a prompt's categories by the first word that tells one.

    Args:
        texts: the prompt, or what tells more than it first, say the category that its file has for it.

    Returns:
        content, style and subject, each `uncategorised` where no word tells it.
    """
    found = dict.fromkeys(AXES, UNCATEGORISED)
    for text in texts:
        words = WORD.findall(text.casefold())
        for axis in AXES:
            if found[axis] == UNCATEGORISED:
                found[axis] = _first(words, _keywords()[axis])
    return found


def _first(words: list[str], keywords: Mapping[str, list[tuple[tuple[str, ...], str]]]) -> str:
    """The category of the first keyword among words, the longest where several begin there."""
    for place, word in enumerate(words):
        for keyword, category in keywords.get(word, ()):
            if tuple(words[place : place + len(keyword)]) == keyword:
                return category
    return UNCATEGORISED


@cache
def _keywords() -> dict[str, dict[str, list[tuple[tuple[str, ...], str]]]]:
    """By axis and first word: keywords as words, longest first, each with its category."""
    told = tomllib.loads((Path(__file__).parent / "vocabulary" / "keywords.toml").read_text(encoding="utf-8"))
    table: dict[str, dict[str, list[tuple[tuple[str, ...], str]]]] = {axis: {} for axis in AXES}
    for axis in AXES:
        for category, phrases in told[axis].items():
            for phrase in phrases:
                for form in (phrase, f"{phrase}s", f"{phrase}es"):
                    words = tuple(form.split())
                    table[axis].setdefault(words[0], []).append((words, category))
        for listed in table[axis].values():
            listed.sort(key=lambda entry: -len(entry[0]))
    return table
