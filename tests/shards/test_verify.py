"""Each kind of damage at rest is found, named, and mended by taking out that shard only."""

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shards.__main__ import main
from shards.dataset.read import read_samples
from shards.dataset.run_records import RunRecord, put_run
from shards.errors import CorruptShardError, UsageError
from shards.format import side_files as tables
from shards.format.side_files import write_table
from shards.tools.gc_and_repair import collect_garbage, repair
from shards.tools.verify import verify
from tests_support import a_plan, commit_shard


@pytest.fixture
def dataset(make_dataset):
    return make_dataset()[0]


def root(dataset):
    return Path(dataset.storage.root)


def problems(dataset):
    return [str(problem) for problem in verify(dataset.storage.root).problems]


def rewrite(dataset, change, *, name="train-000001", rehash=True):
    """Rewrite a shard's members, and, as an attacker or a bug would, its commit's hash too."""
    commit = dataset.commit_file(name)
    tar = root(dataset) / commit["tar"]
    with tarfile.open(tar) as source:
        members = [(member, source.extractfile(member).read()) for member in source]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as target:
        for member, data in change(members):
            target.addfile(member, io.BytesIO(data) if data is not None else None)
    tar.write_bytes(buffer.getvalue())
    if rehash:
        commit |= {"sha256": hashlib.sha256(buffer.getvalue()).hexdigest(), "bytes": len(buffer.getvalue())}
        (root(dataset) / "_commit" / f"{name}.json").write_text(json.dumps(commit))


def header(name, size=0, kind=tarfile.REGTYPE, link=""):
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, link
    return member


def test_a_sound_dataset_has_no_problems(dataset):
    findings = verify(dataset.storage.root)
    assert (findings.problems, findings.samples, findings.complete) == ([], 20, True)


def test_workers_find_the_same(dataset):
    (root(dataset) / "train" / "pairs-000001.tar").unlink()
    assert verify(dataset.storage.root, workers=2).problems == verify(dataset.storage.root).problems


def test_a_partial_dataset_is_not_called_whole(dataset):
    dataset.storage.delete("_commit/val-000000.json")
    findings = verify(dataset.storage.root)
    assert not findings.complete
    assert findings.accounted < findings.planned == 20


def test_a_flipped_bit(dataset):
    tar = root(dataset) / "train" / "pairs-000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    assert any("train-000001" in problem and "SHA-256" in problem for problem in problems(dataset))


def test_a_truncated_tar_even_at_a_member_boundary(dataset):
    tar = root(dataset) / "train" / "pairs-000001.tar"
    with tarfile.open(tar) as archive:
        boundary = archive.getmembers()[8].offset
    tar.write_bytes(tar.read_bytes()[:boundary] + bytes(1024))
    found = problems(dataset)
    assert any("bytes, its commit says" in problem for problem in found)
    assert any("2 whole samples, its commit says 4" in problem for problem in found)


def test_a_tar_cut_inside_a_member(dataset):
    tar = root(dataset) / "train" / "pairs-000001.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    assert any(
        "the tar is broken" in problem or "does not decode" in problem for problem in problems(dataset)
    )


def test_a_missing_tar_parquet_and_failure_file(dataset, tmp_path):
    for suffix in ("tar", "parquet"):
        (root(dataset) / "train" / f"pairs-000001.{suffix}").unlink()
    assert problems(dataset) == [
        "train-000001: train/pairs-000001.tar is missing",
    ]


def test_a_missing_parquet(dataset):
    (root(dataset) / "train" / "pairs-000001.parquet").unlink()
    assert problems(dataset) == ["train-000001: train/pairs-000001.parquet is missing"]


def test_swapped_tars(dataset):
    first, second = (root(dataset) / "train" / f"pairs-00000{i}.tar" for i in (0, 1))
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    found = problems(dataset)
    assert any("train-000000" in problem and "does not belong here" in problem for problem in found)
    assert any("train-000001" in problem and "SHA-256" in problem for problem in found)


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


def replaced(suffix, data):
    def change(members):
        for member, content in members:
            if member.name == f"train-000001-0000.{suffix}":
                new = data(content) if callable(data) else data
                member.size = len(new)
                yield member, new
            else:
                yield member, content

    return change


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


def test_a_shard_with_fewer_samples_than_its_commit_says(dataset):
    rewrite(dataset, lambda members: members[:-4])
    with pytest.raises(CorruptShardError, match="3 samples, its commit says 4"):
        list(read_samples(dataset))


def test_a_sample_in_two_shards_and_in_both_splits(make_dataset, tmp_path):

    plan = a_plan()
    twin = plan.shards[0].samples[0]
    val = next(shard for shard in plan.shards if shard.split == "val")
    copy = replace(val.samples[0], id=twin.id, caption=twin.caption)
    leaking = replace(val, samples=(copy, *val.samples[1:]))
    dataset, _ = make_dataset(shards=[plan.shards[0], leaking])
    found = problems(dataset)
    assert any(f"id {twin.id} stands in {twin.key} too" in problem for problem in found)
    assert any("its caption stands in two splits" in problem for problem in found)


@pytest.mark.parametrize(
    "name", ["train/pairs-000000.tar.bak", "virus.exe", "train/notes.txt", "_manifest.json"]
)
def test_a_foreign_file(dataset, name):
    (root(dataset) / name).write_bytes(b"x")
    assert problems(dataset) == [f"{name}: a foreign file; nothing of this dataset names it"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"name": "train-000002"}'])
def test_a_commit_that_cannot_be_believed(dataset, content):
    (root(dataset) / "_commit" / "train-000001.json").write_text(content)
    assert any("train-000001: its commit is corrupt" in problem for problem in problems(dataset))


def test_a_commit_of_another_dataset(dataset):
    path = root(dataset) / "_commit" / "train-000001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "0" * 64}))
    assert any("another dataset's fingerprint" in problem for problem in problems(dataset))


def test_repair_takes_out_the_broken_shard_only_and_a_build_makes_it_again(dataset, tmp_path):
    plan = a_plan()
    sound = {entry.key: entry.tag for entry in dataset.storage.list("train/") if "000001" not in entry.key}
    before = dataset.storage.get_bytes("train/pairs-000001.tar")
    rewrite(dataset, replaced("png", b"no picture"), rehash=False)
    assert repair(dataset.storage.root) == ["train-000001"]
    assert [shard.name for shard in dataset.missing(plan)] == ["train-000001"]
    commit_shard(dataset, plan.shard("train-000001"), tmp_path / "spool")
    assert dataset.storage.get_bytes("train/pairs-000001.tar") == before
    assert problems(dataset) == []
    assert {
        entry.key: entry.tag for entry in dataset.storage.list("train/") if "000001" not in entry.key
    } == sound


def test_repair_of_a_sound_dataset_does_nothing(dataset):
    assert repair(dataset.storage.root) == []


def test_garbage_is_what_no_commit_names(dataset):
    dataset.storage.delete("_commit/train-000001.json")
    left = ["train/pairs-000001.parquet", "train/pairs-000001.tar"]
    assert problems(dataset) == []  # a leftover of a crash is no damage
    assert collect_garbage(dataset, dry_run=True, spared=0) == left
    assert dataset.storage.stat(left[0]) is not None
    assert collect_garbage(dataset, dry_run=False, spared=0) == left
    assert collect_garbage(dataset, dry_run=False) == []
    assert len(dataset.commits()) == len(a_plan().shards) - 1


def aged(dataset, hours, *keys):
    for key in keys:
        os.utime(root(dataset) / key, (time.time() - 3600 * hours,) * 2)


def test_garbage_spares_what_is_young(dataset, capsys):
    """A shard whose commit is on its way, of a builder that left no record, say a merge."""
    dataset.storage.delete("_commit/train-000001.json")
    assert main(["gc", dataset.storage.root]) == 0
    assert "2 files no older than 1 h are kept" in capsys.readouterr().out
    aged(dataset, 2, "train/pairs-000001.parquet", "train/pairs-000001.tar")
    assert main(["gc", dataset.storage.root]) == 0
    assert "2 files removed" in capsys.readouterr().out


def test_garbage_is_not_collected_while_a_run_is_at_work(dataset, capsys):
    dataset.storage.delete("_commit/train-000001.json")
    aged(dataset, 2, "train/pairs-000001.parquet", "train/pairs-000001.tar")
    now = utc(0)
    run = RunRecord("a" * 32, "build", "01000000", now, now, "", 1, 0.0, {}, 0.0, {})
    put_run(dataset.storage, run)
    assert main(["gc", dataset.storage.root]) == 2
    said = capsys.readouterr().err
    assert "the build aaaaaaaa is at work" in said
    assert "5 minutes after it was killed" in said
    assert main(["gc", dataset.storage.root, "--dry-run"]) == 0
    put_run(dataset.storage, replace(run, seen=utc(301)))  # killed
    assert main(["gc", dataset.storage.root]) == 0
    assert "2 files removed" in capsys.readouterr().out


def utc(ago):
    return datetime.fromtimestamp(time.time() - ago, UTC).isoformat(timespec="seconds")


def test_hidden_files_of_killed_writers_are_shown_and_removed(dataset, capsys):
    left = root(dataset) / "train" / ".tmp-0123"
    left.write_bytes(b"x" * 2_500_000)
    aged(dataset, 2, "train/.tmp-0123")
    assert main(["info", dataset.storage.root]) == 0
    assert "2.5 MB in 1 files of killed writers" in capsys.readouterr().out
    with left.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as a writer does
        assert collect_garbage(dataset, dry_run=False) == []
    assert collect_garbage(dataset, dry_run=False) == ["train/.tmp-0123"]
    assert not left.exists()


def test_garbage_is_not_collected_where_nothing_is_committed(dataset):
    """Rather a folder of commits that went astray than a dataset of leftovers alone."""
    shutil.move(Path(dataset.storage.root) / "_commit", Path(dataset.storage.root) / "elsewhere")
    left = collect_garbage(dataset, dry_run=True, spared=0)
    assert left
    with pytest.raises(UsageError, match="and no commit; gc would remove them all"):
        collect_garbage(dataset, dry_run=False)
    assert collect_garbage(dataset, dry_run=True, spared=0) == left


def rewrite_table(dataset, key, change=lambda rows: rows, metadata=lambda commit: commit):
    """Rewrite a parquet side file as a bug or an attacker would."""
    path = root(dataset) / key
    table = pq.read_table(path)
    commit = json.loads((table.schema.metadata or {}).get(b"commit", b"{}"))
    write_table(path, change(table.to_pylist()), metadata(commit))
    name = f"train-{path.stem.rpartition('-')[2]}"
    commit = dataset.commit_file(name)
    commit["side_files"][key] = hashlib.sha256(path.read_bytes()).hexdigest()
    (root(dataset) / "_commit" / f"{name}.json").write_text(json.dumps(commit))


def changed(number, **values):
    return lambda rows: [row | values if i == number else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(1, caption="another"), "row train-000001-0001: caption not as in the tar"),
        (changed(1, png_offset=0, image_offset=7), "image_offset"),
        (changed(0, seed=1), "row train-000001-0000: seed not as in the tar"),
        (lambda rows: rows[1:], "has 3 samples, its commit says 4"),
        (lambda rows: [*rows[1:], rows[1]], "has 3 samples, its commit says 4"),
        (lambda rows: [{"key": row["key"]} for row in rows], "not as in the tar"),
    ],
)
def test_a_parquet_that_tells_something_else(dataset, change, message):
    rewrite_table(dataset, "train/pairs-000001.parquet", change)
    (problem,) = problems(dataset)
    assert problem.startswith("train-000001: train/pairs-000001.parquet")
    assert message in problem


def test_a_parquet_of_another_tar(dataset):
    rewrite_table(dataset, "train/pairs-000001.parquet", metadata=lambda commit: {**commit, "sha256": "0"})
    assert "written for another tar" in problems(dataset)[0]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 64 + b"PAR1"])
def test_a_parquet_that_is_none(dataset, content):
    path = root(dataset) / "train" / "pairs-000001.parquet"
    path.write_bytes(content)
    assert "train/pairs-000001.parquet is corrupt: it has another SHA-256" in problems(dataset)[0]
    commit = dataset.commit_file("train-000001")
    commit["side_files"]["train/pairs-000001.parquet"] = hashlib.sha256(content).hexdigest()
    (root(dataset) / "_commit" / "train-000001.json").write_text(json.dumps(commit))
    (problem,) = problems(dataset)
    assert "train/pairs-000001.parquet is corrupt" in problem
    assert "SHA-256" not in problem


def test_a_parquet_that_claims_too_much(dataset, monkeypatch):
    monkeypatch.setattr(tables, "MAX_UNPACKED", 100)
    assert "it claims 4 rows of" in problems(dataset)[0]


def test_samples_that_are_not_the_planned_ones(dataset):
    """Seeds changed in tar, parquet and hash alike: only the plan's hash still tells."""
    seeded = replaced("json", lambda old: re.sub(rb'"seed": \d+', b'"seed": 5', old))
    rewrite(dataset, seeded)
    commit = dataset.commit_file("train-000001")
    rewrite_table(
        dataset,
        "train/pairs-000001.parquet",
        lambda rows: places(dataset, rows, changed(0, seed=5)),
        lambda old: {**old, "sha256": commit["sha256"]},
    )
    assert problems(dataset) == [
        "train-000001: its samples are not those that the plan has for it (slice hash)"
    ]


def places(dataset, rows, change):
    """Rows with the members' new offsets and sizes."""
    with tarfile.open(root(dataset) / "train" / "pairs-000001.tar") as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            column = "image" if suffix == "png" else suffix
            row = next(row for row in rows if row["key"] == key)
            row |= {f"{column}_offset": member.offset_data, f"{column}_size": member.size}
    return change(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [], "failed/train-000000.parquet has 0 rows, its commit says 1"),
        (changed(0, id="0" * 16), "its samples are not those that the plan has for it"),
        (changed(0, key="nonsense"), "does not say what was planned"),
    ],
)
def test_a_dead_letter_file_that_tells_something_else(make_dataset, tmp_path, change, message):
    dataset, plan = make_dataset(shards=a_plan().shards[1:])
    commit_shard(dataset, plan.shards[0], tmp_path / "spool", failing=(1,))
    assert problems(dataset) == []
    rewrite_table(dataset, "failed/train-000000.parquet", change)
    (problem,) = problems(dataset)
    assert message in problem
