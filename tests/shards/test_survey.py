"""What is said of an import's pictures before a model loads, and a source that is completed later."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from import_support import coco_content, encoded, items_of, read_all, tar_of, write_coco
from shards.dataset.failed_samples import HOPELESS
from shards.errors import UsageError
from shards.sources.catalogue import catalogued
from shards.sources.filters import Rules
from shards.sources.picture import MissingPictureError
from shards.sources.source import SourceSpec
from shards.sources.survey import survey
from shards.stores.local import open_storage

COUNT = 24


@pytest.fixture
def coco(tmp_path):
    content, files = coco_content(COUNT, captions=1)
    return SourceSpec("coco", **write_coco(tmp_path / "set", content, files))


def surveyed(spec, most=0.05):
    return survey(spec, items_of(spec, val_fraction=0.0)[0], 1024, most)


def test_a_sound_source_needs_no_words(coco):
    assert surveyed(coco) == ""


def test_a_folder_that_is_not_there_is_named_with_what_is_missing(coco, tmp_path):
    spec = SourceSpec("coco", coco.source, str(tmp_path / "pcis"))
    with pytest.raises(UsageError) as caught:
        surveyed(spec)
    assert str(caught.value) == (
        f"images = {str(tmp_path / 'pcis')!r}: 24 of 24 pictures cannot be used: the source has no such picture "
        "(000000000000.jpg, 000000000001.jpg, 000000000002.jpg, …); correct images, or download them and run "
        "this again"
    )


def test_a_few_are_told_and_more_than_may_fail_are_refused(coco):
    Path(coco.images, "000000000003.jpg").unlink()
    Path(coco.images, "000000000005.jpg").write_bytes(b"")
    line = surveyed(coco, most=0.1)
    assert line.startswith("2 of 24 pictures cannot be used: ")
    assert "the source has no such picture (000000000003.jpg)" in line
    assert "empty (000000000005.jpg)" in line
    with pytest.raises(UsageError, match="2 of 24 pictures cannot be used"):
        surveyed(coco, most=0.05)


def test_pictures_of_which_none_can_be_used_are_refused(coco):
    for path in Path(coco.images).iterdir():
        path.write_bytes(b"<html>moved</html>")
    with pytest.raises(
        UsageError, match=r"none of the 16 pictures looked at can be used: .* is HTML; .*000.jpg, "
    ):
        surveyed(coco)


def test_tars_and_parquet_are_looked_into(tmp_path):
    members = [(f"{n}.{end}", b"text") for n in range(3) for end in ("jpg", "txt")]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    with pytest.raises(
        UsageError, match="none of the 3 pictures looked at can be used: image does not decode: is te"
    ):
        surveyed(SourceSpec("webdataset", str(tmp_path)))
    rows = {"image": [encoded(0), b"GIF8"], "text": ["one", "two"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    line = surveyed(SourceSpec("parquet", str(tmp_path)))
    assert line.startswith(
        "of 2 pictures looked at 1 cannot be used: image does not decode: is GIF, cut off or broken"
    )


def test_a_source_that_is_completed_later_goes_on(coco, tmp_path):
    """What was missing is read where it is by now; nothing else of the source may have changed."""
    root, rules = open_storage(str(tmp_path / "data")), Rules(val_fraction=0.0)
    late = Path(coco.images, "000000000003.jpg")
    data = late.read_bytes()
    late.unlink()
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    catalogued(root, coco, rules, tmp_path / "first").put(root)
    late.write_bytes(data)
    again = catalogued(root, coco, rules, tmp_path / "second")
    assert again.storage.root == root.root
    items = again.items(COUNT)
    assert read_all(coco, items)[3] == data
    assert survey(coco, items, 1024, 0.0) == ""
    Path(coco.images, "000000000004.jpg").write_bytes(b"another")
    with pytest.raises(UsageError, match="has changed"):
        catalogued(root, coco, rules, tmp_path / "third")


def test_a_zip_that_is_completed_later_goes_on(tmp_path):
    content, files = coco_content(COUNT, captions=1)
    name, data = next(iter(files.items()))
    options = write_coco(
        tmp_path / "set", content, {n: d for n, d in files.items() if n != name}, zipped=True
    )
    spec, root, rules = SourceSpec("coco", **options), open_storage(str(tmp_path / "data")), Rules()
    for folder in ("first", "second", "third"):
        (tmp_path / folder).mkdir()
    catalogued(root, spec, rules, tmp_path / "first").put(root)
    assert "1 of 24 pictures cannot be used" in surveyed(spec)
    write_coco(tmp_path / "set", content, files, zipped=True)
    items = catalogued(root, spec, rules, tmp_path / "second").items(20)
    assert read_all(spec, items)[0] == data
    assert survey(spec, items, 1024, 0.0) == ""
    write_coco(tmp_path / "set", content, files | {name: data + b"x", list(files)[1]: data}, zipped=True)
    with pytest.raises(UsageError, match="has changed"):
        catalogued(root, spec, rules, tmp_path / "third")


@pytest.mark.parametrize("zipped", [False, True])
def test_formats_that_are_not_read_are_known_by_name_and_content(tmp_path, zipped):
    content, files = coco_content(COUNT, captions=1)
    for image in content["images"][:10]:
        data = files.pop(image["file_name"])
        image["file_name"] += ".HEIC"
        files[image["file_name"]] = b"\0\0\0\x18ftypheic"
    spec = SourceSpec("coco", **write_coco(tmp_path, content, files, zipped=zipped))
    with pytest.raises(
        UsageError, match=r"10 of 24 pictures cannot be used: a format that is not read \(.heic\).*convert"
    ):
        surveyed(spec)
    files = dict.fromkeys(files, data)  # of another name than content: read all the same
    write_coco(tmp_path, content, files, zipped=zipped)
    assert surveyed(spec) == ""


def test_what_was_missing_is_tried_again():
    assert MissingPictureError.__name__ not in HOPELESS
