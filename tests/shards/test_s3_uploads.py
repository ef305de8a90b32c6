"""Uploads to S3 in parts, and puts whose answer was lost."""

import re
from contextlib import suppress

import pytest

from s3_support import EACH, HASTY
from shards.errors import AlreadyExistsError, StorageError
from shards.stores import s3 as module
from shards.stores.s3 import S3Storage

pytestmark = pytest.mark.server


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
