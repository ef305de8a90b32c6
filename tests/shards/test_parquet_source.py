"""Parquet: pictures as bytes or by path, rows that are far apart, files that do not fit together."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from import_support import (
    encoded,
    items_of,
    read,
    read_all,
    write_parquet,
)
from shards.errors import StorageError, UsageError
from shards.sources import parquet_rows as rows
from shards.sources.catalogue import open_source
from shards.sources.item import Place
from shards.sources.picture import ImageError
from shards.sources.source import SourceSpec


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


def test_two_parquet_columns_of_one_name_are_refused(tmp_path):
    schema = pa.schema([("jpg", pa.binary()), ("text", pa.string()), ("text", pa.string())])
    rows_of = [pa.array([encoded(1)]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(rows_of, schema=schema), tmp_path / "0.parquet")
    with pytest.raises(UsageError, match="has two columns called 'text'; rename one"):
        items_of(SourceSpec("parquet", str(tmp_path)))


def test_a_parquet_column_of_pictures_with_a_dot_in_its_name_is_refused(tmp_path):
    pq.write_table(pa.table({"img.raw": [encoded(1)], "text": ["a"]}), tmp_path / "0.parquet")
    with pytest.raises(UsageError, match="it has a dot, as fields of structs have; rename it"):
        items_of(SourceSpec("parquet", str(tmp_path), image_column="img.raw"))
