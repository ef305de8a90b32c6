"""A hundred odd files: each is taken as it should be, or is left out with the reason that is true."""

import re
from pathlib import Path

from PIL import features

from import_support import items_of, read_all
from odd_files import KEPT, NOT_FOLLOWED, REDONE, caption_of, hostile_entries, table, write
from shards.format.sample import open_image
from shards.sources.picture import ImageError, kept
from shards.sources.source import SourceSpec


def test_each_odd_file_becomes_what_it_should(tmp_path):
    files = write(tmp_path)
    assert len(files) >= 100
    spec = SourceSpec("folder", str(tmp_path))
    items, left_out = items_of(spec, val_fraction=0.0)
    followed = sum(becomes == NOT_FOLLOWED for *_, becomes in hostile_entries())
    assert left_out == {"caption without a picture": followed}
    assert {item.picture: item.caption for item in items} == {name: caption_of(name) for name in files}
    wrong = {}
    for item, data in zip(items, read_all(spec, items), strict=True):
        expected_data, becomes = files[item.picture]
        assert data == expected_data
        if (found := what_becomes_of(data)) != becomes and not re.search(re.escape(becomes), found):
            wrong[item.picture] = f"{found}, not {becomes}"
    assert wrong == {}


def what_becomes_of(data):
    """What is done with a picture, or why it is not used, after looking whether it is stored as it is seen."""
    reason = reason_against(data)
    if reason:
        assert not re.search(r"0x[0-9a-f]|BytesIO|\n", reason)
        assert reason == reason_against(data)
        return reason
    found = kept(data, 1024)
    assert found.pixels.mode == "RGB"
    assert open_image(found.data).convert("RGB").tobytes() == found.pixels.tobytes()
    assert (found.data == data) == found.verbatim
    return KEPT if found.verbatim else REDONE


def reason_against(data):
    try:
        kept(data, 1024)
    except ImageError as error:
        return str(error)
    return ""


def test_the_page_has_each_file():
    """What becomes of each is held by the test above."""
    page = (Path(__file__).parents[2] / "docs" / "odd-files.md").read_text().splitlines()
    rows = [line for line in page if line.startswith("| `")]
    avif = [] if features.check("avif") else [row for row in rows if "avif" in row]
    assert [row for row in rows if row not in avif] == list(table())


def test_the_files_are_small(tmp_path):
    assert sum(len(data) for data, _ in write(tmp_path).values()) < 10 << 20
