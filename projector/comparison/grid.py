"""One labelled picture per case: a row per method, a column per mode and value."""

import textwrap
from collections.abc import Mapping

from PIL import Image, ImageDraw

from projector.comparison.cases import TEXT, Case, Column
from projector.steering.modes import DIALLED
from shards.tools.preview import INK, MARGIN, PAPER, SOFT, fitted, font, one_line

CELL = 256  # pixels, longer side of a picture
LABEL_WIDTH = 150
HEADING, LABEL, TEXT_SIZE = 20, 18, 15  # font sizes
LINE = 22  # pixels from one line of the prompt to the next
PROMPT_LINES = 8
HEAD_HEIGHT = (PROMPT_LINES + 2) * LINE + MARGIN
PIXELS_PER_CHARACTER = 7.5  # of TEXT_SIZE, about, for wrapping
# What a reader may not guess from the option's word.
ROW_LABELS = {"identity": "identity (unprojected)", "projector": "projector (projected)"}


def comparison_grid(
    case: Case, reference: Image.Image, pictures: Mapping[Column, Image.Image], note: str
) -> Image.Image:
    """Draw the pictures of one case: a row per method, a column per mode and value.

    Args:
        case: whose prompt is shown.
        reference: shown beside the prompt, and with it what the text alone gives.
        pictures: of the case.
        note: a line on how they were made.

    Returns:
        an RGB picture.
    """
    cells = {column: fitted(picture, CELL) for column, picture in pictures.items()}
    heads = {"reference": fitted(reference, CELL)}
    if text := [cell for column, cell in cells.items() if column.method == TEXT]:
        heads["text alone"] = text[0]
    rows = list(dict.fromkeys(column.method for column in cells if column.method != TEXT))
    places = list(dict.fromkeys((column.mode, column.value) for column in cells if column.method != TEXT))
    tall = max(cell.height for cell in (*heads.values(), *cells.values()))
    top = 2 * MARGIN + HEADING + max(tall, HEAD_HEIGHT) + MARGIN
    width = LABEL_WIDTH + max(len(places), len(heads) + 2) * (CELL + MARGIN)  # room for the prompt
    grid = Image.new("RGB", (width, top + HEADING + MARGIN + len(rows) * (tall + MARGIN)), PAPER)
    draw = ImageDraw.Draw(grid)
    for number, (label, cell) in enumerate(heads.items()):
        draw.text((_left(number), MARGIN), label, fill=INK, font=font(LABEL))
        grid.paste(cell, (_left(number), 2 * MARGIN + HEADING))
    _draw_prompt(draw, _left(len(heads)), width, case, note)
    for number, (mode, value) in enumerate(places):
        label = f"{mode} {value:g}" if mode in DIALLED else mode
        draw.text((_left(number), top), label, fill=INK, font=font(LABEL))
    for row, method in enumerate(rows):
        upper = top + HEADING + MARGIN + row * (tall + MARGIN)
        label = textwrap.fill(ROW_LABELS.get(method, method).replace("_", " "), width=13)
        draw.multiline_text((MARGIN, upper), label, fill=INK, font=font(LABEL))
        for number, place in enumerate(places):
            if (column := Column(method, *place)) in cells:
                grid.paste(cells[column], (_left(number), upper))
    return grid


def _draw_prompt(draw: ImageDraw.ImageDraw, left: int, width: int, case: Case, note: str) -> None:
    """The prompt beside the pictures on top, and below it how the pictures were made."""
    draw.text((left, MARGIN), "prompt" if case.prompt else "no prompt", fill=INK, font=font(LABEL))
    room = int((width - left - MARGIN) / PIXELS_PER_CHARACTER)
    lines = textwrap.wrap(one_line(case.prompt), width=room, max_lines=PROMPT_LINES, placeholder=" …")
    upper = 2 * MARGIN + HEADING
    draw.multiline_text((left, upper), "\n".join(lines), fill=INK, font=font(TEXT_SIZE), spacing=6)
    told = textwrap.wrap(f"seed {case.seed}, {note}", width=room, max_lines=2, placeholder=" …")
    below = upper + len(lines) * LINE + MARGIN
    draw.multiline_text((left, below), "\n".join(told), fill=SOFT, font=font(TEXT_SIZE), spacing=6)


def _left(column: int) -> int:
    return LABEL_WIDTH + column * (CELL + MARGIN)
