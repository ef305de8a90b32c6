"""A large weight is hashed once, and again as soon as it is another."""

import hashlib
import os
import time

import pytest

from projector.models import machine_records
from projector.models.machine_records import sha256_once
from projector.models.resolve import CACHE_VARIABLE, file_hashes


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file that counts as large and has not changed for a while."""
    monkeypatch.setattr(machine_records, "SMALL", 10)
    path = tmp_path / "model" / "model.safetensors"
    path.parent.mkdir()
    write(path, b"some weights")
    return path


def write(path, data, ago=60.0):
    path.write_bytes(data)
    os.utime(path, (time.time() - ago,) * 2)


@pytest.fixture
def readings(monkeypatch):
    """Paths that were read."""
    found = []
    real = machine_records._sha256

    def read(path):
        found.append(path.name)
        return real(path)

    monkeypatch.setattr(machine_records, "_sha256", read)
    return found


def test_a_second_call_reads_no_bytes(weights, tmp_path, monkeypatch, readings):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    first = file_hashes(weights.parent)
    assert first == {"model.safetensors": hashlib.sha256(b"some weights").hexdigest()}
    assert file_hashes(weights.parent) == first
    assert readings == ["model.safetensors"]


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_changed_file_is_hashed_again(weights, tmp_path, readings, keeps_time):
    sha256_once(weights, tmp_path / "hashes")
    times = weights.stat()
    time.sleep(0.02)  # a kernel's clock moves on by some milliseconds
    weights.write_bytes(b"same length!")
    if keeps_time:
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert sha256_once(weights, tmp_path / "hashes") == hashlib.sha256(b"same length!").hexdigest()
    assert len(readings) == 2


def test_a_file_that_may_still_be_written_is_not_remembered(weights, tmp_path, readings):
    write(weights, b"just written", ago=0.0)
    assert sha256_once(weights, tmp_path / "hashes") == sha256_once(weights, tmp_path / "hashes")
    assert len(readings) == 2


@pytest.mark.parametrize("record", [b"", b"[]", b'{"about": 1}', b'{"sha256": "x"}', b"\xff"])
def test_a_broken_record_is_written_anew(weights, tmp_path, readings, record):
    right = sha256_once(weights, tmp_path / "hashes")
    (file,) = (tmp_path / "hashes").iterdir()
    file.write_bytes(record)
    assert sha256_once(weights, tmp_path / "hashes") == right
    assert sha256_once(weights, tmp_path / "hashes") == right
    assert len(readings) == 2


def test_without_a_place_for_records_it_is_read_each_time(weights, tmp_path, readings):
    (tmp_path / "hashes").write_text("a file")
    assert sha256_once(weights, tmp_path / "hashes") == sha256_once(weights, tmp_path / "hashes")
    assert len(readings) == 2


def test_the_hubs_cache_names_a_blob_by_its_hash(tmp_path, readings):
    name = hashlib.sha256(b"weights of the hub").hexdigest()
    blob = tmp_path / "blobs" / name
    blob.parent.mkdir()
    blob.write_bytes(b"weights of the hub")
    small = tmp_path / "blobs" / ("a" * 40)  # git's own name of a small file is no SHA-256
    small.write_bytes(b"{}")
    snapshot = tmp_path / "snapshots" / "revision"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(blob)
    (snapshot / "config.json").symlink_to(small)
    assert file_hashes(snapshot) == {
        "model.safetensors": name,
        "config.json": hashlib.sha256(b"{}").hexdigest(),
    }
    assert readings == ["a" * 40]


def test_a_file_with_such_a_name_elsewhere_is_read(tmp_path, readings):
    path = tmp_path / ("b" * 64)
    path.write_bytes(b"not what the name says")
    link = tmp_path / "model.safetensors"
    link.symlink_to(path)
    assert sha256_once(link, tmp_path / "hashes") == hashlib.sha256(b"not what the name says").hexdigest()
