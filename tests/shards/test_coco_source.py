"""COCO: every caption with where its picture is, ids of any type, names as other systems write them."""

import zipfile
from pathlib import Path

import pytest

from import_support import (
    coco_content,
    encoded,
    items_of,
    read_all,
    write_coco,
    write_laion,
)
from shards.errors import UsageError
from shards.sources.catalogue import open_source
from shards.sources.source import SourceSpec


@pytest.fixture(params=["folder", "zip"])
def coco(request, tmp_path):
    """A small COCO: the specification and the pictures."""
    content, files = coco_content()
    return SourceSpec("coco", **write_coco(tmp_path, content, files, zipped=request.param == "zip")), files


def test_coco_gives_the_first_caption_or_all(coco):
    spec, files = coco
    first, left_out = items_of(spec)
    assert [item.caption for item in first] == [f"picture {number}, told 0" for number in range(6)]
    assert [item.picture for item in first] == list(files)
    assert left_out == {"further caption": 12}
    every, left_out = items_of(spec, captions="all")
    assert [item.caption for item in every] == [f"picture {n}, told {t}" for n in range(6) for t in range(3)]
    assert len({item.identity for item in every}) == 18
    assert len({item.group for item in every}) == 6
    assert left_out == {}
    assert read_all(spec, every[::3]) == list(files.values())


def test_coco_filters_by_what_its_images_say(coco):
    assert len(items_of(coco[0], min_side=40)[0]) == 2
    assert items_of(coco[0], max_aspect=1.4)[1]["aspect"] == 12
    with pytest.raises(
        UsageError, match=r"min_aesthetic = 5.0: the source has no column aesthetic or .* it has"
    ):
        items_of(coco[0], min_aesthetic=5.0)


def zipped(tmp_path, members, names):
    """A COCO whose pictures are in a zip under other names than in its annotations."""
    content, _ = coco_content(count=len(names), captions=1)
    for image, name in zip(content["images"], names, strict=True):
        image["file_name"] = name
    options = write_coco(tmp_path, content, {}, zipped=True)
    with zipfile.ZipFile(options["images"], "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return SourceSpec("coco", **options)


def test_a_name_in_two_folders_of_a_zip_is_an_error_unless_the_annotation_tells_which(tmp_path):
    members = {"thumbs/0.jpg": encoded(1), "images/0.jpg": encoded(2), "images/train/1.jpg": encoded(3)}
    with pytest.raises(
        UsageError, match=r"'0.jpg' may be thumbs/0.jpg or images/0.jpg; give a zip .* the folder"
    ):
        items_of(zipped(tmp_path, members, ["0.jpg"]))
    spec = zipped(tmp_path, members, ["images/0.jpg", "train/1.jpg"])
    assert read_all(spec, items_of(spec)[0]) == [encoded(2), encoded(3)]
    members = {"__MACOSX/images/._0.jpg": b"mac", "__MACOSX/images/0.jpg": b"mac", "images/0.jpg": encoded(2)}
    spec = zipped(tmp_path, members, ["0.jpg"])
    assert read_all(spec, items_of(spec)[0]) == [encoded(2)]
    spec = zipped(tmp_path, {"0.jpg": encoded(4), "images/0.jpg": encoded(2)}, ["0.jpg"])
    assert read_all(spec, items_of(spec)[0]) == [encoded(4)]


@pytest.mark.parametrize("there", [lambda n: n, lambda n: f"COCO_{n}", lambda n: str(n), float])
@pytest.mark.parametrize("here", [lambda n: n, str, float])
def test_coco_ids_of_any_type(tmp_path, there, here):
    content, files = coco_content(count=3, captions=1)
    if there(0) == "COCO_0":
        here = there
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        image["id"], annotation["image_id"] = there(image["id"]), here(annotation["image_id"])
    found, left_out = items_of(SourceSpec("coco", **write_coco(tmp_path, content, files)), val_fraction=0.0)
    assert ([item.picture for item in found], left_out) == (list(files), {})


def test_annotations_of_other_images_are_refused(tmp_path):
    content, files = coco_content(count=3, captions=1)
    for annotation in content["annotations"]:
        annotation["image_id"] += 100
    with pytest.raises(
        UsageError, match="no annotation's image_id is the id of one of its 3 images, the first 100"
    ):
        items_of(SourceSpec("coco", **write_coco(tmp_path, content, files)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "no JSON object"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": []}]}', "have no caption"),
        ('{"images": {}, "annotations": []}', "no list 'images'"),
    ],
)
def test_annotations_of_another_shape(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        open_source(SourceSpec("coco", str(tmp_path / "a.json"), str(tmp_path)))


def test_coco_needs_pictures_and_annotations(tmp_path):
    with pytest.raises(UsageError, match=r"images is needed"):
        open_source(SourceSpec("coco", "a.json"))
    with pytest.raises(UsageError, match="no such file"):
        open_source(SourceSpec("coco", str(tmp_path / "a.json"), str(tmp_path)))
    with pytest.raises(UsageError, match="leave it out"):
        open_source(SourceSpec("coco", "a.json", "b", image_column="x"))


def test_hostile_annotations_are_left_out_one_by_one(tmp_path):
    content, files = coco_content(count=3, captions=1)
    content["images"] += [7, {"id": [1], "file_name": "x.jpg"}, {"id": 0, "file_name": "other.jpg"}, {}]
    content["annotations"] += [None, {"image_id": {}, "caption": "nobody's"}, {"image_id": 1, "caption": 5}]
    found, left_out = items_of(SourceSpec("coco", **write_coco(tmp_path, content, files)), captions="all")
    assert [item.picture for item in found] == list(files)
    assert left_out == {
        "caption missing": 2,
        "caption that is a number, not text": 1,
        "no picture named": 1,
        "caption of an image that is not listed": 1,
    }


def test_coco_names_as_other_systems_write_them(tmp_path):
    content, _ = coco_content(count=2, captions=1)
    for image, name in zip(content["images"], ("i\\0.jpg", "caf\u00e9.jpg"), strict=True):
        image["file_name"] = name
    files = {"i/0.jpg": encoded(0), "cafe\u0301.jpg": encoded(1)}
    for zipped in (False, True):
        folder = tmp_path / f"{zipped}"
        (folder / "val2017" / "i").mkdir(parents=True)
        spec = SourceSpec("coco", **write_coco(folder, content, files, zipped=zipped))
        found, left_out = items_of(spec, val_fraction=0.0)
        assert (read_all(spec, found), left_out) == (list(files.values()), {})


def test_a_zip_may_have_its_suffix_in_capitals(tmp_path):
    content, files = coco_content(count=2, captions=1)
    options = write_coco(tmp_path, content, files, zipped=True)
    spec = SourceSpec("coco", options["source"], str(Path(options["images"]).rename(tmp_path / "P.ZIP")))
    assert read_all(spec, items_of(spec)[0]) == list(files.values())


def test_tars_with_captions_facts_and_places(tmp_path):
    spec = SourceSpec("webdataset", str(write_laion(tmp_path / "laion")))
    found, left_out = items_of(spec)
    assert [item.caption for item in found] == [f"picture {number}" for number in range(8)]
    assert left_out == {}
    assert read_all(spec, found) == [encoded(number) for number in range(8)]
    assert [item.place.file for item in found[3:5]] == ["00000.tar", "00001.tar"]


def test_captions_of_images_that_coco_does_not_list_are_counted(tmp_path):
    content, files = coco_content(2, captions=1)
    content["annotations"] += [
        {"id": 9, "image_id": 77, "caption": "of nothing"},
        {"id": 10, "image_id": "x"},
    ]
    items, left_out = items_of(SourceSpec("coco", **write_coco(tmp_path, content, files)))
    assert len(items) == 2
    assert left_out == {"caption of an image that is not listed": 2}


def test_a_caption_column_of_coco_s_images_is_read_there(tmp_path):
    content, files = coco_content(2, captions=1)
    for image in content["images"]:
        image["title"] = f"title of {image['id']}"
    items, _ = items_of(SourceSpec("coco", **write_coco(tmp_path, content, files), caption_column="title"))
    assert [item.caption for item in items] == ["title of 0", "title of 1"]
