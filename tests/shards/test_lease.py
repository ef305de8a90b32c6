"""Two writers on a store that cannot tell them apart."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest

from shards.errors import StorageError
from shards.stores import lease as module
from shards.stores.lease import LEASE, HeldError, Holder, Lease, sole_writer
from shards.stores.local import open_storage

QUICK = {"settle": 0.02, "duration": 60}
BRIEF = {"settle": 0.02, "duration": 0.2}  # renewed twenty times a second


@pytest.fixture
def folder(tmp_path):
    """A store for the lease alone: what it needs of a store, a folder gives as well."""
    return open_storage(str(tmp_path))


def record(store):
    return json.loads(store.get_bytes(LEASE))


def write(store, **changes):
    """Leave the lease of another writer, alive on another machine unless told otherwise."""
    holder = Holder("other", "far-away", "another machine", 4711, "1", time.time() + 40)
    store.put_bytes(LEASE, json.dumps(asdict(holder) | changes).encode())


def test_it_is_held_and_given_back(folder):
    with Lease(folder, **QUICK) as lease:
        lease.check()
        assert record(folder)["pid"] == os.getpid()
    assert folder.stat(LEASE) is None


def test_another_holder_is_named_with_the_time_left(folder):
    write(folder)
    with pytest.raises(
        HeldError, match=r"being written by process 4711 on far-away, .* or (39|40) s after it died"
    ):
        Lease(folder, **QUICK).__enter__()
    assert record(folder)["id"] == "other"


def test_a_second_one_in_the_same_process_is_refused(folder):
    with Lease(folder, **QUICK), pytest.raises(HeldError, match=f"process {os.getpid()} on"):
        Lease(folder, **QUICK).__enter__()


def test_one_that_expired_is_taken_over(folder):
    write(folder, expires=time.time() - 1)
    with Lease(folder, **QUICK):
        assert record(folder)["pid"] == os.getpid()


def test_one_of_a_dead_process_of_this_machine_is_taken_over_at_once(folder):
    code = (
        "import os, signal, sys; from shards.stores.lease import Lease; from shards.stores.local import open_storage\n"
        "Lease(open_storage(sys.argv[1]), settle=0.02, duration=3600).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, folder.root], check=False)
    assert record(folder)["expires"] > time.time() + 3000
    with Lease(folder, **QUICK):
        assert record(folder)["pid"] == os.getpid()


@pytest.mark.parametrize("rubbish", [b"", b"not json", b"[]", b"{}", b'{"id": 1}'])
def test_a_record_that_says_nothing_holds_nothing(folder, rubbish):
    folder.put_bytes(LEASE, rubbish)
    with Lease(folder, **QUICK) as lease:
        lease.check()


def test_it_is_renewed(folder):
    with Lease(folder, **BRIEF) as lease:
        first = record(folder)["expires"]
        while record(folder)["expires"] == first:
            time.sleep(0.01)
        lease.check()


def test_of_two_that_both_looked_before_either_wrote_one_gets_it(folder, monkeypatch):
    """What settling is for: the one that wrote first must not believe what it reads at once."""
    looked, entered = threading.Barrier(2), threading.Barrier(2)
    write_record = Lease._write
    delays = {}

    def write_after_the_other_looked(lease):
        if lease in delays:
            looked.wait()
            time.sleep(delays.pop(lease))
        write_record(lease)

    monkeypatch.setattr(Lease, "_write", write_after_the_other_looked)

    def enter(delay):
        lease = Lease(folder, settle=0.6, duration=60)
        delays[lease] = delay
        try:
            with lease:
                entered.wait()
                return True
        except HeldError:
            entered.wait()  # the winner stays until the loser has been told
            return False

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(enter, (0.0, 0.1))) == [False, True]


def test_a_writer_whose_first_write_was_slow_starts_over(folder, monkeypatch):
    waits, slow = [], [0.05, 0.0]
    lease = Lease(folder, settle=0.04, duration=60)
    write_record = lease._write
    monkeypatch.setattr(lease, "_write", lambda: (waits.append(1), time.sleep(slow.pop(0)), write_record()))
    with lease:
        assert waits == [1, 1]


def test_a_lease_taken_over_is_lost_and_not_given_back(folder, caplog):
    with caplog.at_level(logging.ERROR), Lease(folder, **BRIEF) as lease:
        write(folder)
        lease._thread.join()
        with pytest.raises(HeldError, match=r"is lost: process 4711 on far-away has it; stop"):
            lease.check()
    assert record(folder)["id"] == "other"
    assert "lost" in caplog.text


def test_a_lease_that_cannot_be_renewed_is_lost(folder, monkeypatch, caplog):
    def refuse():
        raise StorageError("the store is gone")

    with caplog.at_level(logging.ERROR), Lease(folder, **BRIEF) as lease:
        monkeypatch.setattr(lease, "_write", refuse)
        lease._thread.join()
        with pytest.raises(HeldError, match=r"it could not be renewed \(the store is gone\)"):
            lease.check()


def test_where_the_store_is_asked_nothing_more_is_needed(folder):
    with sole_writer(folder) as lease:
        assert lease is None
    assert list(folder.list()) == []


@pytest.mark.server
def test_where_it_overwrites_the_lease_is_held_and_said_aloud(rclone, s3, caplog):
    store = s3(rclone)
    with caplog.at_level(logging.WARNING), sole_writer(store, settle=0.02) as lease:
        assert isinstance(lease, Lease)
        assert "overwrites objects that must only be created" in caplog.text
        with pytest.raises(HeldError), sole_writer(store, settle=0.02):
            pass
    assert list(store.list()) == []


def test_without_a_kernel_that_tells_only_time_does(folder, monkeypatch):
    monkeypatch.setattr(module, "_machine", lambda: "")
    write(folder, machine="", pid=2**22 + 1)
    with pytest.raises(HeldError):
        Lease(folder, **QUICK).__enter__()


def test_a_process_that_is_not_there_never_started():
    assert module._started(2**22 + 1) == ""
    assert module._started(os.getpid()).isdigit()
