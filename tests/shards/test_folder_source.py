"""A folder of pictures as adapter trainers and the Hugging Face hub have them: every file taken, or why not."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from import_support import encoded, items_of, read_all
from shards.errors import UsageError
from shards.sources.catalogue import catalogued, open_source, told_left_out
from shards.sources.filters import Rules
from shards.sources.source import SourceSpec
from shards.stores.local import open_storage


def written(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return SourceSpec("folder", str(folder))


def captions(found):
    return {item.picture: item.caption for item in found}


def test_pictures_with_captions_beside_them(tmp_path):
    files = {
        "a.jpg": encoded(0),
        "a.txt": "a fox\n",
        "B.PNG": encoded(1, format="PNG"),
        "B.TXT": "\ufeffan owl",
        "10_cat/c.webp": encoded(2, format="WEBP"),
        "10_cat/c.caption": "two cats\r\n",
        "d.jpeg": encoded(3),
        "d.json": json.dumps({"prompt": "a dog", "width": 32}),
        "e.jpg": encoded(4),
        "e.jpg.txt": "an elk",
        "f.jpg": encoded(5),
        "f.txt": "ein Käfer".encode("utf-16"),
        "g.jpg": encoded(6),
        "g.caption": "not this",
        "g.txt": "a goat, one\nof two lines",
        "g.npz": b"latents",
    }
    spec = written(tmp_path, files)
    found, left_out = items_of(spec)
    assert captions(found) == {
        "a.jpg": "a fox",
        "B.PNG": "an owl",
        "10_cat/c.webp": "two cats",
        "d.jpeg": "a dog",
        "e.jpg": "an elk",
        "f.jpg": "ein Käfer",
        "g.jpg": "a goat, one\nof two lines",
    }
    assert left_out == {}
    assert read_all(spec, found) == [files[item.picture] for item in found]


def test_what_is_left_out_is_counted_by_its_cause_with_the_first_names(tmp_path):
    files = {
        "a.jpg": encoded(0),
        "a.txt": "a fox",
        "alone.jpg": encoded(1),
        "blank.jpg": encoded(2),
        "blank.txt": " \n",
        "latin.jpg": encoded(3),
        "latin.txt": "café".encode("latin-1"),
        "half.jpg": encoded(6),
        "half.txt": b"\xff\xfe\0",
        "orphan.txt": "no picture",
        "phone.heic": b"x",
        "phone.txt": "a format that nothing reads",
        "._a.jpg": b"mac",
        ".DS_Store": b"mac",
        "__MACOSX/a.jpg": b"mac",
        "broken.jpg": encoded(4),
        "broken.json": "{",
        "array.jpg": encoded(7),
        "array.json": '["a fox"]',
        "long.jpg": encoded(5),
        "long.txt": "word " * 300_000,
        "readme.md": "x",
        "notes.json": "[]",
    }
    found, left_out = items_of(written(tmp_path, files))
    assert captions(found) == {"a.jpg": "a fox"}
    assert left_out == {
        "caption missing": 1,
        "a .json that is no JSON object": 2,
        "caption blank": 1,
        "caption not UTF-8": 2,
        "caption without a picture": 1,
        "a format that is not read (.heic)": 1,
        "caption too long": 1,
    }
    (tmp_path / "work").mkdir()
    rules = Rules(val_fraction=0.0)
    made = catalogued(
        open_storage(str(tmp_path / "data")), SourceSpec("folder", str(tmp_path)), rules, tmp_path / "work"
    )
    told = told_left_out(made.record.left_out, made.record.examples)
    assert told.startswith(
        "2 a .json that is no JSON object (array.jpg, broken.jpg), 2 caption not UTF-8 (half.jpg, latin.jpg), "
    )
    assert (
        "1 caption without a picture (orphan.txt)" in told
    )  # phone.txt has one, of a format that is not read


def parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


ROWS = [
    {"file_name": "a/0.jpg", "text": "a fox", "width": 48},
    {"file_name": "1.jpg", "text": "an owl, small", "width": 32},
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS) + "\n"),
        ("metadata.csv", 'file_name,text,width\na/0.jpg,a fox,48\n1.jpg,"an owl, small",32\n'),
        (
            "metadata.csv",
            "file_name;text;width\na/0.jpg;a fox;48\n1.jpg;an owl, small;32\n".encode("utf-8-sig"),
        ),
        ("metadata.parquet", parquet(ROWS)),
    ],
)
@pytest.mark.parametrize("folder", ["", "train/"])
def test_metadata_as_hugging_face_has_it(tmp_path, name, content, folder):
    pictures = {f"{folder}a/0.jpg": encoded(0), f"{folder}1.jpg": encoded(1)}
    spec = written(tmp_path, pictures | {f"{folder}{name}": content})
    found, left_out = items_of(spec)
    assert captions(found) == {f"{folder}1.jpg": "an owl, small", f"{folder}a/0.jpg": "a fox"}
    assert left_out == {}
    assert read_all(spec, found) == [pictures[item.picture] for item in found]


def test_metadata_that_names_other_files_or_none(tmp_path):
    rows = [
        {"file_name": "0.jpg", "text": ["one", "two"]},
        {"file_name": "0.jpg", "text": "three"},
        {"file_name": "gone.jpg", "text": "gone"},
        {"file_name": "../secret.jpg", "text": "outside"},
        {"file_name": 7, "text": "a number"},
    ]
    (tmp_path / "secret.jpg").write_bytes(encoded(9))
    files = {"0.jpg": encoded(0), "1.jpg": encoded(1), "2.jpg": encoded(2), "2.txt": "beside"}
    spec = written(tmp_path / "set", files | {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    found, left_out = items_of(spec, captions="all", val_fraction=0.0)
    assert [(item.picture, item.caption, item.place.size < 0) for item in found] == [
        ("0.jpg", "one", False),
        ("0.jpg", "two", False),
        ("0.jpg", "three", False),
        ("2.jpg", "beside", False),
        ("gone.jpg", "gone", True),
    ]
    assert left_out == {
        "caption missing": 1,
        "a name that leads out of the source or is no path": 1,
        "no picture named": 1,
    }


def test_names_as_other_systems_write_them(tmp_path):
    """Windows has backslashes, a Mac accents as signs of their own."""
    rows = [{"file_name": "i\\0.jpg", "text": "zero"}, {"file_name": "caf\u00e9.jpg", "text": "one"}]
    files = {"i/0.jpg": encoded(0), "cafe\u0301.jpg": encoded(1)}
    spec = written(tmp_path, files | {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    found, left_out = items_of(spec, val_fraction=0.0)
    assert (captions(found), left_out) == ({"cafe\u0301.jpg": "one", "i/0.jpg": "zero"}, {})
    assert read_all(spec, found) == [encoded(1), encoded(0)]


def test_captions_of_another_type_are_named(tmp_path):
    rows = [{"file_name": f"{n}.jpg", "text": text} for n, text in enumerate([{"en": "x"}, 7, True, [["x"]]])]
    spec = written(tmp_path, {"0.jpg": encoded(0), "metadata.parquet": parquet(rows[:1])})
    with pytest.raises(
        UsageError,
        match=r"1 caption that is an object, not text \(0.jpg\); name a column .* \(there: text\)",
    ):
        catalogued(open_storage(str(tmp_path / "data")), spec, Rules(), tmp_path)
    (tmp_path / "metadata.parquet").unlink()
    written(tmp_path, {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    assert items_of(spec)[1] == {
        "caption that is an object, not text": 1,
        "caption that is a number, not text": 1,
        "caption that is true or false, not text": 1,
        "caption that is a list, not text": 1,
    }


def test_columns_can_be_named_and_filter(tmp_path):
    rows = [{"img": f"{n}.jpg", "said": f"picture {n}", "width": 20 * n, "height": 60} for n in range(4)]
    written(tmp_path, {f"{n}.jpg": encoded(n) for n in range(4)})
    written(tmp_path, {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    spec = SourceSpec("folder", str(tmp_path), caption_column="said", image_column="img")
    found, left_out = items_of(spec, min_side=40)
    assert [item.caption for item in found] == ["picture 2", "picture 3"]
    assert left_out == {"side": 2}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no pictures there: it is empty or not there"),
        ({"y.md": b""}, r"no pictures there \(.png.*links are not followed"),
        ({"0.tar": b""}, r"no pictures there, but 1 .tar files; give kind tars"),
        (
            {"sub/x.zip": b"", "y.md": b""},
            "no pictures there, but 1 .zip files, the first 'sub/x.zip'; unpack",
        ),
        ({"0.heic": b""}, "no pictures there, but 1 of formats that are not read, the first '0.heic'"),
        ({"0.jpg": b"x"}, "1 pictures and no captions; put NAME.txt"),
        ({"0.jpg": b"x", "metadata.jsonl": "{"}, "metadata.jsonl, line 1: not JSON"),
        ({"0.jpg": b"x", "metadata.jsonl": "[]"}, "line 1: list instead of an object"),
        (
            {"0.jpg": b"x", "metadata.csv": "file_name,text\n0.jpg,a,b\n"},
            "metadata.csv, line 2: not the fields",
        ),
        ({"0.jpg": b"x", "metadata.csv": "file_name,text\n0.jpg\n"}, "metadata.csv, line 2: not the fields"),
        ({"0.jpg": b"x", "metadata.csv": b"file_name,text\n0.jpg,\xff\n"}, "not UTF-8 at byte 22"),
        ({"0.jpg": b"x", "metadata.parquet": b"x"}, "cannot be read as parquet"),
        (
            {"0.jpg": b"x", "metadata.csv": "a,b\n1,2\n"},
            "no column file_name .* among a, b; name .* image_col",
        ),
    ],
)
def test_folders_that_will_not_do(tmp_path, files, message):
    with pytest.raises(UsageError, match=message) as caught:
        open_source(written(tmp_path, files))
    assert "\n" not in str(caught.value)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(0))
    with pytest.raises(UsageError, match=r"source = '.*a.jpg': is a file; give the folder"):
        open_source(SourceSpec("folder", str(tmp_path / "a.jpg")))
    with pytest.raises(UsageError, match=r"a zip is read beside COCO annotations only.*unpack it"):
        open_source(SourceSpec("folder", str(tmp_path / "a.ZIP")))


def test_options_that_a_folder_has_no_use_for(tmp_path):
    with pytest.raises(UsageError, match=r"images = 'x': the folder in source holds"):
        open_source(SourceSpec("folder", str(tmp_path), "x"))
    spec = written(tmp_path, {"0.jpg": encoded(0), "0.txt": "a"})
    with pytest.raises(UsageError, match=r"caption_column = 'x': the source has no such column"):
        open_source(SourceSpec("folder", spec.source, caption_column="x"))


def test_a_row_of_metadata_without_a_caption_leaves_it_to_the_file_beside(tmp_path):
    for number, name in enumerate("abc"):
        (tmp_path / f"{name}.png").write_bytes(encoded(number, format="PNG"))
    (tmp_path / "a.txt").write_text("of the file")
    rows = [{"file_name": "a.png", "width": 5}, {"file_name": "b.png", "caption": None, "text": "of the row"}]
    rows.append({"file_name": "c.png", "text": "of c"})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items, left_out = items_of(SourceSpec("folder", str(tmp_path)))
    assert sorted(item.caption for item in items) == ["of c", "of the file", "of the row"]
    assert left_out == {}
