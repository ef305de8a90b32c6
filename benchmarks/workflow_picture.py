"""Draw comfyui/workflow_api.json as a graph of boxes and wires: comfyui/workflow.svg.

python benchmarks/workflow_picture.py comfyui/workflow_api.json comfyui/workflow.svg
"""

import json
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

WIDTH, GAP, ACROSS = 190, 20, 250  # pixels: a box, between boxes, from one column to the next
HEAD, LINE, MARGIN, LETTERS = 28, 19, 16, 27
PAPER, BOX, OURS, INK, SOFT = "#ffffff", "#f1f3f5", "#fff3d6", "#1f2328", "#59636e"
# From left to right, each from top to bottom.
COLUMNS = (
    ("6", "5", "4", "7", "2", "1"),
    ("8", "9", "10", "15"),
    ("11", "13", "14"),
    ("12", "3"),
    ("16", "17", "18"),
)
# What an input takes, by its name; the colours are those of ComfyUI's own page where it has one, made darker.
COLOURS = {
    "model": "#7c5cc4",
    "clip": "#b8860b",
    "vae": "#d6336c",
    "image": "#1c7ed6",
    "images": "#1c7ed6",
    "latent_image": "#c2255c",
    "samples": "#c2255c",
    "conditioning": "#e8590c",
    "positive": "#e8590c",
    "negative": "#e8590c",
    "projector": "#2b8a3e",
    "reference": "#0b7285",
}
SKIPPED = {"denoise", "weight_dtype", "revision", "filename_prefix", "batch_size", "scheduler", "type"}


def draw(workflow: Mapping[str, Mapping[str, Any]]) -> str:
    """The workflow as SVG; every node of it has a place in COLUMNS."""
    places = _places(workflow)
    width = (len(COLUMNS) - 1) * ACROSS + WIDTH + 2 * MARGIN
    height = max(y + _height(workflow[name]) for name, (_, y) in places.items()) + MARGIN
    wires = [
        _wire(places, name, row, key, value[0])
        for name, node in workflow.items()
        for row, (key, value) in enumerate(_rows(node))
        if isinstance(value, list)
    ]
    boxes = [_box(workflow[name], *place) for name, place in places.items()]
    return "\n".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        "<title>The workflow: two references, one behind the other</title>",
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        *boxes,
        *wires,
        "</svg>\n",
    ))  # fmt: skip


def _places(workflow: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Left upper corners; a column is as high as its boxes, in the middle of the picture's height."""
    heights = [sum(_height(workflow[name]) + GAP for name in names) for names in COLUMNS]
    places = {}
    for column, names in enumerate(COLUMNS):
        y = MARGIN + (max(heights) - heights[column]) // 2
        for name in names:
            places[name] = (MARGIN + column * ACROSS, y)
            y += _height(workflow[name]) + GAP
    return places


def _rows(node: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Inputs that are shown, wired ones first."""
    shown = [(key, value) for key, value in node["inputs"].items() if key not in SKIPPED and value != ""]
    return sorted(shown, key=lambda row: not isinstance(row[1], list))


def _height(node: Mapping[str, Any]) -> int:
    return HEAD + LINE * len(_rows(node)) + 8


def _box(node: Mapping[str, Any], x: int, y: int) -> str:
    ours = "ZImage" in node["class_type"]
    lines = [
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{_height(node)}" rx="7" fill="{OURS if ours else BOX}" '
        f'stroke="{"#b8860b" if ours else "#ced4da"}"/>',
        f'<text x="{x + 12}" y="{y + 19}" font-weight="600" fill="{INK}">{escape(node["class_type"])}</text>',
    ]
    for row, (key, value) in enumerate(_rows(node)):
        said = key if isinstance(value, list) else f"{key}: {value}"
        if len(said) > LETTERS:  # a file says which it is without the name of its input
            said = str(value)
        lines.append(
            f'<text x="{x + 12}" y="{y + HEAD + LINE * row + 13}" font-size="12" fill="{SOFT}">{escape(said)}</text>'
        )
    return "\n".join(lines)


def _wire(places: Mapping[str, tuple[int, int]], name: str, row: int, key: str, source: str) -> str:
    x, y = places[source][0] + WIDTH, places[source][1] + HEAD // 2
    end, bottom = places[name][0], places[name][1] + HEAD + LINE * row + 9
    bend = 40 if end > x else 100  # to a box below it goes round the side
    colour = COLOURS[key]
    path = f"M{x} {y} C{x + bend} {y} {end - bend} {bottom} {end} {bottom}"
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-opacity="0.85"/>'
        f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/><circle cx="{end}" cy="{bottom}" r="4" fill="{colour}"/>'
    )


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(draw(json.loads(source.read_text())))
