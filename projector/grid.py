"""One labelled picture per reference: a row per method, a column per alpha."""

import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from shards.cases import Case
from shards.preview import INK, MARGIN, PAPER, SOFT, font, one_line

CELL = 256  # pixels, longer side of a picture
LABEL_WIDTH = 150
HEADING, LABEL, TEXT = 20, 18, 15  # font sizes
PROMPT_LINES = 9
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
    top = MARGIN + HEADING + MARGIN + CELL + MARGIN
    width = LABEL_WIDTH + len(alphas) * (CELL + MARGIN) + MARGIN
    width = max(width, LABEL_WIDTH + 3 * (CELL + MARGIN))  # room for the prompt
    height = top + HEADING + MARGIN + len(methods) * (CELL + MARGIN)
    grid = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(grid)
    _draw_head(grid, draw, case, reference, note)
    for column, alpha in enumerate(alphas):
        text = f"alpha {alpha:g}" + (" (text only)" if alpha == 0 else "")
        draw.text((_left(column), top), text, fill=INK, font=font(LABEL))
    for row, method in enumerate(methods):
        upper = top + HEADING + MARGIN + row * (CELL + MARGIN)
        label = textwrap.fill(ROW_LABELS.get(method, method).replace("_", " "), width=13)
        draw.multiline_text((MARGIN, upper), label, fill=INK, font=font(LABEL))
        for column, alpha in enumerate(alphas):
            grid.paste(_fitted(pictures[method, alpha]), (_left(column), upper))
    return grid


def _draw_head(
    grid: Image.Image, draw: ImageDraw.ImageDraw, case: Case, reference: Image.Image, note: str
) -> None:
    upper = MARGIN + HEADING + MARGIN
    draw.text((_left(0), MARGIN), "reference", fill=INK, font=font(LABEL))
    draw.text((_left(1), MARGIN), "prompt", fill=INK, font=font(LABEL))
    grid.paste(_fitted(reference), (_left(0), upper))
    room = int((grid.width - _left(1) - MARGIN) / PIXELS_PER_CHARACTER)
    lines = textwrap.wrap(one_line(case.prompt), width=room, max_lines=PROMPT_LINES, placeholder=" …")
    draw.multiline_text((_left(1), upper), "\n".join(lines), fill=INK, font=font(TEXT), spacing=6)
    below = upper + CELL - 2 * HEADING
    told = textwrap.wrap(f"seed {case.seed}, {note}", width=room, max_lines=2, placeholder=" …")
    draw.multiline_text((_left(1), below), "\n".join(told), fill=SOFT, font=font(TEXT))


def _left(column: int) -> int:
    return LABEL_WIDTH + column * (CELL + MARGIN)


def _fitted(picture: Image.Image) -> Image.Image:
    """A picture that just fits into a cell; a small one is drawn larger, pixel by pixel as it is."""
    scale = CELL / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return picture.convert("RGB").resize((size[0], size[1]), method)
