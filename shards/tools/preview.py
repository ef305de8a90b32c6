"""A contact sheet: pictures with key, split and caption beneath, grouped by content type."""

import textwrap
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

from shards.format.sample import Sample, picture_of

CELL = 192  # pixels, longer side of a picture: three times the miniature world's 64
CAPTION_LINES = 4
CAPTION_WIDTH = 33  # characters
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
    cell_height = CELL + (1 + CAPTION_LINES) * LINE + MARGIN
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
        picture = fitted(picture_of(sample), CELL)
        sheet.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
        below = top + CELL + 4
        draw.text((left, below), sample.key, fill=INK, font=font(11))
        split = sample.key.partition("-")[0]
        draw.text((left + CELL, below), split, fill=INK, font=font(11), anchor="ra")
        caption = one_line(sample.caption)
        lines = textwrap.wrap(caption, width=CAPTION_WIDTH, max_lines=CAPTION_LINES, placeholder=" …")
        for number, line in enumerate(lines, start=1):
            draw.text((left, below + number * LINE), line, fill=SOFT, font=font(11))


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """A picture in RGB whose longer side has `side` pixels; a small one is drawn larger, pixel by pixel as it is."""
    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return picture.convert("RGB").resize((width, height), method)


def one_line(caption: str) -> str:
    """A caption for a drawing: other people's line breaks and controls must not move anything else."""
    return " ".join("".join(c if c.isprintable() else " " for c in caption).split())


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which needs no file on the machine."""
    return ImageFont.load_default(size)
