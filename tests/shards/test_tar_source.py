"""Tars as files: found by folder, name, brace or glob; several in one, compressed, cut off, gone."""

import importlib

import pytest

from import_support import (
    encoded,
    items_of,
    laion_samples,
    read,
    read_all,
    tar_of,
    write_laion,
)
from shards.errors import StorageError, UsageError
from shards.sources.catalogue import open_source
from shards.sources.source import SourceSpec


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
