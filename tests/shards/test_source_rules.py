"""Which samples of a source are taken: filters, equal pictures, named columns; and all kinds on S3."""

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
    write_parquet,
)
from s3_support import use
from shards.errors import UsageError
from shards.sources.catalogue import open_source
from shards.sources.source import SourceSpec


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
