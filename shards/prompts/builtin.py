"""The built-in prompt space: a grammar over hand-written vocabularies in which any prompt follows from its number.

A cell is a content type, a style and a subject that make sense together. Prompts go round the cells, so that any
first N are spread over them within one. What a prompt shows (its core: who or what, doing what, where, of what look)
is never shown again within the space; how it is shown, and at what length, is drawn by a hash of the number.
"""

import hashlib
import math
import struct
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from shards.prompts.prompt import Prompt, PromptSource

Language = Literal["en", "zh"]
CONTENT_TYPES = ("photograph", "illustration", "abstract art", "text-heavy image", "complex scene")
STYLES = ("photorealistic", "painterly", "flat graphic", "vintage", "modern")
SUBJECTS = ("people", "animals", "objects", "architecture", "nature", "abstract concepts")

VERSION = 1  # of the composition below; raised whenever the same vocabulary gives other prompts
# How many further details a prompt tells, as fragments or as sentences, and how often out of 20: one prompt in three
# says only what is seen, one in ten tells nearly everything, which makes 6 to 120 words.
DETAILS = ((0, 6), (2, 5), (3, 4), (5, 2), (7, 1), (9, 2))
COUNTS = tuple(count for count, often in DETAILS for _ in range(often))
FRAGMENTS = 3  # up to so many are told as fragments
WIDER = {"sky": "wild", "night": "wild", "wild": "outdoor"}
DRAWS = 40  # the longest prompt needs 35
DRAWN = f">{DRAWS}I"
COMPANIONS = 3  # of a complex scene
FEWEST_OF_CONCEPT = 2  # details: two concepts may share the symbol that is nearly all of a short prompt
ALONE = 12  # times in 20 that a thing which may be several is one


@dataclass(frozen=True)
class _Cell:
    content: str
    style: str
    subject: str
    look: int  # its number among the pairs of content and style


class PromptSpace(Sequence[Prompt]):
    """All prompts of a language, each made when it is asked for.

    Args:
        language: of the prompts; categories are English in each.
    """

    def __init__(self, language: Language = "en") -> None:
        self._language = language
        self.words = _vocabulary(language)
        pairs = [
            (content, style)
            for content in CONTENT_TYPES
            for style in STYLES
            if style in self.words["media"][content]
        ]
        cells = [
            _Cell(content, style, subject, look)
            for look, (content, style) in enumerate(pairs)
            for subject in SUBJECTS
        ]
        stride = _coprime(len(cells), 0.865)  # of all strides the one whose prefixes are evenest on each axis
        self.cells = tuple(cells[index * stride % len(cells)] for index in range(len(cells)))
        self._pairs = len(pairs)
        self._groups = {
            subject: tuple(map(_Group, groups.values())) for subject, groups in self.words["groups"].items()
        }
        rounds = min(
            len(groups) * (min(group.cores for group in groups) // self._pairs)
            for groups in self._groups.values()
        )
        self._length = rounds * len(cells)
        self._composers = tuple(
            tuple(_Composer(self.words, cell, group) for group in self._groups[cell.subject])
            for cell in self.cells
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _space, (self._language,)  # a million prompts cross to another process as one word

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"prompt {index} of {self._length}")
        index %= self._length
        turn, place = divmod(index, len(self.cells))
        cell = self.cells[place]
        composers = self._composers[place]
        # In as many turns as there are groups, a cell meets each group once, and each group all pairs of content
        # and style once: so this number is a group's own, and with it the core.
        composer = composers[(turn + cell.look) % len(composers)]
        core = composer.group.core(turn // len(composers) * self._pairs + cell.look)
        caption = composer.compose(core, _Draws(index))
        return Prompt(caption, cell.content, cell.style, cell.subject)


class _Core(NamedTuple):
    look: str
    thing: str
    doing: str
    place: str
    surroundings: str


class _Group:
    """The vocabulary of one kind of subject, and the order in which its cores come."""

    def __init__(self, words: Mapping[str, Any]) -> None:
        self.words = words
        nowhere = ("", next(iter(words["places"])))
        # Nothing is a choice too, which makes the short prompts; a concept shows itself only through what is done.
        self._looks = ("", *words["looks"])
        self._things = tuple(words["things"])
        self._doings = (*(() if "concept" in words else ("",)), *words["doings"])
        self._places = (nowhere, *((place, at) for at, places in words["places"].items() for place in places))
        self.cores = len(self._looks) * len(self._things) * len(self._doings) * len(self._places)
        golden = (math.sqrt(5) - 1) / 2  # any first few are far apart
        self._stride = _coprime(self.cores, golden)

    def core(self, number: int) -> _Core:
        """The core of a number; a bijection up to `cores`."""
        rest = number * self._stride % self.cores
        rest, look = divmod(rest, len(self._looks))
        rest, place = divmod(rest, len(self._places))
        thing, doing = divmod(rest, len(self._doings))
        return _Core(self._looks[look], self._things[thing], self._doings[doing], *self._places[place])


class _Draws:
    """Choices that follow from a prompt's number."""

    def __init__(self, number: int) -> None:
        digest = hashlib.shake_128(number.to_bytes(8, "big")).digest(4 * DRAWS)
        values: Iterator[int] = iter(struct.unpack(DRAWN, digest))
        self._next = values.__next__

    def below(self, count: int) -> int:
        return self._next() % count

    def one(self, choices: Sequence[str]) -> str:
        return choices[self._next() % len(choices)]

    def some(self, choices: Sequence[str], count: int) -> list[str]:
        """Different ones."""
        left = list(choices)
        return [left.pop(self._next() % len(left)) for _ in range(count)]

    def skip(self, count: int) -> None:
        """Leave out draws that do not show, so that those after them stay as they are."""
        for _ in range(count):
            self._next()


class _Composer:
    """Prompts of one cell about one group: the core in the frame of the content type, then as many details as it tells.

    What follows from cell and group alone is looked up once: a plan composes a million prompts.
    """

    def __init__(self, words: Mapping[str, Any], cell: _Cell, group: _Group) -> None:
        self._templates: Mapping[str, Any] = words["templates"]
        self._frame: str = self._templates[cell.content]
        self._media: Sequence[str] = words["media"][cell.content][cell.style]
        self._parts: Mapping[str, Any] = words["parts"]
        self.group = group
        self._words = group.words
        self._style = cell.style
        self._axes = [
            (words["axes"][axis], by)
            for axis, _, by in (name.partition(".") for name in words["details"][cell.content])
        ]

    def compose(self, core: _Core, draws: _Draws) -> str:
        text = self._frame.format(
            medium=draws.one(self._media),
            kind=draws.one(self._words["kinds"]),
            scene=self._scene(core, draws),
            forms=draws.one(self._parts["forms"]),
            text=draws.one(self._words["texts"]),
            lettering=draws.one(self._parts["lettering"]),
            companions=self._companions(core, draws),
        )
        text = " ".join(text.split()).replace(" ,", ",")  # where nothing was chosen there are gaps
        told = self._details(core, draws)
        if len(told) <= FRAGMENTS:
            text = self._templates["comma"].join([text, *told]) + self._templates["stop"]
        else:
            text = self._templates["gap"].join([text + self._templates["stop"], *told])
        return str(text[0].upper() + text[1:])

    def _scene(self, core: _Core, draws: _Draws) -> str:
        words = self._words
        if "concept" in words:
            thing = self._templates["bare"].format(look=core.look, thing=core.thing)
            form = draws.one(self._templates["concepts"])
            return form.format(thing=thing, doing=core.doing, place=core.place)
        singular, _, plural = core.thing.partition("|")
        many = "counted" in words and draws.below(20) >= ALONE
        described = f"{core.look} {singular}".strip()
        thing = self._templates["many" if many else "one"].format(
            count=draws.one(self._templates["counts"]),
            article=_article(described),
            classifier=words.get("classifier", ""),
            look=core.look,
            thing=singular,
            plural=plural or f"{singular}s",
        )
        return str(self._templates["scene"].format(thing=thing, doing=core.doing, place=core.place))

    def _companions(self, core: _Core, draws: _Draws) -> str:
        if "{companions}" not in self._frame:
            draws.skip(COMPANIONS)
            return ""
        chosen = draws.some(_of(self._parts["companions"], core.surroundings), COMPANIONS)
        return str(self._templates["companions"].format(*chosen))

    def _details(self, core: _Core, draws: _Draws) -> list[str]:
        """Further details, on axes of the content type that follow each other: a few fragments, or more sentences."""
        count = COUNTS[draws.below(20)]
        if "concept" in self._words:
            count = max(count, FEWEST_OF_CONCEPT)
        form = "short" if count <= FRAGMENTS else "long"
        first = draws.below(len(self._axes) - count + 1)
        keys = {"ENV": core.surroundings, "STYLE": self._style, "": "any"}
        return [
            draws.one(options[form]).format(draws.one(_of(options, keys[by])))
            for options, by in self._axes[first : first + count]
        ]


def _of(options: Mapping[str, Sequence[str]], key: str) -> Sequence[str]:
    """The choices for surroundings, or for the wider ones that these are part of."""
    while key not in options:
        key = WIDER[key]
    return options[key]


def _article(phrase: str) -> str:
    """`a` or `an`, by the sounds that the vocabulary's words begin with."""
    sounds_like_a_consonant = phrase.startswith(("one", "uni", "use", "eu"))
    return "an" if phrase[0].lower() in "aeiou" and not sounds_like_a_consonant else "a"


def _coprime(count: int, share: float) -> int:
    """The number next to a share of `count` that has no factor in common with it."""
    stride = round(count * share)
    while math.gcd(stride, count) != 1:
        stride += 1
    return stride


def _vocabulary_bytes(language: Language) -> bytes:
    return (Path(__file__).parent / "vocabulary" / f"{language}.toml").read_bytes()


def _vocabulary(language: Language) -> dict[str, Any]:
    return tomllib.loads(_vocabulary_bytes(language).decode())


@cache
def _space(language: Language) -> PromptSpace:
    return PromptSpace(language)


@cache
def builtin_prompts(language: Language = "en") -> PromptSource:
    """The built-in prompt space of a language, in the order in which a plan takes it."""
    digest = hashlib.sha256(f"grammar {VERSION}\n".encode() + _vocabulary_bytes(language)).hexdigest()
    return PromptSource("builtin" if language == "en" else f"builtin-{language}", digest, _space(language))
