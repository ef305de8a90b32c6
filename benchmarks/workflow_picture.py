"""Draw comfyui/workflow_api.json as a graph of boxes and wires: comfyui/workflow.svg.

python benchmarks/workflow_picture.py comfyui/workflow_api.json comfyui/workflow.svg
"""

import json
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

WIDTH, GAP, ACROSS = 212, 20, 262  # pixels: a box, between boxes, from one column to the next
HEAD, LINE, MARGIN, LETTERS = 28, 19, 16, 31
PAPER, BOX, OURS, INK, SOFT = "#ffffff", "#f1f3f5", "#fff3d6", "#1f2328", "#59636e"
# From left to right: where a column begins, and its nodes from top to bottom; no wire crosses a box.
COLUMNS = (
    (40, ("7", "5", "4", "6", "2")),
    (40, ("9", "8", "10")),
    (95, ("11",)),
    (40, ("12", "13", "14", "15", "3")),
    (150, ("16", "17", "18")),
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
    """The workflow as SVG; every node of it has a place."""
    places = _places(workflow)
    places["1"] = (places["11"][0], places["15"][1])  # the model beside what takes it
    width = (len(COLUMNS) - 1) * ACROSS + WIDTH + 2 * MARGIN
    height = max(y + _height(workflow[name]) for name, (_, y) in places.items()) + MARGIN
    wires = [
        _wire(workflow, places, name, row, value[0])
        for name, node in workflow.items()
        for row, (_, value) in enumerate(_rows(node))
        if isinstance(value, list)
    ]
    boxes = [_box(workflow[name], *place) for name, place in places.items()]
    return "\n".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        "<title>The workflow: two references, one behind the other</title>",
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        *wires,
        *boxes,
        "</svg>\n",
    ))  # fmt: skip


def _places(workflow: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Left upper corners."""
    places = {}
    for column, (y, names) in enumerate(COLUMNS):
        for name in names:
            places[name] = (MARGIN + column * ACROSS, y - 40 + MARGIN)
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


def _wire(
    workflow: Mapping[str, Mapping[str, Any]],
    places: Mapping[str, tuple[int, int]],
    name: str,
    row: int,
    source: str,
) -> str:
    """From the right side of a box to an input, or straight down to the box below."""
    (left, top), (end, bottom) = places[source], places[name]
    colour = COLOURS[_rows(workflow[name])[row][0]]
    if left == end:
        x, y = left + WIDTH // 2, top + _height(workflow[source])
        path, end = f"M{x} {y} L{x} {bottom}", x
    else:
        x, y, bottom = left + WIDTH, top + HEAD // 2, bottom + HEAD + LINE * row + 9
        path = f"M{x} {y} C{x + 40} {y} {end - 40} {bottom} {end} {bottom}"
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/><circle cx="{end}" cy="{bottom}" r="4" fill="{colour}"/>'
    )


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(draw(json.loads(source.read_text())))
