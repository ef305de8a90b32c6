"""Draw a scene: where things are, how large, in which colours, and their masks with smooth edges."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.scenes.scene import Scene, Thing

Points = NDArray[np.floating[Any]]  # coordinates

SIDE = 64  # pixels; the measures below are pixels of a picture of this side
SUPERSAMPLES = 8  # per pixel and axis
RADIUS = {1: {"small": 13.0, "large": 19.0}, 2: {"small": 10.0, "large": 15.0}}  # by the number of things
OFFSET = {1: 12, 2: 16}  # of a place from the middle; two large things keep two pixels between them
DIRECTION = {
    "centre": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
# Strong colours are things, pale or dull ones backgrounds. A gradient runs from the first colour down to the second.
COLOURS = {
    "red": (222, 36, 40),
    "orange": (246, 130, 20),
    "yellow": (250, 220, 36),
    "green": (36, 160, 56),
    "cyan": (20, 205, 215),
    "blue": (44, 92, 240),
    "purple": (150, 50, 205),
    "pink": (255, 112, 180),
}
BACKGROUNDS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "white": ((248, 248, 246),),
    "grey": ((132, 134, 138),),
    "beige": ((228, 202, 160),),
    "brown": ((124, 86, 60),),
    "mint": ((178, 226, 200),),
    "lavender": ((204, 192, 236),),
    "sky": ((120, 170, 214), (232, 242, 250)),
    "dusk": ((76, 78, 116), (206, 160, 164)),
}
INK = 0.22  # brightness of a pattern's marks, as a share of the thing's colour
MARK = {
    13.0: 4.5,
    19.0: 5.0,
    10.0: 4.0,
    15.0: 4.5,
}  # pixels: half a pattern's period, by radius; less is lost in a VAE


def draw_scene(scene: Scene, side: int = SIDE) -> NDArray[np.uint8]:
    """Draw a scene; the same scene is always the same picture.

    Args:
        scene: to draw.
        side: of the picture in pixels.

    Returns:
        (side, side, 3) uint8.
    """
    picture = background(scene.background, side).copy()
    for thing in scene.things:
        _paint(picture, thing, len(scene.things), side / SIDE)
    pixels: NDArray[np.uint8] = (picture + 0.5).astype(np.uint8)
    return pixels


def centre_of(place: str, objects: int) -> tuple[int, int]:
    """Find the centre of a thing at a place: x and y in pixels of a picture of side SIDE."""
    x, y = DIRECTION[place]
    return SIDE // 2 + x * OFFSET[objects], SIDE // 2 + y * OFFSET[objects]


def ink_of(colour: str) -> NDArray[np.float32]:
    """Give the colour (3,) float32 of the marks on a thing of a colour."""
    return np.float32(INK) * np.array(COLOURS[colour], np.float32)


@lru_cache(maxsize=64)
def background(name: str, side: int = SIDE) -> NDArray[np.float32]:
    """Draw a background: (side, side, 3) float32 from 0 to 255, not to be written to."""
    tones = np.array(BACKGROUNDS[name], np.float32)
    share = ((np.arange(side, dtype=np.float32) + 0.5) / side)[:, None, None]
    picture = np.ascontiguousarray(
        np.broadcast_to(tones[0] + (tones[-1] - tones[0]) * share, (side, side, 3))
    )
    picture.flags.writeable = False
    return picture


@lru_cache(maxsize=1024)
def masks(
    shape: str, pattern: str, radius: float, mark: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Measure how much of each pixel a thing covers, and how much its pattern's marks do.

    Args:
        shape: one of ATTRIBUTES["shape"].
        pattern: one of ATTRIBUTES["pattern"].
        radius: of the thing in pixels.
        mark: half a period of the pattern in pixels.

    Returns:
        the thing and its marks, each (2h, 2h) float32 from 0 to 1 around the thing's centre, not to be written to;
        marks are part of the thing.
    """
    half = math.ceil(radius) + 1
    axis = (np.arange(2 * half * SUPERSAMPLES, dtype=np.float32) + 0.5) / SUPERSAMPLES - half
    x, y = axis[None, :], axis[:, None]
    inside = _inside(shape, x / radius, y / radius)
    marks = inside & _marked(pattern, x / mark, y / mark)
    return _averaged(inside), _averaged(marks)


def _paint(picture: NDArray[np.float32], thing: Thing, objects: int, scale: float) -> None:
    """Paint a thing over a picture (side, side, 3) in place."""
    radius = RADIUS[objects][thing.size]
    body, marks = masks(thing.shape, thing.pattern, radius * scale, MARK[radius] * scale)
    half = len(body) // 2
    left, top = (round(value * scale) - half for value in centre_of(thing.place, objects))
    rows = slice(max(top, 0), min(top + 2 * half, len(picture)))
    columns = slice(max(left, 0), min(left + 2 * half, len(picture)))
    patch = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    body, marks = body[patch][..., None], marks[patch][..., None]
    colour = np.array(COLOURS[thing.colour], np.float32)
    picture[rows, columns] = (
        picture[rows, columns] * (1 - body) + (body - marks) * colour + marks * ink_of(thing.colour)
    )


def _inside(shape: str, x: Points, y: Points) -> NDArray[np.bool_]:
    """Say which points are in a shape of radius 1; y points down."""
    if shape == "circle":
        return x**2 + y**2 < 0.94**2
    if shape == "square":
        return np.maximum(abs(x), abs(y)) < 0.86
    if shape == "triangle":
        return (abs(x) < (y + 0.95) * 0.55) & (y < 0.82)
    if shape == "star":
        return _in_star(x, y)
    if shape == "ring":
        distance = x**2 + y**2
        return (distance < 1) & (distance > 0.46**2)
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) < 0.36) & (np.maximum(abs(x), abs(y)) < 0.98)
    if shape == "heart":
        return _in_heart(x, y)
    return abs(x) / 0.8 + abs(y) / 1.02 < 1  # diamond


def _in_star(x: Points, y: Points) -> NDArray[np.bool_]:
    """Say which points are in a star of five points: under the line from a tip to the notch beside it."""
    tip, notch = 1.04, 0.5
    sector = 2 * math.pi / 5
    angle = abs((np.arctan2(x, -y) + sector / 2) % sector - sector / 2)  # from the nearest tip
    distance = np.sqrt(x**2 + y**2)
    across, along = distance * np.sin(angle), distance * np.cos(angle)
    notch_across, notch_along = notch * math.sin(sector / 2), notch * math.cos(sector / 2)
    inside: NDArray[np.bool_] = across * (tip - notch_along) < (tip - along) * notch_across
    return inside


def _in_heart(x: Points, y: Points) -> NDArray[np.bool_]:
    """Say which points are in a heart: two discs and the wedge between their tangents from the point below."""
    radius, side, top, point = 0.5, 0.46, -0.34, 0.96
    discs = (abs(x) - side) ** 2 + (y - top) ** 2 < radius**2
    normal = math.acos(-radius / math.hypot(side, top - point)) + math.atan2(top - point, side)
    under = abs(x) * math.cos(normal) + (y - point) * math.sin(normal) < 0
    wedge = under & (y > top) & (abs(x) < side + radius * math.cos(normal))  # up to where the tangents touch
    inside: NDArray[np.bool_] = discs | wedge
    return inside


def _marked(pattern: str, x: Points, y: Points) -> NDArray[np.bool_]:
    """Say which points are marks of a pattern whose half period is 1."""
    marked: NDArray[np.bool_] = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)  # solid has no marks
    if pattern == "stripes":
        marked |= (y + 0.5) % 2 >= 1
    elif pattern == "dots":
        across, down = (x + 1) % 2 - 1, (y + 1) % 2 - 1  # from the nearest dot
        marked |= across**2 + down**2 < 0.62**2
    elif pattern == "checks":
        marked |= (np.floor(x) + np.floor(y)) % 2 == 0
    return marked


def _averaged(points: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Average the samples of each pixel."""
    side = len(points) // SUPERSAMPLES
    mask: NDArray[np.float32] = points.reshape(side, SUPERSAMPLES, side, SUPERSAMPLES).mean(
        (1, 3), dtype=np.float32
    )
    mask.flags.writeable = False
    return mask
