"""S3 that fails: every operation outlives every fault, or is one error in bounded time."""

import io
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from s3_support import EACH
from shards.errors import AlreadyExistsError, StorageError
from shards.stores.s3 import MIB
from shards.stores.s3_client import Patience, Tries
from shards.stores.s3_stream import S3Reader

pytestmark = pytest.mark.server


FAULTS = ("500", "slowdown", "conflict", "reset-before", "reset-after", "cut", "trickle")


@EACH
@pytest.mark.parametrize("kind", FAULTS)
def test_every_operation_outlives_every_fault(server, s3, fault_proxy, kind):
    proxy = fault_proxy(server)
    store = s3(server, proxy=proxy)
    data = os.urandom(300_000)
    for operation in (
        lambda: store.put_bytes("a", data),
        lambda: store.get_bytes("a"),
        lambda: store.get_range("a", 5, 1000),
        lambda: list(store.list()),
        lambda: store.stat("a"),
        lambda: store.delete("b"),
        lambda: store.put_bytes(f"once-{kind}", data, create_only=True),
    ):
        proxy.inject(kind, times=2)
        operation()
    assert store.get_bytes("a") == data
    assert store.get_bytes(f"once-{kind}") == data
    assert proxy.faults[kind] >= 12


@EACH
def test_hundreds_of_faults_lose_nothing(server, s3, fault_proxy):
    proxy = fault_proxy(server, rate=0.4, seed=7)
    store = s3(server, proxy=proxy)
    content = {f"train/pairs-{i:06d}": os.urandom(1000 + i) for i in range(60)}

    def put(key):
        store.put_bytes(key, content[key], create_only=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, content))
        got = dict(zip(content, pool.map(store.get_bytes, content), strict=True))
    assert got == content
    assert [entry.key for entry in store.list()] == sorted(content)
    assert sum(proxy.faults.values()) >= 80
    assert set(proxy.faults) == {"500", "slowdown", "reset-before", "reset-after", "cut", "trickle"}


@EACH
def test_a_stream_goes_on_where_it_was_cut(server, s3, fault_proxy):
    proxy = fault_proxy(server)
    store = s3(server, proxy=proxy)
    data = os.urandom(5 * MIB)
    store.put_bytes("a", data)
    proxy.inject("cut", times=6, method="GET")
    with store.open("a") as file:
        assert b"".join(iter(lambda: file.read(100_000), b"")) == data
    assert proxy.faults["cut"] == 6


def test_a_body_that_ends_early_without_an_error_is_no_end(moto, s3, monkeypatch):
    store = s3(moto)
    store.put_bytes("a", b"0123456789")
    connect = S3Reader._connect

    def connect_to_less(self):
        connect(self)
        if self._position == 0:
            self._body.close()
            self._body = io.BytesIO(b"012")

    monkeypatch.setattr(S3Reader, "_connect", connect_to_less)
    assert store.get_bytes("a") == b"0123456789"


@EACH
def test_a_stream_notices_that_its_object_was_replaced(server, s3, fault_proxy):
    proxy = fault_proxy(server)
    store = s3(server, proxy=proxy)
    store.put_bytes("a", os.urandom(4 * MIB))
    proxy.inject("cut", method="GET")
    with store.open("a") as file:
        file.read(1000)
        store.put_bytes("a", os.urandom(4 * MIB))
        with pytest.raises(StorageError, match=r"a was replaced while it was being read"):
            file.read()


def test_a_stream_left_in_the_middle_leaves_nothing_open(moto, s3):
    store = s3(moto)
    store.put_bytes("a", bytes(5 * MIB))
    with store.open("a") as file:
        assert file.read(10) == bytes(10)
    assert file.closed


def test_an_object_damaged_on_the_way_is_refused(moto, s3, fault_proxy, monkeypatch):
    proxy = fault_proxy(moto)
    store = s3(moto, proxy=proxy)
    store.put_bytes("a", b"0123456789" * 100)
    forward = proxy._forward
    monkeypatch.setattr(
        proxy, "_forward", lambda *a, **k: forward(*a, **k).replace(b"0123456789", b"0123456788")
    )
    with pytest.raises(StorageError, match="a does not match the store's checksum of it"):
        store.get_bytes("a")


def test_a_stale_listing_cannot_make_a_create_only_put_overwrite(moto, s3, fault_proxy):
    proxy = fault_proxy(moto)
    store = s3(moto, proxy=proxy)
    assert list(store.list()) == []
    store.put_bytes("commit", b"first")
    proxy.inject("stale")
    assert list(store.list()) == []
    assert proxy.faults == {"stale": 1}
    with pytest.raises(AlreadyExistsError):
        store.put_bytes("commit", b"second", create_only=True)
    assert [entry.key for entry in store.list()] == ["commit"]


OPERATIONS = {
    "put": lambda store: store.put_bytes("a", b"x"),
    "get": lambda store: store.get_bytes("a"),
    "list": lambda store: list(store.list("a")),
    "look at": lambda store: store.stat("a"),
    "delete": lambda store: store.delete("a"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("slowdown", "SlowDown|503"),
        ("reset-before", "ConnectionClosedError at 127.0.0.1"),
        ("hang", "ReadTimeoutError"),
    ],
)
def test_a_store_that_keeps_failing_gives_one_error_in_bounded_time(
    moto, s3, fault_proxy, operation, kind, cause
):
    proxy = fault_proxy(moto)
    brief = Patience(0.3, 0.3, 0.01, 0.1, connect_timeout=1, read_timeout=0.2)
    store = s3(moto, proxy=proxy, patience=brief)
    proxy.inject(kind, times=1000)
    with pytest.raises(
        StorageError, match=rf"^cannot {operation} s3://.*/a: ({cause}).*\(tried \d+ times in \d+ s\)$"
    ):
        OPERATIONS[operation](store)
    assert len(proxy.requests) < 40


def test_a_stream_that_keeps_breaking_is_an_error_too(moto, s3, fault_proxy):
    proxy = fault_proxy(moto)
    store = s3(moto, proxy=proxy, patience=Patience(0.3, 0.3, 0.01, 0.1))
    store.put_bytes("a", bytes(100))
    proxy.inject("cut", method="GET")
    proxy.inject("500", times=1000)
    with pytest.raises(StorageError, match=r"cannot get s3://.*/a: InternalError"):
        store.get_bytes("a")


def test_before_the_first_answer_patience_is_short(moto, s3, fault_proxy):
    proxy = fault_proxy(moto, rate=1.0, kinds=("500",))
    store = s3(
        moto, proxy=proxy, patience=Patience(first_contact=0.1, give_up_after=10_000, first_pause=0.01)
    )
    with pytest.raises(StorageError, match="500: "):
        store.stat("a")


def test_a_long_failure_is_not_silent(moto, s3, fault_proxy, caplog):
    proxy = fault_proxy(moto)
    store = s3(moto, proxy=proxy)
    proxy.inject("500", times=5)
    with caplog.at_level(logging.WARNING, "shards.stores.s3"):
        store.put_bytes("a", b"x")
    assert [record.message.partition(" s3://")[0] for record in caplog.records] == ["cannot put"]
    assert "trying on for up to" in caplog.text


def test_time_is_what_ends_patience(moto, s3, fault_proxy, monkeypatch):
    """Pauses grow, stay below the longest, and their sum below the limit: counted on a clock that only pauses move."""
    now, pauses = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def sleep(seconds):
        now[0] += seconds
        pauses.append(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    tries = Tries(Patience(), answered=True)

    def fail():
        while True:
            tries.wait_or_raise("boom")

    with pytest.raises(StorageError, match="boom"):
        fail()
    assert 260 < sum(pauses) <= 300
    assert max(pauses) <= 20
    assert pauses[0] <= 0.1
