"""What each kind of source says of itself: every caption with where its picture lies, and nothing outside of it."""

import importlib
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from import_support import (
    coco_content,
    encoded,
    items_of,
    laion_samples,
    read_all,
    tar_of,
    write_coco,
    write_laion,
)
from s3_support import use
from shards.errors import StorageError, UsageError
from shards.sources import parquet_rows as rows
from shards.sources.catalogue import catalogued, open_source
from shards.sources.filters import Rules
from shards.sources.item import Item, Place
from shards.sources.picture import MAX_BYTES, ImageError
from shards.sources.picture_bytes import open_originals
from shards.sources.source import SourceSpec
from shards.stores.local import open_storage


def read(spec, *places):
    return read_all(spec, [Item("", "", place) for place in places])


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


OUTSIDE = (
    "../secret.jpg",
    "/etc/passwd",
    "a/../../secret.jpg",
    "..\\secret.jpg",
    "a\0b.jpg",
    "",
    None,
    7,
    ["x"],
)


@pytest.mark.parametrize("zipped", [False, True])
def test_no_name_leads_out_of_the_pictures(tmp_path, zipped):
    content, files = coco_content(count=len(OUTSIDE) + 2, captions=1)
    for image, name in zip(content["images"], OUTSIDE, strict=False):
        image["file_name"] = name
    (tmp_path / "secret.jpg").write_bytes(encoded(1))
    spec = SourceSpec("coco", **write_coco(tmp_path / "set", content, files, zipped=zipped))
    found, left_out = items_of(spec)
    assert [item.picture for item in found] == list(files)[-2:]
    assert left_out == {"no picture named": 4, "a name that leads out of the source or is no path": 5}


def test_links_and_absent_pictures_fail_when_they_are_read(tmp_path):
    content, files = coco_content(count=5, captions=1)
    spec = SourceSpec("coco", **write_coco(tmp_path / "set", content, files))
    folder, names = Path(spec.images), list(files)
    (tmp_path / "secret.jpg").write_bytes(encoded(1))
    (folder / names[0]).unlink()
    (folder / names[0]).symlink_to(tmp_path / "secret.jpg")
    (folder / names[1]).unlink()
    found, _ = items_of(spec)
    assert len(found) == 5
    originals = open_originals(spec)
    for item in found[:2]:
        with pytest.raises(ImageError, match="the source has no such picture"):
            originals.read(item.place)
    assert originals.read(found[2].place) == files[names[2]]
    (folder / names[2]).unlink()
    with pytest.raises(ImageError, match="not there any more"):
        originals.read(found[2].place)
    (folder / names[3]).write_bytes(files[names[3]][:50])
    with pytest.raises(StorageError, match="cut short"):
        originals.read(found[3].place)
    with pytest.raises(ImageError, match="at most"):
        originals.read(Place(names[4], size=MAX_BYTES + 1))


def test_a_zip_is_read_by_name_and_not_believed(tmp_path):
    content, files = coco_content(count=3, captions=1)
    spec = SourceSpec("coco", **write_coco(tmp_path, content, files, zipped=True))
    found, _ = items_of(spec)
    assert found[0].place.member == f"val2017/{found[0].picture}"
    path = Path(spec.images)
    data = bytearray(path.read_bytes())
    data[data.find(files[found[1].picture]) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageError, match="CRC"):
        read(spec, found[1].place)
    with pytest.raises(ImageError, match="is not of the 10 bytes"):
        read(spec, Place(found[0].place.file, found[0].place.member, size=10))
    with pytest.raises(ImageError, match="cannot be read"):
        read(spec, Place(found[0].place.file, "none", size=10))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"../../{found[0].picture}", files[found[0].picture])
    with pytest.raises(ImageError, match="no such picture"):
        read(spec, items_of(spec)[0][0].place)
    path.write_bytes(b"PK")
    with pytest.raises(UsageError, match="no whole zip"):
        open_source(spec)
    path.unlink()
    with pytest.raises(UsageError, match="is not there"):
        open_source(spec)


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


@pytest.mark.parametrize(
    ("rules", "kept", "reason"),
    [
        ({"min_side": 40}, {2, 5}, "side"),
        ({"max_aspect": 1.2}, {2, 5}, "aspect"),
        ({"language": ("EN",)}, {1, 3, 5, 7}, "language"),
        ({"language": ("en", "de")}, set(range(8)), ""),
        ({"min_aesthetic": 4.45}, {5, 6, 7}, "aesthetic"),
        ({"min_similarity": 0.245}, {5, 6, 7}, "similarity"),
        ({"min_similarity": 1000.0, "similarity_column": "width"}, set(), "similarity"),
    ],
)
def test_filters_go_by_columns(tmp_path, rules, kept, reason):
    found, left_out = items_of(SourceSpec("webdataset", str(write_laion(tmp_path))), **rules)
    assert {int(item.caption.split()[-1]) for item in found} == kept
    assert left_out == ({reason: 8 - len(kept)} if reason else {})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"min_similarity": 0.3, "similarity_column": "clip"},
            r"similarity_column = 'clip': .* it has key, caption",
        ),
        ({"similarity_column": "similarity"}, "without min_similarity"),
        ({"language_column": "LANGUAGE"}, "without language nothing"),
    ],
)
def test_a_filter_needs_its_column_and_a_column_its_filter(tmp_path, rules, message):
    with pytest.raises(UsageError, match=message):
        items_of(SourceSpec("webdataset", str(write_laion(tmp_path))), **rules)


def test_what_is_not_told_does_not_pass(tmp_path):
    odd = [None, "x", "nan", [], True, 10**400, "0.9"]
    members = [m for n, value in enumerate(odd) for m in laion_samples([n], similarity=value)]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    found, left_out = items_of(SourceSpec("webdataset", str(tmp_path)), min_similarity=0.5)
    assert [item.caption for item in found] == ["picture 4", "picture 6"]  # True counts as 1
    assert left_out == {"similarity not told": 5}


def test_equal_hashes_are_one_picture(tmp_path):
    same = [*laion_samples([1]), *laion_samples([2], sha256="ab" * 32), *laion_samples([3], sha256="ab" * 32)]
    (tmp_path / "a.tar").write_bytes(tar_of(same))
    spec = SourceSpec("webdataset", str(tmp_path))
    assert items_of(spec)[1] == {"further caption": 1}
    found, _ = items_of(spec, captions="all")
    assert [item.group for item in found[1:]] == ["ab" * 32] * 2


def test_a_column_of_captions_may_be_named_and_hold_several(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(laion_samples([1, 2], said=["one", "two"], caption="alt text")))
    spec = SourceSpec("webdataset", str(tmp_path), caption_column="said")
    found, left_out = items_of(spec, captions="all", val_fraction=0.0)
    assert ([item.caption for item in found], left_out) == (["one", "two"] * 2, {})
    with pytest.raises(UsageError, match=r"caption_column = 'x': the source has no such column; it has key"):
        open_source(SourceSpec("webdataset", str(tmp_path), caption_column="x"))
    without_text = [member for member in laion_samples([1], caption="alt") if not member[0].endswith("txt")]
    (tmp_path / "a.tar").write_bytes(tar_of(without_text))
    assert [item.caption for item in items_of(SourceSpec("webdataset", str(tmp_path)))[0]] == ["alt"]


def header(name, kind, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def test_hostile_members_are_names_and_nothing_else(tmp_path):
    members = [
        *laion_samples([0]),
        ("../../evil.jpg", encoded(1)),
        ("../../evil.txt", b"climbs"),
        (header("link.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""),
        ("link.txt", b"a link"),
        (header("hard.jpg", tarfile.LNKTYPE, "000000000.jpg"), b""),
        ("hard.txt", b"a hard link"),
        ("binary.jpg", encoded(2)),
        ("binary.txt", b"\xff\xfe\x00"),
        ("latin.jpg", encoded(2)),
        ("latin.txt", "café".encode("latin-1")),
        ("huge.jpg", encoded(3)),
        ("huge.txt", b"word " * 300_000),
        ("broken.jpg", encoded(4)),
        ("broken.json", b"{" * 5000),
        ("broken.txt", b"sound all the same"),
        ("only.txt", b"no picture"),
        ("alone.jpg", encoded(5)),
        ("\udcff\n.jpg", encoded(6)),
        ("\udcff\n.txt", b"an odd name"),
    ]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    before = sorted(tmp_path.rglob("*"))
    spec = SourceSpec("webdataset", str(tmp_path))
    found, left_out = items_of(spec)
    assert [item.caption for item in found] == ["picture 0", "climbs", "sound all the same", "an odd name"]
    assert left_out == {
        "no picture": 3,
        "caption not UTF-8": 2,
        "caption too long": 1,
        "caption missing": 1,
    }
    assert read_all(spec, found) == [encoded(number) for number in (0, 1, 4, 6)]
    assert found[-1].picture.encode().isascii()
    assert sorted(tmp_path.rglob("*")) == before


def test_hidden_members_are_passed_over(tmp_path):
    """What tar on a Mac writes before each member, and what systems leave in folders."""
    members = []
    for name, data in laion_samples(range(3)):
        members += [(f"./._{name}", b"mac"), (f"./{name}", data), (f"__MACOSX/._{name}", b"mac")]
    (tmp_path / "a.tar").write_bytes(tar_of([*members, (".DS_Store", b"mac")]))
    (tmp_path / "._a.tar").write_bytes(b"mac")
    found, left_out = items_of(SourceSpec("webdataset", str(tmp_path)))
    assert ([item.caption for item in found], left_out) == ([f"picture {n}" for n in range(3)], {})


def test_keys_with_dots(tmp_path):
    members = [
        ("v1.0.jpg", encoded(0)),
        ("v1.0.txt", b"picture 0"),
        ("v1.1.txt", b"picture 1"),
        ("v1.1.JPG", encoded(1)),
        ("a.b/v1.2.webp", encoded(2)),
        ("a.b/v1.2.json", b'{"caption": "picture 2"}'),
        ("3.jpg", encoded(3)),
        ("3.mask.png", encoded(9)),
        ("3.txt", b"picture 3"),
    ]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    spec = SourceSpec("webdataset", str(tmp_path))
    found, left_out = items_of(spec)
    assert ([item.caption for item in found], left_out) == ([f"picture {n}" for n in range(4)], {})
    assert read_all(spec, found) == [encoded(n) for n in range(4)]


def test_members_of_no_known_suffix_take_no_sample_with_dots_in_its_key(tmp_path):
    """Sorted by name, classes and latents come before the picture."""
    members = [
        (f"v1.{n}.{end}", {"cls": b"7", "jpg": encoded(n), "npy": b"x", "txt": b"picture %d" % n}[end])
        for n in range(3)
        for end in ("cls", "jpg", "npy", "txt")
    ]
    members += [
        ("v1.3.heic", b"x"),
        ("v1.3.txt", b"a phone's"),
        ("v1.4.jpg", encoded(4)),
        ("v1.4.txt", b"last"),
    ]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    spec = SourceSpec("webdataset", str(tmp_path))
    found, left_out = items_of(spec, val_fraction=0.0)
    assert [item.caption for item in found] == ["picture 0", "picture 1", "picture 2", "last"]
    assert read_all(spec, found) == [encoded(n) for n in (0, 1, 2, 4)]
    assert left_out == {"a format that is not read (.heic)": 1, "no member that is read": 1}


def test_formats_that_are_not_read_are_counted_as_such(tmp_path):
    (tmp_path / "a.tar").write_bytes(
        tar_of(
            [*laion_samples([0]), ("1.heic", b"x"), ("1.txt", b"one"), ("2.gif", b"GIF8"), ("2.txt", b"two")]
        )
    )
    found, left_out = items_of(SourceSpec("webdataset", str(tmp_path)))
    assert [item.caption for item in found] == ["picture 0", "two"]
    assert left_out == {"a format that is not read (.heic)": 1}


def test_captions_in_tars_as_people_save_them(tmp_path):
    members = [
        *[("a.jpg", encoded(0)), ("a.txt", "\ufeffa fox\r\n".encode())],
        *[("b.jpg", encoded(1)), ("b.txt", "ein K\u00e4fer".encode("utf-16"))],
        *[("c.jpg", encoded(2)), ("c.json", '\ufeff{"caption": "a cat"}'.encode())],
        *[("d.jpg", encoded(3)), ("d.caption", b"a dog\n")],
        *[("e.jpg", encoded(4)), ("e.caption", b"not this"), ("e.txt", b"an elk")],
        *[("f.jpg", encoded(5)), ("f.json", b"{broken")],
        *[("g.jpg", encoded(6)), ("g.json", b'["a goat"]')],
        *[("h.jpg", encoded(7)), ("h.json", b'{"caption": {"en": "a hen"}}')],
        *[("i.jpg", encoded(8)), ("i.json", b"{broken"), ("i.txt", b"an ibis")],
    ]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    found, left_out = items_of(SourceSpec("webdataset", str(tmp_path)), val_fraction=0.0)
    assert [i.caption for i in found] == ["a fox", "ein K\u00e4fer", "a cat", "a dog", "an elk", "an ibis"]
    assert left_out == {
        "a .json that is no JSON object": 2,
        "caption that is an object, not text": 1,
    }


def test_tars_without_captions_are_refused_with_the_remedy(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of([("0.jpg", encoded(0)), ("0.json", b'{"alt": "a fox"}')]))
    spec = SourceSpec("webdataset", str(tmp_path))
    (tmp_path / "work").mkdir()
    with pytest.raises(
        UsageError,
        match=r"1 caption missing \(a.tar:0\); captions are NAME.txt .*caption_column \(there: alt\)",
    ):
        catalogued(open_storage(str(tmp_path / "data")), spec, Rules(), tmp_path / "work")


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("webdataset", "a.tar.zst", "a.tar.zst is compressed"),
        ("webdataset", "a.tar.bz2", "a.tar.bz2 is compressed"),
        ("webdataset", "a.txz", "a.txz is compressed"),
        ("webdataset", "a.zip", "no .tar file there, but 1 .zip files, the first 'a.zip'; unpack them"),
        ("webdataset", "a.jpg", "no .tar file there, but 1 .jpg files; give kind folder"),
        ("webdataset", "a.parquet", "no .tar file there, but 1 .parquet files; give kind parquet"),
        ("parquet", "a.tar", "no .parquet file there, but 1 .tar files; give kind tars"),
    ],
)
def test_what_is_there_instead_of_a_kind_s_files_is_named(tmp_path, kind, name, message):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=message):
        open_source(SourceSpec(kind, str(tmp_path)))


def test_members_sorted_by_type(tmp_path):
    members = sorted(laion_samples(range(4)), key=lambda member: member[0].rpartition(".")[2])
    members += [("lost.txt", b"no picture"), ("alone.jpg", encoded(8))]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    spec = SourceSpec("webdataset", str(tmp_path))
    found, left_out = items_of(spec, min_similarity=0.0)
    assert [item.caption for item in found] == [f"picture {n}" for n in range(4)]
    assert read_all(spec, found) == [encoded(n) for n in range(4)]
    assert left_out == {"no picture": 1, "caption missing": 1}


def test_several_tars_in_one(tmp_path):
    first, second = tar_of(laion_samples(range(3))), tar_of(laion_samples(range(3, 5)))
    same_keys = tar_of([("000000000.jpg", encoded(7)), ("000000000.txt", b"another")])
    (tmp_path / "a.tar").write_bytes(first + second + same_keys)
    spec = SourceSpec("webdataset", str(tmp_path))
    found, left_out = items_of(spec, val_fraction=0.0)
    assert ([item.caption for item in found], left_out) == (
        [*(f"picture {n}" for n in range(5)), "another"],
        {},
    )
    assert read_all(spec, found) == [encoded(n) for n in (0, 1, 2, 3, 4, 7)]
    (tmp_path / "a.tar").write_bytes(first + b"x" * 512)
    with pytest.raises(
        UsageError, match=r"follows its end, from byte 20,480 on, is no other tar: .*pack it again"
    ):
        items_of(spec)


def test_a_header_that_is_broken_in_the_middle_is_no_end(tmp_path):
    data = bytearray(tar_of(laion_samples(range(3))))
    place = data.find(b"000000001.jpg")
    data[place : place + 512] = b"x" * 512
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UsageError, match=r"a.tar is no whole tar: what follows .* is no other tar"):
        items_of(SourceSpec("webdataset", str(tmp_path)))


@pytest.mark.parametrize(("module", "tool"), [("gzip", "gunzip"), ("bz2", "bunzip2"), ("lzma", "unxz")])
def test_a_compressed_tar_is_named_whatever_its_name(tmp_path, module, tool):
    compressed = importlib.import_module(module).compress(tar_of(laion_samples(range(2))))
    (tmp_path / "a.tar").write_bytes(compressed)
    with pytest.raises(
        UsageError, match=rf"a.tar is no whole tar: it is compressed .*: unpack it with {tool} first"
    ):
        open_source(SourceSpec("webdataset", str(tmp_path)))
    (tmp_path / "a.tar").rename(tmp_path / "a.tar.gz")
    with pytest.raises(UsageError, match=r"a.tar.gz is compressed, .* unpack it to a .tar file first"):
        open_source(SourceSpec("webdataset", str(tmp_path)))
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(UsageError, match=r"b.tar is no whole tar: empty file"):
        open_source(SourceSpec("webdataset", str(tmp_path)))


def test_a_tar_that_is_cut_off_is_named(tmp_path):
    write_laion(tmp_path)
    data = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(data[:3000])
    with pytest.raises(UsageError, match=r"00001.tar is no whole tar: .*download it again"):
        items_of(SourceSpec("webdataset", str(tmp_path)))


def test_a_tar_that_is_gone_is_no_picture_s_fault(tmp_path):
    spec = SourceSpec("webdataset", str(write_laion(tmp_path)))
    found, _ = items_of(spec)
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(StorageError, match=r"00000.tar does not exist"):
        read(spec, found[0].place)


@pytest.mark.parametrize(
    ("place", "tars"),
    [
        ("", "0123"),
        ("/", "0123"),
        ("/00002.tar", "2"),
        ("/{00001..00002}.tar", "12"),
        ("/0000[03].tar", "03"),
        ("/*.tar", "0123"),
        ("/0000{0,3}*", "03"),
    ],
)
def test_tars_by_folder_name_brace_or_glob(tmp_path, place, tars):
    write_laion(tmp_path, per_tar=1, tars=4)
    (tmp_path / "00000.parquet").write_bytes(b"img2dataset puts one beside each tar")
    found, _ = items_of(SourceSpec("webdataset", f"{tmp_path}{place}"))
    assert "".join(item.caption[-1] for item in found) == tars


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/none", "no .tar file there"),
        ("/{00000..00002}.tar", r"00002.tar \(1 files\) is not there"),
        ("/{00000.tar", "close each brace"),
        ("/{0..9999999}.tar", "more than 1,000,000 files"),
        ("/z*.tar", "no .tar file there"),
    ],
)
def test_tars_that_are_not_there(tmp_path, place, message):
    write_laion(tmp_path, per_tar=1)
    with pytest.raises(UsageError, match=message):
        open_source(SourceSpec("webdataset", f"{tmp_path}{place}"))


def test_options_that_tars_have_no_use_for(tmp_path):
    with pytest.raises(UsageError, match=r"images = 'x': tars hold"):
        open_source(SourceSpec("webdataset", str(tmp_path), "x"))
    with pytest.raises(UsageError, match="known by their suffix"):
        open_source(SourceSpec("webdataset", str(tmp_path), image_column="x"))


def write_parquet(folder, column, values, *, per_group=3, **columns):
    folder.mkdir(parents=True, exist_ok=True)
    captions = {"TEXT": [f"picture {number}" for number in range(len(values))]}
    table = pa.table({column: values} | captions | columns)
    pq.write_table(table, folder / "00000.parquet", row_group_size=per_group)
    return SourceSpec("parquet", str(folder))


@pytest.mark.parametrize("column", ["image", "jpg"])
@pytest.mark.parametrize("as_struct", [False, True])
def test_parquet_with_bytes(tmp_path, column, as_struct):
    pictures = [encoded(number) for number in range(10)]
    values = (
        [{"bytes": data, "path": f"../{n}.jpg"} for n, data in enumerate(pictures)] if as_struct else pictures
    )
    spec = write_parquet(tmp_path, column, values)
    found, _ = items_of(spec)
    assert [item.caption for item in found] == [f"picture {number}" for number in range(10)]
    assert read_all(spec, found) == pictures
    order = [7, 2, 3, 9, 0, 9]  # a repaired shard or a retry asks for rows out of their order
    assert read_all(spec, [found[n] for n in order]) == [pictures[n] for n in order]


def test_near_rows_are_read_on_to_and_far_ones_begun_at(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "PASSED_OVER", 4)
    spec = write_parquet(tmp_path, "image", [encoded(number) for number in range(20)])
    begun, begin = [], rows.ParquetRows._begin
    monkeypatch.setattr(
        rows.ParquetRows, "_begin", lambda self, place: begun.append(place.row) or begin(self, place)
    )
    places = [Place("00000.parquet", row=row) for row in (0, 1, 4, 18, 19, 2)]
    assert read(spec, *places) == [encoded(place.row) for place in places]
    assert begun == [0, 18, 2]


def test_parquet_with_paths(tmp_path):
    names = ["a/0.jpg", "1.jpg", "../out.jpg", "/etc/passwd", "gone.jpg", None]
    spec = write_parquet(tmp_path / "set", "file_name", names)
    (tmp_path / "out.jpg").write_bytes(encoded(9))
    for number, name in enumerate(names[:2]):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_bytes(encoded(number))
    found, left_out = items_of(spec)
    assert [item.picture for item in found] == ["a/0.jpg", "1.jpg", "gone.jpg"]
    assert left_out == {"no picture named": 1, "a name that leads out of the source or is no path": 2}
    assert read_all(spec, found[:2]) == [encoded(0), encoded(1)]
    with pytest.raises(ImageError, match="no such picture"):
        read_all(spec, found[2:])
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    (tmp_path / "pictures" / "a" / "0.jpg").write_bytes(encoded(5))
    elsewhere = SourceSpec("parquet", str(tmp_path / "set"), str(tmp_path / "pictures"))
    assert read_all(elsewhere, items_of(elsewhere)[0][:1]) == [encoded(5)]


def test_parquet_lists_of_captions_and_filters(tmp_path):
    said = [["one", "two"], [], None, ["three"]]
    spec = write_parquet(
        tmp_path, "image", [encoded(n) for n in range(4)], said=said, HEIGHT=[50] * 4, WIDTH=[9, 60, 60, 60]
    )
    spec = SourceSpec("parquet", spec.source, caption_column="said")
    found, left_out = items_of(spec, captions="all", min_side=40)
    assert [item.caption for item in found] == ["three"]
    assert left_out == {"side": 2, "caption missing": 2}


PAIR = ["one", "two"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([b"one", b"two"]), PAIR),
        (pa.array([b"one", b"two"], pa.large_binary()), PAIR),
        (pa.array(PAIR).dictionary_encode(), PAIR),
        (pa.array([b"one", b"two"]).dictionary_encode(), PAIR),
        (pa.array(PAIR, pa.large_string()), PAIR),
        (pa.array(PAIR, pa.string_view()), PAIR),
        (pa.array([b"one", b"two"], pa.binary_view()), PAIR),
        (pa.array([{"text": "one", "id": 1}, {"text": "two", "id": 2}]), PAIR),
        (pa.array([{"raw": b"one"}, {"raw": b"two"}]), PAIR),
        (pa.array([[{"raw": "one"}, {"raw": "more"}], [{"raw": "two"}]]), PAIR),
        (pa.array([{"raw": ["one", "more"]}, {"raw": ["two"]}]), PAIR),
        (pa.array([[b"one"], [b"two"]]), PAIR),
        (pa.array([["one", "more"], ["two", "more"]], pa.list_(pa.string(), 2)), PAIR),
        (pa.array([["one"], ["two"]], pa.list_view(pa.string())), PAIR),
        (pa.array(["\ufeffone", "two"]), PAIR),
        (pa.array([b"\xef\xbb\xbfone", b"two"]), PAIR),
        (pa.array([b"one", b"caf\xe9"]), ["one"]),
        (pa.array([{"text": "one"}, None]), ["one"]),
    ],
    ids=str,
)
def test_parquet_captions_of_any_type(tmp_path, column, expected):
    images = [encoded(number) for number in range(2)]
    pq.write_table(pa.table({"image": images, "caption": column}), tmp_path / "a.parquet")
    found, left_out = items_of(SourceSpec("parquet", str(tmp_path)), val_fraction=0.0)
    assert [item.caption for item in found] == expected
    assert sum(left_out.values()) - left_out.get("further caption", 0) == 2 - len(expected)


@pytest.mark.parametrize(
    "kind", [pa.binary_view(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())], ids=str
)
def test_parquet_pictures_of_any_type(tmp_path, kind):
    images = pa.array([encoded(0), encoded(1)]).cast(kind)
    pq.write_table(pa.table({"image": images, "text": PAIR}), tmp_path / "a.parquet")
    spec = SourceSpec("parquet", str(tmp_path))
    assert read_all(spec, items_of(spec)[0]) == [encoded(0), encoded(1)]
    names = pa.array(["0.jpg", "1.jpg"]).dictionary_encode()
    pq.write_table(pa.table({"file_name": names, "text": PAIR}), tmp_path / "a.parquet")
    assert [item.picture for item in items_of(spec)[0]] == ["0.jpg", "1.jpg"]


def test_a_caption_column_s_type_or_fields_are_named(tmp_path):
    said = [{"en": "one", "fr": "un", "id": 1}]
    pq.write_table(pa.table({"image": [encoded(1)], "caption": said, "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"holds struct<.*; name one: caption.en, caption.fr"):
        open_source(SourceSpec("parquet", str(tmp_path)))
    with pytest.raises(UsageError, match=r"caption_column = 'caption.id': .* name one: caption.en"):
        open_source(SourceSpec("parquet", str(tmp_path), caption_column="caption.id"))
    with pytest.raises(UsageError, match=r"caption_column = 'n': the column holds int64; captions are text"):
        open_source(SourceSpec("parquet", str(tmp_path), caption_column="n"))
    found, _ = items_of(SourceSpec("parquet", str(tmp_path), caption_column="caption.fr"))
    assert [item.caption for item in found] == ["un"]


@pytest.mark.parametrize("as_struct", [False, True])
def test_failed_downloads_are_left_out_and_counted(tmp_path, as_struct):
    """What img2dataset writes with --output_format parquet: a row for every link, bytes where it worked."""
    pictures = [encoded(n) if n % 3 else None for n in range(9)]
    status = ["success" if picture else "failed_to_download" for picture in pictures]
    status[0] = "success"  # of an encoder that wrote nothing
    pictures = (
        [picture and {"bytes": picture, "path": None} for picture in pictures] if as_struct else pictures
    )
    spec = write_parquet(tmp_path, "jpg", pictures, status=status, key=[f"{n:09d}" for n in range(9)])
    found, left_out = items_of(spec, val_fraction=0.0)
    assert [item.caption for item in found] == [f"picture {n}" for n in range(9) if n % 3]
    assert left_out == {"failed download": 2, "no picture in the row": 1}
    assert read_all(spec, found) == [encoded(n) for n in range(9) if n % 3]


PEAK = """
import json, resource, sys
from collections import Counter
from shards.sources.catalogue import open_source
from shards.sources.filters import Rules
from shards.sources.parquet_rows import ParquetRows
from shards.sources.item import Place
from shards.sources.selection import taken
from shards.sources.source import SourceSpec
from shards.stores.local import open_storage

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

spec = SourceSpec("parquet", sys.argv[1])
list(taken(open_source(spec).found(()), Rules(val_fraction=0.0, test_fraction=0.0), (), Counter()))
before = peak()
left_out, examples = Counter(), {}
big = SourceSpec("parquet", sys.argv[2])
items = list(taken(open_source(big).found(()), Rules(val_fraction=0.0, test_fraction=0.0), (), left_out, examples))
for row in range(0, 60, 20):
    ParquetRows(open_storage(sys.argv[2]), None).read(Place("a.parquet", row=row))
print(json.dumps([len(items), left_out, examples, peak() - before]))
"""


@pytest.mark.parametrize(
    ("column", "shape"),
    [("caption", "plain"), ("caption", "list"), ("caption", "struct"), ("image", "plain")],
)
def test_what_many_rows_share_is_in_memory_once(tmp_path, column, shape):
    """60 rows of one text or picture of 10 MB are 14 kB on disk, and would be 600 MB if each had its own."""
    count = 60
    large = pa.array([b"\x89PNG" + bytes(10_000_000) if column == "image" else "x" * 10_000_000])
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), large)
    if shape == "list":
        shared = pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), shared)
    if shape == "struct":
        shared = pa.StructArray.from_arrays([shared], names=["caption"])
    told = {
        "image": pa.array([encoded(1)] * count),
        "caption": pa.array([f"words {row}" for row in range(count)]),
    }
    for name, columns in (("small", told), ("big", {**told, column: shared})):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(columns), tmp_path / name / "a.parquet")
    assert (tmp_path / "big" / "a.parquet").stat().st_size < 1_000_000
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "big")],
        capture_output=True,
        text=True,
        check=True,
    )
    taken, left_out, examples, grown = json.loads(run.stdout)
    assert grown < 200  # MiB
    if column == "image":
        assert (taken, left_out) == (count, {})
    else:
        assert (taken, left_out) == (0, {"caption too long": count})
        assert examples == {"caption too long": [f"a.parquet:{row}" for row in range(3)]}


@pytest.mark.parametrize("with_status", [False, True])
def test_failed_downloads_are_found_in_files_without_statistics(tmp_path, with_status):
    status = {"status": ["success", "failed_to_download", "success"]} if with_status else {}
    table = pa.table({"jpg": [encoded(0), None, encoded(2)], "caption": ["a", "b", "c"], **status})
    pq.write_table(table, tmp_path / "a.parquet", write_statistics=False)
    found, left_out = items_of(SourceSpec("parquet", str(tmp_path)), val_fraction=0.0)
    assert [item.caption for item in found] == ["a", "c"]
    assert left_out == {"failed download" if with_status else "no picture in the row": 1}


def test_parquet_without_what_it_needs(tmp_path):
    table = pa.table({"a": [1], "b": ["x"]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"no column of captions .* among a, b; name it with caption_column"):
        open_source(SourceSpec("parquet", str(tmp_path)))
    with pytest.raises(UsageError, match=r"no column of pictures .* among a, b; name it with image_column"):
        open_source(SourceSpec("parquet", str(tmp_path), caption_column="b"))
    with pytest.raises(UsageError, match=r"image_column = 'z': .* no such column; it has a, b"):
        open_source(SourceSpec("parquet", str(tmp_path), caption_column="b", image_column="z"))
    with pytest.raises(UsageError, match="holds int64; pictures are bytes"):
        open_source(SourceSpec("parquet", str(tmp_path), caption_column="b", image_column="a"))
    beside_tars = pa.table({"key": ["0"], "url": ["x"], "caption": ["a"], "status": ["success"]})
    pq.write_table(beside_tars, tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"what img2dataset says of them; give the tars beside them"):
        open_source(SourceSpec("parquet", str(tmp_path)))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UsageError, match="cannot be read as parquet"):
        open_source(SourceSpec("parquet", str(tmp_path)))
    bytes_there = write_parquet(tmp_path / "set", "image", [encoded(1)])
    with pytest.raises(UsageError, match="holds the pictures themselves"):
        open_source(SourceSpec("parquet", bytes_there.source, str(tmp_path)))


def test_a_parquet_file_that_lacks_a_column_of_the_first(tmp_path):
    write_parquet(tmp_path, "image", [encoded(1)])
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "00001.parquet")
    with pytest.raises(UsageError, match=r"00001.parquet lacks TEXT, which the first file has; it has image"):
        items_of(SourceSpec("parquet", str(tmp_path)))


def test_rows_without_bytes_and_files_that_are_gone(tmp_path):
    spec = write_parquet(tmp_path, "image", [encoded(0), None])
    found, left_out = items_of(spec)
    assert (len(found), left_out) == (1, {"no picture in the row": 1})
    with pytest.raises(ImageError, match="no bytes"):
        read(spec, Place("00000.parquet", row=1))
    with pytest.raises(StorageError, match="it has 2 rows"):
        read(spec, Place("00000.parquet", row=2))
    (tmp_path / "00000.parquet").unlink()
    with pytest.raises(StorageError, match="does not exist"):
        read(spec, found[0].place)


@pytest.mark.server
def test_all_kinds_on_s3(moto, monkeypatch, tmp_path):
    use(monkeypatch, moto.env)
    bucket = moto.new_bucket()
    content, files = coco_content()
    write_coco(tmp_path / "coco", content, files)
    write_coco(tmp_path / "coco", content, files, zipped=True)
    write_laion(tmp_path / "laion")
    pictures = [encoded(number) for number in range(7)]
    write_parquet(tmp_path / "rows", "image", pictures)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            moto.client.upload_file(str(path), bucket, f"sets/{path.relative_to(tmp_path)}")
    root = f"s3://{bucket}/sets"
    for spec, expected in (
        (SourceSpec("coco", f"{root}/coco/captions.json", f"{root}/coco/val2017"), list(files.values())),
        (SourceSpec("coco", f"{root}/coco/captions.json", f"{root}/coco/val2017.zip"), list(files.values())),
        (SourceSpec("webdataset", f"{root}/laion/{{00000..00001}}.tar"), [encoded(n) for n in range(8)]),
        (SourceSpec("webdataset", f"{root}/laion"), [encoded(n) for n in range(8)]),
        (SourceSpec("parquet", f"{root}/rows/*.parquet"), pictures),
    ):
        assert read_all(spec, items_of(spec)[0]) == expected
    tag = open_source(SourceSpec("webdataset", f"{root}/laion")).tag()
    moto.client.put_object(Bucket=bucket, Key="sets/laion/00001.tar", Body=tar_of(laion_samples(range(5, 9))))
    assert open_source(SourceSpec("webdataset", f"{root}/laion")).tag() != tag


def test_parquet_files_whose_pictures_stand_elsewhere_are_not_mixed_up(tmp_path):
    first = {"png": [encoded(1)], "text": ["pic 1"]}
    pq.write_table(pa.table(first), tmp_path / "0.parquet")
    for other in (
        {
            "jpg": [encoded(9)],
            "png": [encoded(2)],
            "text": ["pic 2"],
        },  # a column that is looked for before
        {"png": [{"bytes": encoded(2), "path": "2.png"}], "text": ["pic 2"]},
        {"png": [encoded(2)], "text": [{"caption": "pic 2"}]},
    ):
        pq.write_table(pa.table(other), tmp_path / "1.parquet")
        with pytest.raises(UsageError, match=r"1\.parquet holds captions in .* import them apart"):
            items_of(SourceSpec("parquet", str(tmp_path)))


@pytest.mark.parametrize(
    ("names", "taken", "left"),
    [
        ("a.png a.txt a.v2.png a.v2.txt b.png b.txt", ["a.txt", "a.v2.txt", "b.txt"], {}),
        ("1.png 1.txt 1.5.png 1.5.txt", ["1.txt", "1.5.txt"], {}),
        ("0.png 0.left.png 0.txt", ["0.txt"], {}),
        ("a.jpg a.png a.txt", ["a.txt"], {"further picture of one key": 1}),
        ("a.png a.txt a.png a.txt", ["a.txt"], {"further picture of one key": 1}),
    ],
)
def test_no_member_of_a_tar_is_lost_uncounted(tmp_path, names, taken, left):
    members = [
        (name, encoded(number) if name.endswith(("jpg", "png")) else name.encode())
        for number, name in enumerate(names.split())
    ]
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    items, left_out = items_of(SourceSpec("webdataset", str(tmp_path)))
    assert ([item.caption for item in items], left_out) == (taken, left)


def test_a_picture_keeps_the_caption_that_stands_beside_it(tmp_path):
    members = [("a.png", encoded(1)), ("c.png", encoded(3)), ("c.txt", b"pic 3"), ("a.png", encoded(2))]
    (tmp_path / "0.tar").write_bytes(tar_of([*members, ("a.txt", b"pic 2")]))
    spec = SourceSpec("webdataset", str(tmp_path))
    items, left_out = items_of(spec)
    pictures = dict(zip((item.caption for item in items), read_all(spec, items), strict=True))
    assert pictures == {"pic 3": encoded(3), "pic 2": encoded(2)}
    assert left_out == {"further picture of one key": 1}


def test_captions_of_images_that_coco_does_not_list_are_counted(tmp_path):
    content, files = coco_content(2, captions=1)
    content["annotations"] += [
        {"id": 9, "image_id": 77, "caption": "of nothing"},
        {"id": 10, "image_id": "x"},
    ]
    items, left_out = items_of(SourceSpec("coco", **write_coco(tmp_path, content, files)))
    assert len(items) == 2
    assert left_out == {"caption of an image that is not listed": 2}


def test_a_name_that_is_too_long_for_a_file_is_that_of_an_absent_one(tmp_path):
    content, files = coco_content(2, captions=1)
    content["images"][1]["file_name"] = f"{'x' * 300}.png"
    spec = SourceSpec("coco", **write_coco(tmp_path, content, files))
    items, _ = items_of(spec)
    with pytest.raises(ImageError, match="has no such picture"):
        read_all(spec, items)


def test_two_parquet_columns_of_one_name_are_refused(tmp_path):
    schema = pa.schema([("jpg", pa.binary()), ("text", pa.string()), ("text", pa.string())])
    rows_of = [pa.array([encoded(1)]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(rows_of, schema=schema), tmp_path / "0.parquet")
    with pytest.raises(UsageError, match="has two columns called 'text'; rename one"):
        items_of(SourceSpec("parquet", str(tmp_path)))


def test_a_caption_column_of_coco_s_images_is_read_there(tmp_path):
    content, files = coco_content(2, captions=1)
    for image in content["images"]:
        image["title"] = f"title of {image['id']}"
    items, _ = items_of(SourceSpec("coco", **write_coco(tmp_path, content, files), caption_column="title"))
    assert [item.caption for item in items] == ["title of 0", "title of 1"]


def test_a_parquet_column_of_pictures_with_a_dot_in_its_name_is_refused(tmp_path):
    pq.write_table(pa.table({"img.raw": [encoded(1)], "text": ["a"]}), tmp_path / "0.parquet")
    with pytest.raises(UsageError, match="it has a dot, as fields of structs have; rename it"):
        items_of(SourceSpec("parquet", str(tmp_path), image_column="img.raw"))
