"""The pictures of README and docs, from a finished demo: what a reference does, and what a report looks like.

`make pictures` makes the demo and runs this: python benchmarks/pictures.py runs/pictures docs
"""

import json
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright

from shards.tools.preview import INK, MARGIN, PAPER, SOFT, font, one_line

CELL = 150  # pixels, of a picture's side
HEADING, TEXT, LINE = 17, 15, 19  # font sizes, and from one line of text to the next
CHARACTERS = 19  # of a line of a prompt
REFERENCES = 4
# Name, window, colours, and which heading is at the top.
SCREENS: Sequence[tuple[str, Any, Any, int]] = (
    ("light", {"width": 1100, "height": 900}, "light", 0),
    ("dark", {"width": 1100, "height": 900}, "dark", 1),
    ("phone", {"width": 390, "height": 844}, "light", 0),
)
# Heading and what is shown: a picture of (with prompt or without, method, mode), the reference, or the prompt's words.
COLUMNS: Sequence[tuple[str, tuple[bool, str, str] | str]] = (
    ("reference", "reference"),
    ("alone, as it is", (False, "identity", "alone")),
    ("alone, projected", (False, "projector", "alone")),
    ("a prompt", "prompt"),
    ("prompt alone", (True, "text", "alone")),
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


def screenshots(page: Path, folder: Path) -> None:
    """Take the report's first screen in daylight, its second question in the dark, and its pictures on a phone.

    Args:
        page: report.html.
        folder: gets report-light.png, report-dark.png and report-phone.png.

    Raises:
        SystemExit: no chromium on this machine.
    """
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no chromium on this machine: install it to take the report's pictures")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, size, scheme, heading in SCREENS:
            shown = browser.new_page(viewport=size, color_scheme=scheme)
            shown.goto(page.resolve().as_uri())
            if heading:
                shown.locator("h2").nth(heading).evaluate("(found) => found.scrollIntoView()")
            shown.screenshot(path=folder / f"report-{name}.png")
        browser.close()


def main(run: Path, folder: Path) -> None:
    """Draw all of them from a run into a folder."""
    draw(run / "linear" / "compare").save(folder / "steering.png")
    screenshots(run / "report.html", folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
