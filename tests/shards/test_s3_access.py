"""How S3 is reached: roots, credentials, connections, and what a store says of its conditions."""

import multiprocessing
import os
import pickle
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from fault_proxy import CODES
from s3_support import EACH, HASTY, use
from shards.errors import AlreadyExistsError, NotFoundError, StorageError, UsageError
from shards.stores.local import TEMPORARY
from shards.stores.s3 import S3Storage, parse_root
from strict_bucket import Bucket, Refusal

pytestmark = pytest.mark.server


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
