"""What an S3 store does to a writer: two real servers, a strict stand-in, and a proxy that breaks what passes."""

import io
import logging
import multiprocessing
import os
import pickle
import re
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from fault_proxy import CODES
from s3_support import HASTY, servers, use
from shards.errors import AlreadyExistsError, NotFoundError, StorageError, UsageError
from shards.stores import s3 as module
from shards.stores.local import TEMPORARY
from shards.stores.s3 import MIB, S3Storage, parse_root
from shards.stores.s3_client import Patience, Tries
from shards.stores.s3_stream import S3Reader
from strict_bucket import Bucket, Refusal

pytestmark = pytest.mark.server
EACH = pytest.mark.parametrize("server", servers(), indirect=True)


@pytest.fixture
def server(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that goes up in three parts, each as small as S3 allows."""
    monkeypatch.setattr(module, "PART", 5 * MIB)
    path = tmp_path / "large"
    path.write_bytes(os.urandom(2 * module.PART + 12345))
    return path


def parts_sent(proxy):
    """Numbers of the parts that went through a proxy; a slow one may have gone twice."""
    return sorted(
        {re.search(r"partNumber=(\d+)", line)[1] for line in proxy.requests if "partNumber=" in line}
    )


def uploads(server, store):
    """Unfinished uploads in parts."""
    # Where there is none, rclone answers NoSuchUpload.
    with suppress(server.client.exceptions.NoSuchUpload):
        return server.client.list_multipart_uploads(Bucket=store.root.split("/")[2]).get("Uploads", [])
    return []


def test_a_store_without_prefix_is_the_whole_bucket(moto, s3):
    store = s3(moto, prefix="")
    store.put_bytes("train/a", b"x")
    assert [entry.key for entry in store.list()] == ["train/a"]
    assert store.url("train/a") == f"{store.root}/train/a"


def test_two_roots_of_a_bucket_do_not_see_each_other(moto, s3):
    one = s3(moto, prefix="data")
    two = S3Storage(one.root + "-2", HASTY)
    two.put_bytes("a", b"x")
    assert list(one.list()) == []


def test_folder_marks_of_consoles_are_no_objects(moto, s3):
    store = s3(moto)
    for key in ("some/where/", "some/where/train/", f"some/where/{TEMPORARY}probe-dead"):
        moto.client.put_object(Bucket=store.root.split("/")[2], Key=key, Body=b"")
    assert list(store.list()) == []


@EACH
def test_a_large_file_goes_up_in_parts(server, s3, fault_proxy, large):
    proxy = fault_proxy(server)
    store = s3(server, proxy=proxy)
    store.put_file("large", large)
    assert parts_sent(proxy) == ["1", "2", "3"]
    sent = {line for line in proxy.requests if "large" in line and line.startswith(("PUT", "POST"))}
    assert len(sent) == module.requests_to_put(large.stat().st_size) == 5
    assert module.requests_to_put(module.PART) == 1
    assert store.get_bytes("large") == large.read_bytes()
    assert uploads(server, store) == []


@EACH
@pytest.mark.parametrize("calculation", ["when_supported", "when_required"])
def test_an_upload_names_the_checksum_that_its_parts_bear(server, s3, large, monkeypatch, calculation):
    """Stores that check parts refuse to complete any other upload (`InvalidPart`); moto and rclone do not mind."""
    root = s3(server).root
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", calculation)
    store = S3Storage(root, HASTY)
    sent = []
    store._calls.client.meta.events.register(
        "before-send.s3", lambda request, **_: sent.append((request.url, str(request.headers).lower()))
    )
    store.put_file("large", large)
    named = ["x-amz-checksum-algorithm" in headers for url, headers in sent if url.endswith("?uploads")]
    borne = ["x-amz-checksum-crc32" in headers for url, headers in sent if "partNumber=" in url]
    assert named == [calculation == "when_supported"]
    assert borne == 3 * named
    assert store.get_bytes("large") == large.read_bytes()


@EACH
def test_a_large_file_is_created_only_once(server, s3, large):
    store = s3(server)
    store.put_bytes("large", b"first")
    with pytest.raises(AlreadyExistsError):
        store.put_file("large", large, create_only=True)
    assert store.get_bytes("large") == b"first"
    assert uploads(server, store) == []


def test_parts_grow_where_there_would_be_too_many(moto, s3, fault_proxy, large, monkeypatch):
    monkeypatch.setattr(module, "MOST_PARTS", 2)
    proxy = fault_proxy(moto)
    store = s3(moto, proxy=proxy)
    store.put_file("large", large)
    assert parts_sent(proxy) == ["1", "2"]
    assert store.get_bytes("large") == large.read_bytes()


def test_an_upload_that_fails_leaves_no_parts(moto, s3, fault_proxy, large):
    proxy = fault_proxy(moto)
    store = s3(moto, proxy=proxy)
    proxy.inject("denied", method="PUT", containing="partNumber=2")
    with pytest.raises(
        StorageError, match=r"cannot put s3://.*/large: AccessDenied: as ordered; check the credentials"
    ):
        store.put_file("large", large)
    assert uploads(moto, store) == []
    assert store.stat("large") is None


def test_an_interrupted_upload_leaves_no_parts(moto, s3, large, monkeypatch):
    store = s3(moto)
    send = S3Storage._send

    def interrupted(*words):
        send(*words)
        raise KeyboardInterrupt

    monkeypatch.setattr(S3Storage, "_send", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put_file("large", large)
    assert uploads(moto, store) == []
    assert store.stat("large") is None


def test_an_upload_that_the_store_lost_is_begun_again(rclone, s3, large, monkeypatch):
    store = s3(rclone)  # moto answers 500 for ever

    bucket = store.root.split("/")[2]
    send = S3Storage._send
    lost = []

    def lose_once(self, url, path, size, upload):
        parts = send(self, url, path, size, upload)
        if not lost:
            lost.append(upload)
            rclone.client.abort_multipart_upload(
                Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        return parts

    monkeypatch.setattr(S3Storage, "_send", lose_once)
    store.put_file("large", large)
    assert store.get_bytes("large") == large.read_bytes()
    assert lost


def test_an_upload_that_the_store_keeps_losing_is_an_error(moto, s3, large, monkeypatch):
    store = s3(moto)
    monkeypatch.setattr(S3Storage, "_put_parts", lambda *_: False)
    with pytest.raises(StorageError, match="lost the upload 3 times"):
        store.put_file("large", large)


@EACH
def test_a_put_whose_answer_was_lost_knows_its_own_object(server, s3, fault_proxy):
    """The server stored it, the answer broke off, and the second try is refused because of the first."""
    proxy = fault_proxy(server)
    store = s3(server, proxy=proxy)
    store.honours_create_only()
    proxy.inject("reset-after", method="PUT", containing="/commit")
    store.put_bytes("commit", b"mine", create_only=True)
    assert store.get_bytes("commit") == b"mine"
    assert proxy.faults == {"reset-after": 1}
    with pytest.raises(AlreadyExistsError):
        store.put_bytes("commit", b"mine", create_only=True)


@EACH
def test_so_does_an_upload_in_parts(server, s3, fault_proxy, large):
    proxy = fault_proxy(server)
    store = s3(server, proxy=proxy)
    proxy.inject("reset-after", method="POST", containing="uploadId=")
    store.put_file("large", large, create_only=True)
    assert store.get_bytes("large") == large.read_bytes()
    assert uploads(server, store) == []


def test_a_stranger_who_came_between_two_tries_is_not_mistaken_for_oneself(
    moto, s3, fault_proxy, monkeypatch
):
    proxy = fault_proxy(moto)
    store = s3(moto, proxy=proxy)
    store.honours_create_only()
    proxy.inject("conflict", method="PUT", containing="/commit")
    stranger = S3Storage(store.root, HASTY)
    judge = S3Storage._judge
    seen = []

    def judging(self, refusal, key, attempt):
        seen.append(refusal.code)
        return judge(self, refusal, key, attempt)

    stranger.put_bytes(
        "commit", b"mine", create_only=True
    )  # the same bytes: only the attempt tells them apart
    monkeypatch.setattr(S3Storage, "_judge", judging)
    with pytest.raises(AlreadyExistsError):
        store.put_bytes("commit", b"mine", create_only=True)
    assert seen == ["PreconditionFailed"]


def create(root, number, start, won):
    store = S3Storage(root)
    store.honours_create_only()
    start.wait()
    try:
        store.put_bytes("prize", str(number).encode(), create_only=True)
        won.put(number)
    except AlreadyExistsError:
        won.put(None)


def test_of_two_processes_that_create_at_once_one_wins(moto, s3):
    store = s3(moto)
    context = multiprocessing.get_context("spawn")
    start, won = context.Barrier(2), context.SimpleQueue()
    processes = [context.Process(target=create, args=(store.root, number, start, won)) for number in (1, 2)]
    for process in processes:
        process.start()
    numbers = {won.get() for _ in processes}
    for process in processes:
        process.join()
    assert numbers - {None} == {int(store.get_bytes("prize"))}
    assert None in numbers


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


def test_temporary_credentials_that_expire_are_read_again(rclone, s3, fault_proxy, tmp_path, monkeypatch):
    store = s3(rclone)
    store.put_bytes("a", b"x")
    proxy = fault_proxy(rclone)
    env = rclone.env_through(proxy.endpoint) | {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}
    secrets = {name: env.pop(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    profile = "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    (tmp_path / "credentials").write_text(profile.format("AKIAOLD", "old"))
    use(monkeypatch, env)
    store = S3Storage(store.root, HASTY)
    (tmp_path / "credentials").write_text(profile.format(*secrets.values()))
    for operation in (store.get_bytes, store.stat):
        proxy.inject("expired")
        operation("a")
    assert proxy.faults == {"expired": 2}


def test_wrong_credentials_are_not_tried_twice_and_not_shown(rclone, s3, monkeypatch, fault_proxy):
    proxy = fault_proxy(rclone)
    store = s3(rclone, proxy=proxy)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "thisIsTheSecretThatNobodyMaySee")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
    with pytest.raises(StorageError, match="check the credentials and what they allow") as caught:
        S3Storage(store.root, HASTY).put_bytes("a", b"x")
    text = "".join(traceback.format_exception(caught.value))
    assert "thisIsTheSecret" not in text
    assert "AKIANOBODY" not in text
    assert len(proxy.requests) == 1


def test_a_secret_that_the_store_echoes_is_not_passed_on(moto, s3, fault_proxy, monkeypatch):
    proxy = fault_proxy(moto)
    store = s3(moto, proxy=proxy)
    monkeypatch.setitem(CODES, "denied", (403, f"AccessDenied {moto.secret_key} {moto.access_key}"))
    proxy.inject("denied")
    with pytest.raises(StorageError, match="AccessDenied … …: as ordered") as caught:
        store.put_bytes("a", b"x")
    text = "".join(traceback.format_exception(caught.value))
    assert moto.secret_key not in text
    assert moto.access_key not in text


@EACH
def test_a_bucket_that_is_not_there_is_named(server, s3):
    s3(server)
    for operation in (lambda s: s.put_bytes("a", b""), lambda s: s.get_bytes("a"), lambda s: list(s.list())):
        with pytest.raises(
            StorageError, match=r"NoSuchBucket.*; make the bucket or check its name"
        ) as caught:
            operation(S3Storage("s3://no-such-bucket/x", HASTY))
        assert not isinstance(caught.value, NotFoundError)


def test_no_credentials_name_the_variables(monkeypatch, tmp_path):
    nothing = {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    use(monkeypatch, nothing)
    with pytest.raises(
        UsageError, match="no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ):
        S3Storage("s3://bucket/x")
    use(monkeypatch, nothing | {"AWS_ACCESS_KEY_ID": "AKIAHALF"})
    with pytest.raises(UsageError, match=r"incomplete.*AWS_SECRET_ACCESS_KEY") as caught:
        S3Storage("s3://bucket/x")
    assert "AKIAHALF" not in str(caught.value)
    use(monkeypatch, nothing | {"AWS_PROFILE": "nobody"})
    with pytest.raises(UsageError, match="check AWS_PROFILE"):
        S3Storage("s3://bucket/x")


def test_an_endpoint_that_is_none_is_not_repeated(moto, monkeypatch):
    use(monkeypatch, moto.env_through("user:hunter2@nowhere"))
    with pytest.raises(UsageError, match="check AWS_ENDPOINT_URL_S3") as caught:
        S3Storage("s3://bucket/x")
    assert "hunter2" not in str(caught.value)


def test_pickles_hold_no_credentials(moto, s3):
    assert moto.secret_key.encode() not in pickle.dumps(s3(moto))


def fork_and_read(store, queue):
    queue.put(store.get_bytes("a"))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_does_not_use_its_parents_connections(moto, s3):
    store = s3(moto)
    store.put_bytes("a", b"x")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    client = store._calls.client
    child = context.Process(target=fork_and_read, args=(store, queue))
    child.start()
    assert queue.get() == b"x"
    child.join()
    assert store._calls.client is client
    store._calls._owner = -1
    assert store._calls.client is not client


def test_objects_are_addressed_by_path(moto, s3, fault_proxy):
    proxy = fault_proxy(moto)
    store = s3(moto, proxy=proxy)
    store.put_bytes("a", b"x")
    assert proxy.requests == [f"PUT /{store.root.removeprefix('s3://')}/a"]


def test_threads_share_connections(moto, s3):
    store = s3(moto)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: store.put_bytes(f"k{i}", b"x"), range(48)))
    assert len(list(store.list())) == 48


def test_a_store_that_refuses_the_condition_does_not_honour_it(strict, s3, monkeypatch):
    conditional = Bucket._conditional

    def unknown(self, key, headers):
        if "if-none-match" in headers:
            raise Refusal(501, "NotImplemented")
        return conditional(self, key, headers)

    monkeypatch.setattr(Bucket, "_conditional", unknown)
    store = s3(strict)
    assert not store.honours_create_only()
    store.put_bytes("a", b"x", create_only=True)
    with pytest.raises(AlreadyExistsError):
        store.put_bytes("a", b"y", create_only=True)


def test_the_probe_asks_once(moto, s3, fault_proxy):
    proxy = fault_proxy(moto)
    store = s3(moto, proxy=proxy)
    assert store.honours_create_only()
    asked = len(proxy.requests)
    assert store.honours_create_only()
    assert len(proxy.requests) == asked


@pytest.mark.parametrize(
    ("root", "parsed"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://my.bucket-1/a/b/", ("my.bucket-1", "a/b")),
        ("s3://bucket/with space/ü", ("bucket", "with space/ü")),
    ],
)
def test_roots(root, parsed):
    assert parse_root(root) == parsed


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        ("s3://", "no bucket"),
        ("s3:///key", "no bucket"),
        ("s3://b/x", "'b' is not a bucket's name"),
        ("s3://buck et/x", "is not a bucket's name"),
        ("s3://bucket/a//b", "empty, '.' or '..' part"),
        ("s3://bucket/../x", "empty, '.' or '..' part"),
        ("s3://bucket/x?token=hunter2", r"one of \? #"),
        ("s3://AKIA:hunter2@bucket/x", "more than a bucket before its first slash"),
    ],
)
def test_roots_that_are_none(root, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        parse_root(root)
    assert "hunter2" not in str(caught.value)
    assert "give s3://bucket/prefix" in str(caught.value)


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
