"""README's first picture, from a finished demo: what a reference does without a projector and with one.

python benchmarks/readme_picture.py runs/demo/linear/compare docs/steering.png
"""

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from shards.tools.preview import INK, MARGIN, PAPER, SOFT, font, one_line

CELL = 150  # pixels, of a picture's side
HEADING, TEXT, LINE = 17, 15, 19  # font sizes, and from one line of text to the next
CHARACTERS = 19  # of a line of a prompt
REFERENCES = 4
# Heading and what is shown: a picture of (with prompt or without, method, mode), the reference, or the prompt's words.
COLUMNS: Sequence[tuple[str, tuple[bool, str, str] | str]] = (
    ("reference", "reference"),
    ("alone, as it is", (False, "identity", "alone")),
    ("alone, projected", (False, "projector", "alone")),
    ("a prompt", "prompt"),
    ("prompt alone", (True, "text", "text")),
    ("with the reference", (True, "projector", "concat")),
)


def draw(folder: Path, references: int = REFERENCES) -> Image.Image:
    """Draw the sheet.

    Args:
        folder: of a finished `compare`, with cases.json.
        references: rows.

    Returns:
        an RGB picture.
    """
    entries = json.loads((folder / "cases.json").read_text())
    by_picture: dict[bytes, list[Mapping[str, Any]]] = {}
    for entry in entries:
        by_picture.setdefault((folder / entry["reference"]).read_bytes(), []).append(entry)
    rows = list(by_picture.values())[:references]
    width = MARGIN + len(COLUMNS) * (CELL + MARGIN)
    sheet = Image.new("RGB", (width, 2 * MARGIN + HEADING + len(rows) * (CELL + MARGIN)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, (heading, _) in enumerate(COLUMNS):
        pen.text((MARGIN + column * (CELL + MARGIN), MARGIN), heading, fill=INK, font=font(HEADING))
    for number, row in enumerate(rows):
        for column, (_, shown) in enumerate(COLUMNS):
            corner = (
                MARGIN + column * (CELL + MARGIN),
                2 * MARGIN + HEADING + number * (CELL + MARGIN),
            )
            _fill(sheet, pen, corner, folder, row, shown)
    return sheet


def _fill(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    folder: Path,
    row: Sequence[Mapping[str, Any]],
    shown: tuple[bool, str, str] | str,
) -> None:
    prompted = [entry for entry in row if entry["prompt"]]
    if shown == "prompt":
        words = textwrap.wrap(one_line(prompted[-1]["prompt"]), CHARACTERS, max_lines=7, placeholder=" …")
        pen.multiline_text(corner, "\n".join(words), fill=SOFT, font=font(TEXT), spacing=LINE - TEXT)
        return
    if shown == "reference":
        file = row[0]["reference"]
    else:
        with_prompt, method, mode = shown
        case = prompted[-1]["case"] if with_prompt else None
        file = next(
            entry["file"]
            for entry in row
            if (entry["method"], entry["mode"]) == (method, mode)
            and (entry["case"] == case if with_prompt else not entry["prompt"])
        )
    picture = Image.open(folder / file).convert("RGB")
    sheet.paste(picture.resize((CELL, CELL), Image.Resampling.NEAREST), corner)


if __name__ == "__main__":
    draw(Path(sys.argv[1])).save(sys.argv[2])
