"""What AWS checks and other stores let pass: the store against a stand-in that refuses what AWS refuses.

The first half holds the stand-in itself to the rules, since a lenient one would prove nothing.
"""

import socket

import pytest
from botocore.exceptions import ClientError

from s3_support import HASTY
from shards.errors import AlreadyExistsError, StorageError
from shards.stores import s3 as module
from shards.stores.s3 import MIB, S3Storage
from strict_bucket import Bucket

pytestmark = pytest.mark.server


@pytest.fixture
def begun(strict):
    """An upload by hand: `begun(**options)` gives what each of its calls needs."""

    def begin(**options):
        place = {"Bucket": strict.new_bucket(), "Key": "large"}
        answer = strict.client.create_multipart_upload(**place, **options)
        return {**place, "UploadId": answer["UploadId"]}

    return begin


def part_of(strict, upload, number=1, size=10):
    """Send a part; what a completion says of it, its checksum included."""
    answer = strict.client.upload_part(**upload, PartNumber=number, Body=bytes(size))
    return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": answer["ChecksumCRC32"]}


def refusal_of(call, **words):
    with pytest.raises(ClientError) as caught:
        call(**words)
    return caught.value.response["Error"]["Code"]


def test_the_stand_in_refuses_checksums_that_the_upload_did_not_name(strict, begun):
    upload = begun()
    part = part_of(strict, upload)
    complete = strict.client.complete_multipart_upload
    assert refusal_of(complete, **upload, MultipartUpload={"Parts": [part]}) == "InvalidPart"
    del part["ChecksumCRC32"]
    complete(**upload, MultipartUpload={"Parts": [part]})


def test_the_stand_in_wants_the_checksums_that_the_upload_named(strict, begun):
    upload = begun(ChecksumAlgorithm="CRC32")
    part = part_of(strict, upload)
    complete = strict.client.complete_multipart_upload
    without = {name: part[name] for name in ("PartNumber", "ETag")}
    assert refusal_of(complete, **upload, MultipartUpload={"Parts": [without]}) == "InvalidRequest"
    for wrong in ({"ChecksumCRC32": "AAAAAA=="}, {"ETag": '"0"'}, {"PartNumber": 2}):
        assert refusal_of(complete, **upload, MultipartUpload={"Parts": [part | wrong]}) == "InvalidPart"
    other = begun(ChecksumAlgorithm="SHA256")
    words = {"PartNumber": 1, "Body": b"x", "ChecksumCRC32": "jNwWgw=="}
    assert refusal_of(strict.client.upload_part, **other, **words) == "InvalidRequest"
    complete(**upload, MultipartUpload={"Parts": [part]})


def test_the_stand_in_refuses_small_parts_and_wrong_orders(strict, begun):
    upload = begun(ChecksumAlgorithm="CRC32")
    small, last = part_of(strict, upload, 1, 5 * MIB - 1), part_of(strict, upload, 2)
    complete = strict.client.complete_multipart_upload
    assert refusal_of(complete, **upload, MultipartUpload={"Parts": [small, last]}) == "EntityTooSmall"
    assert refusal_of(complete, **upload, MultipartUpload={"Parts": [last, small]}) == "InvalidPartOrder"
    large = part_of(strict, upload, 1, 5 * MIB)
    complete(**upload, MultipartUpload={"Parts": [large, last]})
    assert refusal_of(strict.client.abort_multipart_upload, **upload) == "NoSuchUpload"


def test_the_stand_in_refuses_damaged_bodies_and_foreign_keys(strict):
    place = {"Bucket": strict.new_bucket(), "Key": "a"}
    put = strict.client.put_object
    assert refusal_of(put, **place, Body=b"x", ChecksumCRC32="AAAAAA==") == "BadDigest"
    assert refusal_of(put, **place, Body=b"x", ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg==") == "BadDigest"
    assert refusal_of(put, **place, Body=b"x", IfNoneMatch='"etag"') == "NotImplemented"
    put(**place, Body=b"x", IfNoneMatch="*")
    assert refusal_of(put, **place, Body=b"y", IfNoneMatch="*") == "PreconditionFailed"


def test_a_wrong_secret_is_refused(strict, s3, monkeypatch):
    root = s3(strict).root
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(StorageError, match=r"SignatureDoesNotMatch.*; check the credentials"):
        S3Storage(root, HASTY).put_bytes("a", b"x")


def test_shards_go_up_over_tls_with_trailing_checksums(strict_tls, s3, large):
    store = s3(strict_tls)
    store.put_bytes("small", b"commit", create_only=True)
    store.put_file("large", large, create_only=True)
    assert store.get_bytes("small") == b"commit"
    assert store.get_bytes("large") == large.read_bytes()
    assert (
        strict_tls.bucket(store.root).objects["some/where/large"].checksums["x-amz-checksum-type"]
        == "COMPOSITE"
    )
    with pytest.raises(AlreadyExistsError):
        store.put_file("large", large, create_only=True)


def test_an_upload_that_meets_another_is_begun_again(strict, s3, large):
    """AWS: after 409 from CompleteMultipartUpload the upload has to be initiated again."""
    store = s3(strict)
    store.honours_create_only()
    bucket = strict.bucket(store.root)
    bucket.conflicts["some/where/large"] = 1
    strict.state.requests.clear()
    store.put_file("large", large, create_only=True)
    assert store.get_bytes("large") == large.read_bytes()
    assert not bucket.uploads
    assert sum("POST" in line and "large?uploads" in line for line in strict.state.requests) == 2


def test_an_upload_that_keeps_meeting_others_is_an_error(strict, s3, large):
    store = s3(strict)
    store.honours_create_only()
    bucket = strict.bucket(store.root)
    bucket.conflicts["some/where/large"] = 99
    with pytest.raises(
        StorageError, match=r"cannot put s3://.*/large: .* refused it for another of that name"
    ):
        store.put_file("large", large, create_only=True)
    assert not bucket.uploads
    assert store.stat("large") is None


def test_a_small_put_that_meets_another_is_made_again(strict, s3):
    store = s3(strict)
    store.honours_create_only()
    strict.bucket(store.root).conflicts["some/where/commit"] = 2
    store.put_bytes("commit", b"mine", create_only=True)
    assert store.get_bytes("commit") == b"mine"


@pytest.mark.parametrize("encryption", ["aws:kms", "aws:kms:dsse"])
def test_objects_of_an_encrypted_bucket_are_as_others(strict, s3, large, encryption):
    """Their ETags are no MD5 of anything."""
    store = s3(strict)
    strict.bucket(store.root).encryption = encryption
    store.put_bytes("a", b"x", create_only=True)
    store.put_file("large", large, create_only=True)
    assert store.get_bytes("large") == large.read_bytes()
    assert store.get_range("large", 5, 3) == large.read_bytes()[5:8]
    assert {entry.key: entry for entry in store.list()} == {key: store.stat(key) for key in ("a", "large")}


def test_a_policy_that_demands_a_header_is_named_in_one_line(strict, s3):
    store = s3(strict)
    strict.bucket(store.root).demanded = "aws:kms"
    with pytest.raises(
        StorageError, match=r"AccessDenied.*; check the credentials and what they allow"
    ) as caught:
        store.honours_create_only()
    assert "\n" not in str(caught.value)


def test_a_store_that_takes_no_checksums_is_written_and_read_without(strict, s3, large, monkeypatch):
    store = s3(strict)
    strict.bucket(store.root).plain = True
    with pytest.raises(StorageError, match=r"Unsupported header.*; set AWS_REQUEST_CHECKSUM_CALCULATION="):
        store.put_bytes("a", b"x")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    store = S3Storage(store.root, HASTY)
    store.put_bytes("a", b"x", create_only=True)
    store.put_file("large", large, create_only=True)
    assert store.get_bytes("large") == large.read_bytes()
    assert [entry.key for entry in store.list()] == ["a", "large"]


def test_a_bucket_of_another_region_is_followed_there(strict, s3, large, monkeypatch):
    store = s3(strict)
    strict.bucket(store.root).region = "eu-central-1"
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    far = S3Storage(store.root, HASTY)
    far.put_bytes("a", b"x", create_only=True)
    far.put_file("large", large, create_only=True)
    assert far.get_bytes("large") == large.read_bytes()
    assert [entry.key for entry in far.list()] == ["a", "large"]
    assert far.stat("a").size == 1
    assert abs(far.clock_ahead()) < 60
    assert far.honours_create_only()


def test_a_head_is_the_first_to_meet_another_region(strict, s3, monkeypatch):
    store = s3(strict)
    store.put_bytes("a", b"x")
    strict.bucket(store.root).region = "eu-central-1"
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert S3Storage(store.root, HASTY).stat("a").size == 1
    assert S3Storage(store.root, HASTY).stat("b") is None


def test_a_bucket_is_addressed_by_its_own_host_where_the_configuration_says_so(
    strict, s3, tmp_path, monkeypatch
):
    store = s3(strict)
    (tmp_path / "config").write_text("[default]\ns3 =\n    addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: resolve("localhost", *rest, **more)
    )  # not every machine's resolver knows names below localhost
    strict.state.requests.clear()
    virtual = S3Storage(store.root, HASTY)
    virtual.put_bytes("a/ü b", b"x", create_only=True)
    assert {line.partition(" ")[0] for line in strict.state.requests} == {"virtual"}
    assert store.get_bytes("a/ü b") == b"x"


def test_the_probe_finds_a_store_that_cannot_join_parts(strict, s3, monkeypatch):
    """What cost every real shard on a store that checks parts: found out before a model loads."""
    store = s3(strict)
    monkeypatch.setattr(module, "checksum_named", lambda client: {})
    with pytest.raises(StorageError, match=r"cannot put s3://.*/\.tmp-probe-.*: InvalidPart"):
        store.honours_create_only()
    assert not strict.bucket(store.root).objects
    assert not strict.bucket(store.root).uploads


def test_the_probe_finds_a_store_that_heeds_the_condition_only_on_whole_puts(strict, s3, monkeypatch):
    store = s3(strict)
    complete = Bucket.complete
    monkeypatch.setattr(
        Bucket, "complete", lambda self, upload, key, parts, _: complete(self, upload, key, parts, {})
    )
    assert not store.honours_create_only()
    assert not strict.bucket(store.root).objects


def test_the_probe_finds_a_store_whose_listing_lacks_what_was_put(strict, s3, monkeypatch):
    store = s3(strict)
    monkeypatch.setattr(S3Storage, "abandoned", lambda self: ())
    with pytest.raises(
        StorageError, match="its listing lacks an object that was just put; allow s3:ListBucket"
    ):
        store.honours_create_only()


def test_the_probe_leaves_nothing(strict, s3):
    store = s3(strict)
    assert store.honours_create_only()
    bucket = strict.bucket(store.root)
    assert not bucket.objects
    assert not bucket.uploads
