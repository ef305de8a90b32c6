"""Word a scene, in one fixed wording or in many, and read attributes out of words."""

import re
from collections.abc import Collection, Sequence
from functools import cache
from typing import TypeVar

import numpy as np

from shards.scenes.scene import ARRANGEMENTS, ATTRIBUTES, THING_ATTRIBUTES, Scene, Thing, numbered

T = TypeVar("T")

# The first word for a value is the one of the canonical wording. No word stands for two values.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "background": {
        "white": ("white", "snow-white"),
        "grey": ("grey", "gray", "ash-grey"),
        "beige": ("beige", "sand-coloured", "sandy"),
        "brown": ("brown", "chocolate-brown"),
        "mint": ("mint", "minty", "mint-coloured"),
        "lavender": ("lavender", "lilac"),
        "sky": ("sky", "clear sky", "daytime sky"),
        "dusk": ("dusk", "twilight", "evening"),
    },
    "shape": {
        "circle": ("circle", "disc", "disk"),
        "square": ("square", "box"),
        "triangle": ("triangle",),
        "star": ("star", "five-pointed star"),
        "ring": ("ring", "hoop"),
        "cross": ("cross", "plus sign"),
        "heart": ("heart", "love heart"),
        "diamond": ("diamond", "rhombus"),
    },
    "colour": {
        "red": ("red", "scarlet"),
        "orange": ("orange", "tangerine"),
        "yellow": ("yellow", "lemon-yellow"),
        "green": ("green", "emerald"),
        "cyan": ("cyan", "turquoise"),
        "blue": ("blue", "cobalt"),
        "purple": ("purple", "violet"),
        "pink": ("pink", "rose-coloured"),
    },
    "size": {
        "small": ("small", "little", "tiny"),
        "large": ("large", "big", "huge"),
    },
    "pattern": {
        "solid": ("solid", "plain", "unpatterned"),
        "stripes": ("striped", "stripy", "banded"),
        "dots": ("dotted", "spotted", "polka-dot"),
        "checks": ("checked", "checkered", "chequered"),
    },
    "place": {
        "centre": ("in the centre", "in the center", "in the middle"),
        "left": ("on the left", "on the left side", "to the left"),
        "right": ("on the right", "on the right side", "to the right"),
        "top": ("at the top", "near the top", "up at the top"),
        "bottom": ("at the bottom", "near the bottom", "down at the bottom"),
        "top left": ("at the top left", "in the upper left corner", "in the top left corner"),
        "top right": ("at the top right", "in the upper right corner", "in the top right corner"),
        "bottom left": ("at the bottom left", "in the lower left corner", "in the bottom left corner"),
        "bottom right": ("at the bottom right", "in the lower right corner", "in the bottom right corner"),
    },
}
# Further words that are understood, though no caption here has them.
UNDERSTOOD = {
    "pattern": {
        "stripes": ("stripes", "stripe"),
        "dots": ("dots", "spots", "dot"),
        "checks": ("checks", "checkerboard", "chequerboard"),
    },
    "place": {
        "centre": ("centre", "center", "middle", "central"),
        "top left": ("top left", "upper left", "top-left", "upper-left"),
        "top right": ("top right", "upper right", "top-right", "upper-right"),
        "bottom left": ("bottom left", "lower left", "bottom-left", "lower-left"),
        "bottom right": ("bottom right", "lower right", "bottom-right", "lower-right"),
        "left": ("left",),
        "right": ("right",),
        "top": ("top",),
        "bottom": ("bottom",),
    },
}
ADJECTIVES = ("size", "colour", "pattern")
NOUNS = ("thing", "object", "shape", "figure")  # where a caption does not name the shape
OPENINGS = ("a picture of ", "an image of ", "there is ", "a drawing of ", "a scene with ", "we see ")
JOINS = (" and ", ", and ", " next to ", " together with ", ", along with ", "; also ")
GROUNDS = (
    " on {article} {ground} background",
    " against {article} {ground} backdrop",
    ", {ground} background",
)
ENDINGS = ("Nothing else is in the picture.", "The edges are clean and sharp.", "It is a simple drawing.")


def canonical(scene: Scene) -> str:
    """Word a scene in its one fixed way; `parse` gives the scene back."""
    things = " and ".join(_canonical_thing(thing) for thing in scene.things)
    return f"{things}, {WORDS['background'][scene.background][0]} background"


def varied(scene: Scene, generator: np.random.Generator) -> str:
    """Word a scene in one of many ways, with every attribute named.

    Args:
        scene: to word.
        generator: the same state gives the same words.

    Returns:
        a caption of 7 to 60 words.
    """
    return partial(scene, tuple(ATTRIBUTES), generator)


def partial(scene: Scene, names: Collection[str], generator: np.random.Generator) -> str:
    """Word some attributes of a scene in one of many ways.

    Args:
        scene: to word.
        names: of ATTRIBUTES; with two things, an attribute is named for both.
        generator: the same state gives the same words.

    Returns:
        a caption that names these attributes and no other, all about one thing before any about the other;
        "" where names is empty.

    Raises:
        ValueError: a name is unknown.
    """
    unknown = sorted(set(names) - ATTRIBUTES.keys())
    if unknown:
        raise ValueError(f"names = {unknown}; expected some of {', '.join(ATTRIBUTES)}")
    if not names:
        return ""
    things = list(scene.things) if any(name in names for name in THING_ATTRIBUTES) else []
    if "place" in names and generator.random() < 0.3:
        things.reverse()  # without places, the order of words is all that tells two things apart
    ground = _pick(WORDS["background"][scene.background], generator) if "background" in names else ""
    form = _pick(("phrase", "phrase", "phrase", "sentences", "list"), generator) if things else "phrase"
    if form == "list":
        return _list(things, names, ground, generator)
    if form == "sentences":
        return _sentences(things, names, ground, generator)
    return _phrase(things, names, ground, generator)


def parse(text: str) -> Scene | None:
    """Read a scene out of its canonical caption; None where the text is not exactly one."""
    scene = scene_named(text)
    return scene if scene is not None and canonical(scene) == text.strip() else None


def scene_named(text: str) -> Scene | None:
    """Read a scene out of a caption in any wording of this module; None where an attribute is not named."""
    found = attributes_named(text)
    numbers = (0, 1) if "shape 2" in found else (0,)
    try:
        things = tuple(
            Thing(*(found[numbered(name, number)] for name in THING_ATTRIBUTES)) for number in numbers
        )
        return Scene(found["background"], things)
    except (KeyError, ValueError):
        return None


def attributes_named(text: str) -> dict[str, str]:
    """Read the attributes that a caption names, in any wording of this module.

    Args:
        text: a caption; the first mention of an attribute is about the first thing, the second about the other.

    Returns:
        value by name, as `attributes` of a scene gives them ("shape", "shape 2"), without those not named. Where
        the places say that the thing named first is the scene's second, the two are exchanged.
    """
    found: dict[str, str] = {}
    for match in _pattern().finditer(text.lower()):
        name, value = _meanings()[match.group()]
        key = name if name == "background" or name not in found else numbered(name, 1)
        found.setdefault(key, value)
    if (found.get("place 2"), found.get("place")) not in ARRANGEMENTS:
        return found
    exchanged = {name: value for name, value in found.items() if name == "background"}
    for name in THING_ATTRIBUTES:
        for number in (0, 1):
            if numbered(name, 1 - number) in found:
                exchanged[numbered(name, number)] = found[numbered(name, 1 - number)]
    return exchanged


def _canonical_thing(thing: Thing) -> str:
    words = [WORDS[name][getattr(thing, name)][0] for name in ("size", "colour", "pattern", "shape", "place")]
    return f"a {' '.join(words)}"


def _phrase(
    things: Sequence[Thing], names: Collection[str], ground: str, generator: np.random.Generator
) -> str:
    """Word things and background in one sentence or less, such as "a small red circle on a grey background"."""
    if not things:
        return _pick(
            ("{article} {ground} background", "a scene on {article} {ground} background"), generator
        ).format(article=_article(ground), ground=ground)
    opening = _pick(OPENINGS, generator) if generator.random() < 0.4 else ""
    text = opening + _pick(JOINS, generator).join(_noun_phrase(thing, names, generator) for thing in things)
    if not ground:
        return text
    if not opening and generator.random() < 0.25:
        return f"on {_article(ground)} {ground} background, {text}"
    return text + _pick(GROUNDS, generator).format(article=_article(ground), ground=ground)


def _noun_phrase(thing: Thing, names: Collection[str], generator: np.random.Generator) -> str:
    """Word a thing as a noun with what describes it before and behind it."""
    adjectives, noun, place = _words(thing, names, generator)
    behind = adjectives.pop() if len(adjectives) > 1 and generator.random() < 0.25 else ""
    phrase = _with_article([*adjectives, noun])
    if behind:
        phrase += f" that is {behind}"
    return f"{phrase} {place}".strip()


def _sentences(
    things: Sequence[Thing], names: Collection[str], ground: str, generator: np.random.Generator
) -> str:
    """Word things and background in several sentences, the background's first or last."""
    sentences = []
    for number, thing in enumerate(things):
        adjectives, noun, place = _words(thing, names, generator)
        before = int(generator.integers(len(adjectives) + 1))
        which = "there is" if number == 0 else "there is also"
        sentences.append(f"{which} {_with_article([*adjectives[:before], noun])}")
        if adjectives[before:] and place:
            sentences.append(f"it is {_listed(adjectives[before:])}, and it is {place}")
        elif adjectives[before:] or place:
            sentences.append(f"it is {_listed(adjectives[before:]) or place}")
    if ground:
        sentence = _pick(
            ("the background is {ground}", "behind it is {article} {ground} background"), generator
        )
        at = _pick((0, len(sentences), len(sentences)), generator)
        if at == 0 or len(things) > 1:
            sentence = "the background is {ground}"
        sentences.insert(at, sentence.format(article=_article(ground), ground=ground))
    text = " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)
    return f"{text} {_pick(ENDINGS, generator)}" if generator.random() < 0.3 else text


def _list(
    things: Sequence[Thing], names: Collection[str], ground: str, generator: np.random.Generator
) -> str:
    """Word things and background as tags with commas between them."""
    parts = []
    for thing in things:
        adjectives, noun, place = _words(thing, names, generator)
        if place and generator.random() < 0.5:
            place = thing.place  # "left" for "on the left": the shortest captions
        words = [*adjectives, place] if place else adjectives
        parts.append(", ".join([noun, *(words[index] for index in generator.permutation(len(words)))]))
    if ground:
        parts.insert(_pick((0, len(parts)), generator), f"{ground} background")
    return "; ".join(parts)


def _words(
    thing: Thing, names: Collection[str], generator: np.random.Generator
) -> tuple[list[str], str, str]:
    """Choose the words for a thing: its adjectives in some order, the noun, and the place or ""."""
    chosen = {
        name: _pick(WORDS[name][getattr(thing, name)], generator)
        for name in THING_ATTRIBUTES
        if name in names
    }
    order = ADJECTIVES if generator.random() < 0.5 else [ADJECTIVES[i] for i in generator.permutation(3)]
    adjectives = [chosen[name] for name in order if name in chosen]
    return adjectives, chosen.get("shape") or _pick(NOUNS, generator), chosen.get("place", "")


def _with_article(words: Sequence[str]) -> str:
    return f"{_article(words[0])} {' '.join(words)}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _pick(options: Sequence[T], generator: np.random.Generator) -> T:
    return options[int(generator.integers(len(options)))]


@cache
def _meanings() -> dict[str, tuple[str, str]]:
    """Map each word to the attribute and the value that it names."""
    return {
        word: (name, value)
        for table in (WORDS, UNDERSTOOD)
        for name, values in table.items()
        for value, words in values.items()
        for word in words
    }


@cache
def _pattern() -> re.Pattern[str]:
    """Match any word, the longest first: "at the top left" is not "at the top"."""
    words = sorted(_meanings(), key=lambda word: (-len(word), word))
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, words))})(?![\w-])")
