"""The contact sheet: a picture fills its cell, whatever its size, and its key and split are beneath."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from shards.__main__ import main
from shards.format.sample import as_png
from shards.tools.preview import CELL, MARGIN, PAPER, contact_sheet, one_line
from tests_support import a_plan, a_sample

RED = (200, 30, 30)


def samples(*sizes):
    planned = [sample for shard in a_plan().shards for sample in shard.samples]
    return [
        replace(a_sample(sample), image=as_png(Image.new("RGB", size, RED)))
        for sample, size in zip(planned, sizes, strict=False)
    ]


def extent(sheet, column):
    """Width and height of the red in a column of the sheet."""
    left = MARGIN + column * (CELL + MARGIN)
    cell = np.asarray(sheet)[:, left - MARGIN // 2 : left + CELL + MARGIN // 2]
    rows, columns = np.nonzero((cell == RED).all(axis=2))
    return int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 64), (CELL, CELL)),
        ((1024, 1024), (CELL, CELL)),
        ((64, 32), (CELL, CELL // 2)),
        ((768, 1024), (CELL * 3 // 4, CELL)),
        ((1, 500), (1, CELL)),
    ],
)
def test_a_picture_fills_its_cell_and_keeps_its_aspect(size, shown):
    assert extent(contact_sheet(samples((640, 640), size)), 1) == shown


def test_a_small_picture_keeps_its_colours():
    (sample,) = samples((8, 8))
    picture = Image.new("RGB", (8, 8), RED)
    picture.putpixel((0, 0), (0, 0, 255))
    sheet = contact_sheet([replace(sample, image=as_png(picture))])
    pixels = np.asarray(sheet).reshape(-1, 3)
    side = CELL // 8
    assert (pixels == (0, 0, 255)).all(axis=1).sum() == side**2
    assert (pixels == RED).all(axis=1).sum() == 63 * side**2


def test_key_split_and_caption_are_beneath(monkeypatch):
    drawn = {}
    text = ImageDraw.ImageDraw.text

    def noted(self, place, words, **options):
        drawn[words] = self.textbbox(place, words, font=options["font"], anchor=options.get("anchor"))
        text(self, place, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    wanted = samples((64, 64), (64, 64))
    sheet = contact_sheet(wanted)
    for column, sample in enumerate(wanted):
        left, right = MARGIN + column * (CELL + MARGIN), MARGIN + column * (CELL + MARGIN) + CELL
        picture_ends = np.nonzero((np.asarray(sheet)[:, left] == RED).all(axis=1))[0].max()
        box = drawn[sample.key]
        assert box[1] > picture_ends
        assert left <= box[0] < box[2] < right
    assert drawn["train"][2] <= right
    assert drawn["train"][0] > box[2]
    assert drawn["train"][1] > picture_ends
    assert drawn[one_line(wanted[-1].caption)][1] > picture_ends
    assert max(box[3] for box in drawn.values()) < sheet.height


def test_the_tool_draws_a_dataset(make_dataset, tmp_path, capsys):
    dataset, _ = make_dataset()
    path = tmp_path / "sheet.png"
    assert main(["preview", dataset.storage.root, "--output", str(path), "--count", "3"]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    with Image.open(path) as sheet:
        assert sheet.width == MARGIN + 6 * (CELL + MARGIN)
        # Three pictures of noise, and paper where a fourth would be.
        cells = [MARGIN + column * (CELL + MARGIN) + CELL // 2 for column in range(4)]
        middles = [sheet.crop((middle, 0, middle + 1, sheet.height)) for middle in cells]
    assert [len(strip.getcolors(1000)) > 20 for strip in middles] == [True, True, True, False]
    assert set(middles[3].getcolors(1000)) == {(sheet.height, PAPER)}
