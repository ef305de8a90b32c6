"""A contact sheet: pictures with their captions, grouped by content type."""

import textwrap
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

from shards.format.sample import Sample, picture_of

CELL = 200  # pixels, width of a picture
CAPTION_LINES = 4
LINE = 14
MARGIN = 10
PAPER, INK, SOFT = (255, 255, 255), (20, 24, 28), (96, 104, 114)


def contact_sheet(samples: Iterable[Sample], *, columns: int = 6) -> Image.Image:
    """Draw samples in rows, one heading per content type.

    Args:
        samples: with their pictures.
        columns: pictures in a row.

    Returns:
        an RGB picture.

    Raises:
        ValueError: no samples.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(str(sample.metadata["categories"]["content"]), []).append(sample)
    if not groups:
        raise ValueError("no samples to draw")
    cell_height = CELL + CAPTION_LINES * LINE + MARGIN
    rows = sum(-(-len(group) // columns) for group in groups.values())
    width = MARGIN + columns * (CELL + MARGIN)
    height = MARGIN + rows * (cell_height + MARGIN) + len(groups) * (LINE + 2 * MARGIN)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for content, group in sorted(groups.items()):
        draw.text((MARGIN, top + MARGIN // 2), content or "(no category)", fill=INK, font=font(15))
        top += LINE + 2 * MARGIN
        for start in range(0, len(group), columns):
            _draw_row(sheet, draw, group[start : start + columns], top)
            top += cell_height + MARGIN
    return sheet


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Sequence[Sample], top: int) -> None:
    for index, sample in enumerate(row):
        left = MARGIN + index * (CELL + MARGIN)
        picture = picture_of(sample)
        picture.thumbnail((CELL, CELL))
        sheet.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
        lines = textwrap.wrap(one_line(sample.caption), width=34, max_lines=CAPTION_LINES, placeholder=" …")
        for number, line in enumerate(lines):
            draw.text((left, top + CELL + 4 + number * LINE), line, fill=SOFT, font=font(11))


def one_line(caption: str) -> str:
    """A caption for a drawing: other people's line breaks and controls must not move anything else."""
    return " ".join("".join(c if c.isprintable() else " " for c in caption).split())


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which needs no file on the machine."""
    return ImageFont.load_default(size)
