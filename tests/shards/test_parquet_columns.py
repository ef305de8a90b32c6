"""Columns of a parquet source: captions and pictures of any type, failed downloads, memory."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from import_support import (
    encoded,
    items_of,
    read_all,
    write_parquet,
)
from shards.errors import UsageError
from shards.sources.catalogue import open_source
from shards.sources.source import SourceSpec

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
