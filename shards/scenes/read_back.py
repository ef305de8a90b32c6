"""Read a scene back from pixels by comparing them with drawings: no weights, so nothing that could have learnt a fault.

First the background is found, then where and in which outline something differs from it, then the best of all
patterns and colours at that place and one pixel around it.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.scenes.draw import COLOURS, DIRECTION, INK, MARK, RADIUS, SIDE, background, centre_of, masks
from shards.scenes.scene import ARRANGEMENTS, ATTRIBUTES, THING_ATTRIBUTES, Scene, Thing

Array = NDArray[np.float32]

# Distances between colours are those in RGB from 0 to 255.
FARTHEST = 60.0  # a pixel that is farther from the background is a thing's
OWN_TONE = 15.0  # a pixel that is nearer to the background is the background's
SHIFT = 4  # pixels by which a thing may be off its place; places are 12 apart
CANDIDATES = 6  # outlines that are compared in all patterns and colours, of 16
LOYALTY = 0.3  # weight of a thing's distance from the colours of the world: 0 lets it have any, 1 only those
# Blur makes a pattern's marks less dark: without blurred drawings, a solid thing that is darker comes nearer.
BLUR = 1.2  # pixels
COLOUR_CHOICES = 2  # kept for each outline: two things never have the same shape and colour
STEPS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # pixels around the best match of an outline
MARGIN = max(max(radii.values()) for radii in RADIUS.values()) + SHIFT + 5  # around a picture, for crops


def read_scene(pixels: NDArray[Any], objects: int = 1) -> Scene:
    """Find the scene whose drawing is nearest to a picture.

    Args:
        pixels: (height, width, 3) uint8, or floats from 0 to 255; of another side than 64 they are resized.
        objects: number of things in the picture, 1 or 2.

    Returns:
        a scene with so many things, also where the picture shows none.

    Raises:
        ValueError: the shape of pixels or the number of objects is another.
    """
    if objects not in RADIUS:
        raise ValueError(f"objects = {objects}; expected 1 or 2")
    picture = _of_side(np.asarray(pixels))
    ground = _nearest_background(picture)
    picture = _in_own_tone(picture, ground)
    gains = _outline_gains(picture - background(ground), objects)
    if objects == 1:
        return Scene(ground, (_best(_matches(picture, ground, _peaks(gains, _centres()), objects)),))
    slots = {place: _peaks(gains, _around(place, objects)) for pair in ARRANGEMENTS for place in pair}
    pair = max(ARRANGEMENTS, key=lambda places: sum(slots[place][0].gain for place in places))
    first, second = (_matches(picture, ground, slots[place], objects, place) for place in pair)
    return Scene(ground, _different(first, second))


def score(pixels: NDArray[Any], scene: Scene) -> dict[str, float]:
    """Compare a picture with the scene that it should show.

    A picture of another scene, drawn at random, scores 1/8 for background, shape and colour, 1/2 for size, 1/4 for
    pattern and 1/9 for place: .21 in the mean. With two things the better match of the things raises that to .27.

    Args:
        pixels: as `read_scene` takes them.
        scene: what they should show.

    Returns:
        by attribute the share that is right, from 0 to 1: over the things, in that match of the things read to the
        things expected in which most is right.
    """
    read = read_scene(pixels, len(scene.things))
    rights = [
        {
            name: sum(getattr(a, name) == getattr(b, name) for a, b in zip(order, scene.things, strict=True))
            for name in THING_ATTRIBUTES
        }
        for order in permutations(read.things)
    ]
    best = max(rights, key=lambda right: sum(right.values()))
    shares = {name: right / len(scene.things) for name, right in best.items()}
    return {"background": float(read.background == scene.background), **shares}


@dataclass(frozen=True)
class _Peak:
    """The best place of an outline: how much of the picture it explains, and its centre."""

    gain: float
    outline: int
    x: int
    y: int


@dataclass(frozen=True)
class _Match:
    """A thing and how much of the picture it explains."""

    gain: float
    thing: Thing


def _of_side(pixels: NDArray[Any]) -> Array:
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels: shape {pixels.shape}; expected (height, width, 3)")
    if pixels.shape[:2] != (SIDE, SIDE):
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))
    return pixels.astype(np.float32)


def _nearest_background(picture: Array) -> str:
    """Find the background from which the fewest pixels are far, the near ones as near as possible."""
    distances = ((_backgrounds() - picture[::2, ::2]) ** 2).sum(-1)  # a quarter of the pixels is enough
    return ATTRIBUTES["background"][int(np.minimum(distances, FARTHEST**2).sum((1, 2)).argmin())]


def _in_own_tone(picture: Array, ground: str) -> Array:
    """Take away by how much a picture's background is lighter or of another tint than it should be."""
    difference = picture - background(ground)
    near = difference[(difference**2).sum(-1) < FARTHEST**2][::4]
    return picture - np.median(near, axis=0) if len(near) else picture


@cache
def _backgrounds() -> Array:
    return np.stack([background(name)[::2, ::2] for name in ATTRIBUTES["background"]])


@cache
def _outlines(objects: int) -> tuple[tuple[str, str], ...]:
    """List the outlines that a thing can have: shape and size."""
    return tuple((shape, size) for shape in ATTRIBUTES["shape"] for size in RADIUS[objects])


@cache
def _outline_spectra(objects: int) -> tuple[NDArray[np.complex64], Array]:
    """Transform the outlines for correlation, each centred on pixel corner 0; the second result is their energy."""
    canvases = np.zeros((len(_outlines(objects)), SIDE, SIDE), np.float32)
    for canvas, (shape, size) in zip(canvases, _outlines(objects), strict=True):
        radius = RADIUS[objects][size]
        body, _ = masks(shape, "solid", radius, MARK[radius])
        canvas[: len(body), : len(body)] = body
        canvas[:] = np.roll(canvas, -(len(body) // 2), (0, 1))
    return np.conj(np.fft.rfft2(canvases)).astype(np.complex64), (canvases**2).sum((1, 2))


def _outline_gains(difference: Array, objects: int) -> Array:
    """Measure by how much each outline at each centre explains where a picture differs from its background.

    Returns:
        (outline, y, x) float32: squared error without the outline less squared error with it.
    """
    distance = np.sqrt((difference**2).sum(-1))
    seen = np.clip((distance - OWN_TONE) / (FARTHEST - OWN_TONE), 0, 1)
    spectra, energies = _outline_spectra(objects)
    products = np.fft.irfft2(np.fft.rfft2(seen) * spectra, (SIDE, SIDE))
    gains: Array = (2 * products - energies[:, None, None]).astype(np.float32)
    return gains


@cache
def _centres() -> NDArray[np.bool_]:
    """Mark where the centre of the only thing may be."""
    marked: NDArray[np.bool_] = np.any([_around(place, 1) for place in DIRECTION], axis=0)
    return marked


@cache
def _around(place: str, objects: int) -> NDArray[np.bool_]:
    """Mark where the centre of a thing at a place may be."""
    x, y = centre_of(place, objects)
    marked = np.zeros((SIDE, SIDE), bool)
    marked[y - SHIFT : y + SHIFT + 1, x - SHIFT : x + SHIFT + 1] = True
    return marked


def _peaks(gains: Array, allowed: NDArray[np.bool_]) -> list[_Peak]:
    """Find the best centre of each outline, and list the best outlines, the best first."""
    flat = np.where(allowed, gains, -np.inf).reshape(len(gains), -1)
    at = flat.argmax(1)
    best = flat[np.arange(len(flat)), at]
    return [
        _Peak(float(best[outline]), int(outline), int(at[outline] % SIDE), int(at[outline] // SIDE))
        for outline in np.argsort(-best)[:CANDIDATES]
    ]


def _matches(
    picture: Array, ground: str, peaks: list[_Peak], objects: int, place: str | None = None
) -> list[_Match]:
    """Compare the outlines in all patterns and colours with a picture.

    Args:
        picture: (side, side, 3).
        ground: name of the background.
        peaks: outlines and where they are.
        objects: number of things in the picture.
        place: of the thing; None: the one that is nearest to where it was found.

    Returns:
        the best matches of each outline in its best colours.
    """
    channels = _channels(picture, ground)
    return [
        match
        for peak in peaks
        for match in _matches_of_outline(channels, peak, *_outlines(objects)[peak.outline], objects, place)
    ]


def _channels(picture: Array, ground: str) -> Array:
    """Stack what a match is computed from, with a margin: q, q·g, g and g·g (side, side, 8).

    Here g is the background and q the picture's difference from it.
    """
    behind = background(ground)
    difference = picture - behind
    channels = np.concatenate(
        [
            difference,
            (difference * behind).sum(-1, keepdims=True),
            behind,
            (behind**2).sum(-1, keepdims=True),
        ],
        -1,
    )
    margin = int(MARGIN)
    return np.pad(channels, ((margin, margin), (margin, margin), (0, 0)))


def _matches_of_outline(
    channels: Array, peak: _Peak, shape: str, size: str, objects: int, place: str | None
) -> list[_Match]:
    """Find the best colours of an outline, each with its best pattern and shift.

    With body a, marks i of brightness k, weight w = a - (1 - k) i and colour B, a drawing differs from its background
    g by m = w B - a g. The B that lowers the squared error most is Σ w (q + a g) / Σ w², and it lowers it by
    B² Σ w² - Σ (2 a q·g + a² g·g). All of these are products of masks and channels.
    """
    rows, energy, half = _mask_products(shape, size, objects)
    corner = int(MARGIN) - half
    crops = np.stack(
        [
            channels[corner + peak.y + dy :, corner + peak.x + dx :][: 2 * half, : 2 * half].reshape(-1, 8)
            for dx, dy in STEPS
        ]
    )
    patterns = len(energy)
    products = rows @ crops  # (step, row, channel)
    tone = products[:, :patterns, :3] + products[:, patterns : 2 * patterns, 4:7]
    tone /= energy[:, None]  # (step, pattern, 3): the best colour
    covered = np.repeat(2 * products[:, -4:-2, 3] + products[:, -2:, 7], patterns // 2, axis=1)
    lowered = (tone**2).sum(-1) * energy - covered
    off = ((tone[:, :, None] - _colours()) ** 2).sum(-1)  # (step, pattern, colour)
    gains = lowered[..., None] - LOYALTY * energy[:, None] * off
    matches = []
    for number in np.argsort(-gains.max((0, 1)))[:COLOUR_CHOICES]:
        step, kind = np.unravel_index(int(gains[..., number].argmax()), gains.shape[:2])
        dx, dy = STEPS[int(step)]
        pattern = ATTRIBUTES["pattern"][int(kind) % (patterns // 2)]
        found = place or _nearest_place(peak.x + dx, peak.y + dy, objects)
        thing = Thing(shape, ATTRIBUTES["colour"][int(number)], size, pattern, found)
        matches.append(_Match(float(gains[step, kind, number]), thing))
    return matches


@cache
def _mask_products(shape: str, size: str, objects: int) -> tuple[Array, Array, int]:
    """Prepare an outline's masks in all patterns, first sharp and then blurred, since blur makes marks less dark.

    Returns:
        rows (2 · 2 · patterns + 2 · 2, pixels): w of each pattern, a·w of each, then a and a·a; Σ w² (2 · patterns,);
        half the side of the masks.
    """
    radius = RADIUS[objects][size]
    pairs = [masks(shape, pattern, radius, MARK[radius]) for pattern in ATTRIBUTES["pattern"]]
    sharp = np.stack([body - (1 - np.float32(INK)) * marks for body, marks in pairs])
    weights = np.concatenate([sharp, _blurred(sharp)]).reshape(2 * len(pairs), -1)
    bodies = np.stack([pairs[0][0], _blurred(pairs[0][0][None])[0]]).reshape(2, -1)
    body = np.repeat(bodies, len(pairs), axis=0)
    return (
        np.concatenate([weights, body * weights, bodies, bodies**2]),
        (weights**2).sum(1),
        len(pairs[0][0]) // 2,
    )


def _blurred(pictures: Array) -> Array:
    """Blur pictures (..., height, width) with a Gaussian of BLUR pixels."""
    reach = 3
    kernel = np.exp(-(np.arange(-reach, reach + 1, dtype=np.float32) ** 2) / (2 * BLUR**2))
    kernel /= kernel.sum()
    for axis in (-2, -1):
        shifted = [np.roll(pictures, step, axis) for step in range(-reach, reach + 1)]
        pictures = np.tensordot(kernel, np.stack(shifted), 1)
    return pictures


@cache
def _colours() -> Array:
    return np.array([COLOURS[name] for name in ATTRIBUTES["colour"]], np.float32)


def _nearest_place(x: int, y: int, objects: int) -> str:
    def distance(place: str) -> int:
        there = centre_of(place, objects)
        return (there[0] - x) ** 2 + (there[1] - y) ** 2

    return min(ATTRIBUTES["place"], key=distance)


def _best(matches: list[_Match]) -> Thing:
    return max(matches, key=lambda match: match.gain).thing


def _different(first: list[_Match], second: list[_Match]) -> tuple[Thing, Thing]:
    """Choose the best two things that differ in shape or colour, as the things of every scene do."""
    pairs = [
        (one, other)
        for one in first
        for other in second
        if (one.thing.shape, one.thing.colour) != (other.thing.shape, other.thing.colour)
    ]
    one, other = max(pairs, key=lambda pair: pair[0].gain + pair[1].gain)
    return one.thing, other.thing
