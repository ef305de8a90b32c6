"""Tars whose members are not what they should be: every reader refuses them."""

import hashlib
import json
import re
import tarfile

import pytest

from damage_support import header, problems, replaced, rewrite, root
from shards.__main__ import main
from shards.dataset.read import read_samples
from shards.errors import CorruptShardError


@pytest.mark.parametrize(
    ("member", "data", "message"),
    [
        (header("train-000001-0009.exe", 1), b"x", "is not one of a sample's four"),
        (header("notes.txt", 1), b"x", "does not belong here"),
        (header("../../etc/cron.d/x", 1), b"x", "does not belong here"),
        (header("/etc/passwd", 1), b"x", "does not belong here"),
        (header("train-000001-0009.txt", kind=tarfile.SYMTYPE, link="/etc/passwd"), None, "is no plain file"),
        (
            header("train-000001-0009.txt", kind=tarfile.LNKTYPE, link="train-000001-0000.txt"),
            None,
            "is no plain file",
        ),
        (header("train-000001-0009.txt", kind=tarfile.CHRTYPE), None, "is no plain file"),
        (header("train-000001-0003.txt", 1), b"x", "stands twice"),
        (header("train-000001-0000.txt", 1), b"x", "not next to each other"),
    ],
)
def test_members_that_do_not_belong(dataset, member, data, message):
    rewrite(dataset, lambda members: [*members, (member, data)])
    assert any(message in problem for problem in problems(dataset))


def test_an_absurd_size_is_not_read(dataset):
    def lie(members):
        members[2][0].size = 1 << 40
        return [(members[2][0], None)]

    # ustar cannot say a terabyte in octal, so the header is patched by hand in base-256.
    commit = dataset.commit_file("train-000001")
    tar = root(dataset) / commit["tar"]
    data = bytearray(tar.read_bytes())
    data[124:136] = b"\x80" + (1 << 40).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    tar.write_bytes(data)
    assert any("claims 1,099,511,627,776 bytes" in problem for problem in problems(dataset))


@pytest.mark.parametrize(
    ("suffix", "data", "message"),
    [
        ("txt", b"another caption", "captions of .txt and .json differ"),
        ("txt", b"\xff\xfe", "does not decode"),
        ("json", b"{", "does not decode"),
        ("json", b"[" * 100_000, "does not decode"),
        ("png", b"no picture", "does not decode"),
        ("safetensors", b"", "does not decode"),
        ("safetensors", lambda old: old[:-1], "does not decode"),
        ("json", lambda old: old.replace(b'"id": "', b'"id": "f'), "is not that of its caption"),
    ],
)
def test_content_that_does_not_decode(dataset, suffix, data, message):
    rewrite(dataset, replaced(suffix, data))
    found = problems(dataset)
    assert any("sample train-000001-0000" in problem and message in problem for problem in found)


def sparse(members):
    """A text of 3 GB, all of it a hole that takes no room in the tar."""
    yield from members[:3]
    hole = header("train-000001-0000.txt", kind=tarfile.GNUTYPE_SPARSE)
    # GNU's old format: the places of data at byte 386, the size with its holes at byte 483.
    block = bytearray(hole.tobuf(tarfile.USTAR_FORMAT))
    block[386:410], block[483:495] = b"0" * 11 + b"\0" + b"0" * 11 + b"\0", b"%011o\0" % (3 << 30)
    yield block


def extended(records):
    """A text whose pax header says more than its own."""

    def change(members):
        yield from members[:3]
        member = header("train-000001-0000.txt", 1)
        member.pax_headers = records
        yield member.tobuf(tarfile.PAX_FORMAT) + b"x".ljust(512, b"\0")

    return change


def negative(members):
    block = bytearray(members[0][0].tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = b"\xff" * 11 + b"\x00"
    yield block


def rewrite_raw(dataset, change, *, name="train-000001"):
    """As `rewrite`, with headers as blocks of bytes where a tar writer would not make them."""
    commit = dataset.commit_file(name)
    tar = root(dataset) / commit["tar"]
    with tarfile.open(tar) as source:
        members = [(member, source.extractfile(member).read()) for member in source]
    data = b""
    for each in change(members):
        if isinstance(each, tuple):
            member, content = each
            data += member.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % 512)
        else:
            block = bytearray(each)
            if len(block) == 512:
                block[148:156] = b" " * 8
                block[148:156] = f"{sum(block):06o}\0 ".encode()
            data += block
    data += b"\0" * 1024
    tar.write_bytes(data)
    commit |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (root(dataset) / "_commit" / f"{name}.json").write_text(json.dumps(commit))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sparse, "is no plain file (type b'S')"),
        (extended({"GNU.sparse.map": "a,b", "GNU.sparse.size": "1"}), "does not belong here"),
        (extended({"size": "-5"}), "does not belong here"),
        (negative, "negative size"),
    ],
)
def test_headers_that_claim_what_the_tar_does_not_hold_are_refused_by_every_reader(
    dataset, change, message, capsys, tmp_path
):
    rewrite_raw(dataset, change)
    assert any("train-000001" in problem and message in problem for problem in problems(dataset))
    with pytest.raises(CorruptShardError, match=re.escape(message)):
        list(read_samples(dataset))
    assert main(["preview", dataset.storage.root, "--output", str(tmp_path / "sheet.png")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "train-000001" in said


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        ("json", b"NaN"),
        ("json", b"{}"),
        ("json", b"[" * 100_000),
        ("json", lambda old: old.replace(b'"seed": ', b'"x": NaN, "seed": ')),
        ("json", lambda old: old.replace(b'"id": "', b'"id": "not hex ')),
        ("txt", b"another caption"),
        ("txt", b"\xff\xfe"),
        ("png", lambda old: old[:60]),
        ("png", b"no picture"),
    ],
)
def test_what_verify_refuses_a_preview_refuses_in_one_line(dataset, suffix, data, capsys, tmp_path):
    rewrite(dataset, replaced(suffix, data))
    assert any("train-000001-0000" in problem for problem in problems(dataset))
    assert main(["preview", dataset.storage.root, "--output", str(tmp_path / "sheet.png")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "train-000001-0000" in said
