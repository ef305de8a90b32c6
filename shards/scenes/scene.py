"""What a scene is: one or two things on a background, the values that each attribute may take, and the splits."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": ("white", "grey", "beige", "brown", "mint", "lavender", "sky", "dusk"),
    "shape": ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond"),
    "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
    "size": ("small", "large"),
    "pattern": ("solid", "stripes", "dots", "checks"),
    "place": (
        "centre",
        "left",
        "right",
        "top",
        "bottom",
        "top left",
        "top right",
        "bottom left",
        "bottom right",
    ),
}
THING_ATTRIBUTES = ("shape", "colour", "size", "pattern", "place")  # place is the last
# The places of two things, the first thing's first: in the order in which people read.
ARRANGEMENTS = (
    ("left", "right"),
    ("top", "bottom"),
    ("top left", "bottom right"),
    ("top right", "bottom left"),
)
SPLITS = ("train", "val", "test", "held_out")
# Each value of the four attributes also occurs outside these pairs, so that only the combination is new.
HELD_OUT_SHAPE_COLOUR = frozenset(
    (shape, ATTRIBUTES["colour"][(3 * index + 2) % 8]) for index, shape in enumerate(ATTRIBUTES["shape"])
)
HELD_OUT_PATTERN_BACKGROUND = frozenset(
    {("solid", "lavender"), ("stripes", "sky"), ("dots", "beige"), ("checks", "grey")}
)
VAL_SHARE = 0.1  # of the scenes that are not held out
TEST_SHARE = 0.1
DRAWS = 10_000  # the rarest split holds one scene in 20

T = TypeVar("T")


@dataclass(frozen=True)
class Thing:
    """One thing of a scene: a value for each of THING_ATTRIBUTES."""

    shape: str
    colour: str
    size: str
    pattern: str
    place: str

    def __post_init__(self) -> None:
        for name in THING_ATTRIBUTES:
            _check(name, getattr(self, name))


@dataclass(frozen=True)
class Scene:
    """One or two things on a background.

    Two things are at opposite places, which are one of ARRANGEMENTS; they are kept in its order, so that the same
    picture is the same scene. They differ in shape or in colour, so that words can tell them apart.
    """

    background: str
    things: tuple[Thing, ...]

    def __post_init__(self) -> None:
        _check("background", self.background)
        if len(self.things) not in (1, 2):
            raise ValueError(f"things: {len(self.things)}; expected 1 or 2")
        if len(self.things) == 1:
            return
        first, second = self.things
        if (first.shape, first.colour) == (second.shape, second.colour):
            raise ValueError(
                f"things: two {first.colour} {first.shape}s; two things must differ in shape or colour"
            )
        if (second.place, first.place) in ARRANGEMENTS:
            object.__setattr__(self, "things", (second, first))
        elif (first.place, second.place) not in ARRANGEMENTS:
            raise ValueError(
                f"places: {first.place!r} and {second.place!r}; two things must be at one of {ARRANGEMENTS}"
            )


def attributes(scene: Scene) -> dict[str, str]:
    """List a scene's attributes by name; those of a second thing are called "shape 2", "colour 2" and so on."""
    found = {"background": scene.background}
    for number, thing in enumerate(scene.things):
        found |= {numbered(name, number): getattr(thing, name) for name in THING_ATTRIBUTES}
    return found


def numbered(name: str, number: int) -> str:
    """Name an attribute of the first thing (number 0, "shape") or of the second (number 1, "shape 2")."""
    return name if number == 0 else f"{name} {number + 1}"


def sample_scene(generator: np.random.Generator, objects: int = 1, split: str = "train") -> Scene:
    """Draw a scene of a split, each of its scenes as likely as any other.

    Args:
        generator: the same state gives the same scene.
        objects: number of things, 1 or 2.
        split: one of SPLITS.

    Raises:
        ValueError: objects or split is not one of those.
    """
    if objects not in (1, 2):
        raise ValueError(f"objects = {objects}; expected 1 or 2")
    if split not in SPLITS:
        raise ValueError(f"split = {split!r}; expected one of {', '.join(SPLITS)}")
    for _ in range(DRAWS):
        scene = _any_scene(generator, objects)
        if scene is not None and split_of(scene) == split:
            return scene
    raise AssertionError(f"no scene of split {split} in {DRAWS} draws")


def split_of(scene: Scene) -> str:
    """Say which of SPLITS a scene is in: `held_out` by its pairs of attributes, else by a hash of all attributes."""
    if any(
        (thing.shape, thing.colour) in HELD_OUT_SHAPE_COLOUR
        or (thing.pattern, scene.background) in HELD_OUT_PATTERN_BACKGROUND
        for thing in scene.things
    ):
        return "held_out"
    digest = hashlib.sha256("|".join(attributes(scene).values()).encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < VAL_SHARE:
        return "val"
    return "test" if share < VAL_SHARE + TEST_SHARE else "train"


def edit(
    scene: Scene, names: Collection[str], generator: np.random.Generator, split: str | None = None
) -> Scene:
    """Change the named attributes of a scene and nothing else.

    Args:
        scene: to change; with two things, each thing gets another value of a named attribute, and another `place`
            means another arrangement with the same thing first.
        names: of ATTRIBUTES.
        generator: the same state gives the same scene.
        split: that the result must be in; None: any.

    Returns:
        a scene that differs from the given one in exactly the named attributes.

    Raises:
        ValueError: a name is unknown, or no such scene was found in the split.
    """
    unknown = sorted(set(names) - ATTRIBUTES.keys())
    if unknown:
        raise ValueError(f"names = {unknown}; expected some of {', '.join(ATTRIBUTES)}")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split = {split!r}; expected one of {', '.join(SPLITS)}")
    for _ in range(200):
        edited = _edited(scene, names, generator)
        if edited is not None and split in (None, split_of(edited)):
            return edited
    raise ValueError(
        f"no scene that differs in {', '.join(sorted(names))} is in split {split}; draw another scene"
    )


def _edited(scene: Scene, names: Collection[str], generator: np.random.Generator) -> Scene | None:
    """Change the named attributes at random; None where the two things become alike."""
    changes: list[dict[str, Any]] = [
        {
            name: _other(ATTRIBUTES[name], getattr(thing, name), generator)
            for name in THING_ATTRIBUTES
            if name in names and (name != "place" or len(scene.things) == 1)
        }
        for thing in scene.things
    ]
    if "place" in names and len(scene.things) == 2:
        now = (scene.things[0].place, scene.things[1].place)
        for change, place in zip(changes, _other(ARRANGEMENTS, now, generator), strict=True):
            change["place"] = place
    things = tuple(replace(thing, **change) for thing, change in zip(scene.things, changes, strict=True))
    background = scene.background
    if "background" in names:
        background = _other(ATTRIBUTES["background"], background, generator)
    return None if _alike(things) else Scene(background, things)


def _any_scene(generator: np.random.Generator, objects: int) -> Scene | None:
    """Draw a scene of any split; None where the two things would be alike."""
    places: tuple[str, ...] = (_one(ATTRIBUTES["place"], generator),)
    if objects == 2:
        places = _one(ARRANGEMENTS, generator)
    things = tuple(
        Thing(place=place, **{name: _one(ATTRIBUTES[name], generator) for name in THING_ATTRIBUTES[:-1]})
        for place in places
    )
    return None if _alike(things) else Scene(_one(ATTRIBUTES["background"], generator), things)


def _alike(things: tuple[Thing, ...]) -> bool:
    return len({(thing.shape, thing.colour) for thing in things}) < len(things)


def _one(values: tuple[T, ...], generator: np.random.Generator) -> T:
    return values[int(generator.integers(len(values)))]


def _other(values: tuple[T, ...], value: T, generator: np.random.Generator) -> T:
    return _one(tuple(candidate for candidate in values if candidate != value), generator)


def _check(name: str, value: str) -> None:
    if value not in ATTRIBUTES[name]:
        raise ValueError(f"{name} = {value!r}; expected one of {', '.join(ATTRIBUTES[name])}")
