"""One labelled picture per reference: a row per method, a column per alpha."""

import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from projector.comparison.cases import Case
from shards.tools.preview import INK, MARGIN, PAPER, SOFT, font, one_line

CELL = 256  # pixels, longer side of a picture
LABEL_WIDTH = 150
HEADING, LABEL, TEXT = 20, 18, 15  # font sizes
LINE = 22  # pixels from one line of TEXT to the next
PROMPT_LINES = 8
HEAD_HEIGHT = (PROMPT_LINES + 2) * LINE + MARGIN
PIXELS_PER_CHARACTER = 7.5  # of TEXT, about, for wrapping
# What a reader may not guess from the option's word.
ROW_LABELS = {"identity": "identity (unprojected)", "projector": "projector (projected)"}


def comparison_grid(
    case: Case,
    reference: Image.Image,
    methods: Sequence[str],
    alphas: Sequence[float],
    pictures: Mapping[tuple[str, float], Image.Image],
    note: str,
) -> Image.Image:
    """Draw the pictures of one case.

    Args:
        case: whose prompt is shown.
        reference: shown beside the prompt.
        methods: rows.
        alphas: columns.
        pictures: by method and alpha.
        note: a line on how they were made.

    Returns:
        an RGB picture.
    """
    cells = {place: _fitted(picture) for place, picture in pictures.items()}
    shown = _fitted(reference)
    tall = max(cell.height for cell in cells.values())
    top = 2 * MARGIN + HEADING + max(shown.height, HEAD_HEIGHT) + MARGIN
    width = LABEL_WIDTH + max(len(alphas), 3) * (CELL + MARGIN)  # room for the prompt
    height = top + HEADING + MARGIN + len(methods) * (tall + MARGIN)
    grid = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(grid)
    grid.paste(shown, (_left(0), 2 * MARGIN + HEADING))
    _draw_head(draw, width, case, note)
    for column, alpha in enumerate(alphas):
        text = f"alpha {alpha:g}" + (" (text only)" if alpha == 0 else "")
        draw.text((_left(column), top), text, fill=INK, font=font(LABEL))
    for row, method in enumerate(methods):
        upper = top + HEADING + MARGIN + row * (tall + MARGIN)
        label = textwrap.fill(ROW_LABELS.get(method, method).replace("_", " "), width=13)
        draw.multiline_text((MARGIN, upper), label, fill=INK, font=font(LABEL))
        for column, alpha in enumerate(alphas):
            grid.paste(cells[method, alpha], (_left(column), upper))
    return grid


def _draw_head(draw: ImageDraw.ImageDraw, width: int, case: Case, note: str) -> None:
    """The prompt beside the reference, and below it how the pictures were made."""
    draw.text((_left(0), MARGIN), "reference", fill=INK, font=font(LABEL))
    draw.text((_left(1), MARGIN), "prompt", fill=INK, font=font(LABEL))
    room = int((width - _left(1) - MARGIN) / PIXELS_PER_CHARACTER)
    lines = textwrap.wrap(one_line(case.prompt), width=room, max_lines=PROMPT_LINES, placeholder=" …")
    upper = 2 * MARGIN + HEADING
    draw.multiline_text((_left(1), upper), "\n".join(lines), fill=INK, font=font(TEXT), spacing=6)
    told = textwrap.wrap(f"seed {case.seed}, {note}", width=room, max_lines=2, placeholder=" …")
    below = upper + len(lines) * LINE + MARGIN
    draw.multiline_text((_left(1), below), "\n".join(told), fill=SOFT, font=font(TEXT), spacing=6)


def _left(column: int) -> int:
    return LABEL_WIDTH + column * (CELL + MARGIN)


def _fitted(picture: Image.Image) -> Image.Image:
    """A picture that just fits into a cell; a small one is drawn larger, pixel by pixel as it is."""
    scale = CELL / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return picture.convert("RGB").resize((size[0], size[1]), method)
