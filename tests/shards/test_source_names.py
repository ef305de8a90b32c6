"""Names in a source lead to its own pictures and nowhere else: in folders, zips and tars."""

import tarfile
import zipfile
from pathlib import Path

import pytest

from import_support import (
    coco_content,
    encoded,
    items_of,
    laion_samples,
    read,
    read_all,
    tar_of,
    write_coco,
)
from shards.errors import StorageError, UsageError
from shards.sources.catalogue import open_source
from shards.sources.item import Place
from shards.sources.picture import MAX_BYTES, ImageError
from shards.sources.picture_bytes import open_originals
from shards.sources.source import SourceSpec

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


def test_a_name_that_is_too_long_for_a_file_is_that_of_an_absent_one(tmp_path):
    content, files = coco_content(2, captions=1)
    content["images"][1]["file_name"] = f"{'x' * 300}.png"
    spec = SourceSpec("coco", **write_coco(tmp_path, content, files))
    items, _ = items_of(spec)
    with pytest.raises(ImageError, match="has no such picture"):
        read_all(spec, items)
