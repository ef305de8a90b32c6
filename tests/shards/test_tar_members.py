"""Members of a tar: which belong to a sample, which is its caption, and that none is lost uncounted."""

import pytest

from import_support import (
    encoded,
    items_of,
    laion_samples,
    read_all,
    tar_of,
)
from shards.errors import UsageError
from shards.sources.catalogue import catalogued
from shards.sources.filters import Rules
from shards.sources.source import SourceSpec
from shards.stores.local import open_storage


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


def test_members_sorted_by_type(tmp_path):
    members = sorted(laion_samples(range(4)), key=lambda member: member[0].rpartition(".")[2])
    members += [("lost.txt", b"no picture"), ("alone.jpg", encoded(8))]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    spec = SourceSpec("webdataset", str(tmp_path))
    found, left_out = items_of(spec, min_similarity=0.0)
    assert [item.caption for item in found] == [f"picture {n}" for n in range(4)]
    assert read_all(spec, found) == [encoded(n) for n in range(4)]
    assert left_out == {"no picture": 1, "caption missing": 1}


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
