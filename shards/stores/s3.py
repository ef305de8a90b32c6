"""Datasets in an S3-compatible store."""

import io
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from shards.errors import AlreadyExistsError, NotFoundError, StorageError, UsageError
from shards.stores.s3_client import Patience, RefusedError, S3Calls, sends_checksums
from shards.stores.s3_stream import S3Reader
from shards.stores.store import MAX_WHOLE, TEMPORARY, Entry, Folder, check_key, check_size

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1 << 20
PART = 16 * MIB  # bytes; objects above it go up in parts of this size, side by side
MOST_PARTS = 10_000  # S3's limit; parts grow when an object would need more
PART_CHECKSUM = "CRC32"  # that botocore gives each part by default
SENDERS = 8  # parts under way at once: one connection carries about 90 MB/s, memory is PART times this
UPLOADS = 3  # times an upload is begun anew when the store has lost it
CONFLICT = "ConditionalRequestConflict"  # 409: another conditional put of that key is under way
ATTEMPT = (
    "attempt"  # metadata: the put that wrote the object, so that its lost answer can be told from a stranger
)


def requests_to_put(size: int) -> int:
    """How many requests it takes to put a file of so many bytes: one, or one for each part and two around them."""
    return 1 if size <= PART else -(-size // _part_of(size)) + 2


def _part_of(size: int) -> int:
    return max(PART, -(-size // MOST_PARTS))


class S3Storage:
    """A prefix of a bucket. See `Storage` for what the methods do.

    Endpoint, region and credentials come from the standard AWS names: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL
    (addressed by path), AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, or
    the machine's role, whose temporary credentials are renewed as they expire. Stores that refuse checksums want
    AWS_REQUEST_CHECKSUM_CALCULATION=when_required.

    A killed upload in parts leaves parts that no listing shows and that cost money: give the bucket a lifecycle
    rule AbortIncompleteMultipartUpload.

    Args:
        root: s3://bucket/prefix, the prefix may be absent.
        patience: how long a failing store is tried.

    Raises:
        UsageError: the root is malformed, or there are no credentials.
    """

    def __init__(self, root: str, patience: Patience | None = None) -> None:
        self._bucket, self._prefix = parse_root(root)
        self.root = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        self._patience = patience or Patience()
        self._calls = S3Calls(self._patience)
        self._honours: bool | None = None

    def __reduce__(self) -> tuple[type["S3Storage"], tuple[str, Patience]]:
        return (S3Storage, (self.root, self._patience))

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> None:
        """See `Storage.put_file`; an object above `PART` goes up in parts."""
        if path.stat().st_size <= PART:
            self.put_bytes(key, path.read_bytes(), create_only=create_only)
            return
        self._put_in_parts(key, path, self._condition(key, create_only))

    def _put_in_parts(self, key: str, path: Path, condition: dict[str, Any]) -> None:
        for _ in range(UPLOADS):
            if self._put_parts(key, path, path.stat().st_size, condition):
                return
        raise StorageError(
            f"cannot put {self.url(key)}: the store lost the upload {UPLOADS} times, or refused it for another of that "
            "name under way"
        )

    def put_bytes(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """See `Storage.put_bytes`."""
        self._put(key, data, self._condition(key, create_only))

    def _condition(self, key: str, create_only: bool) -> dict[str, Any]:
        """The header of a create-only put, for a store that heeds it; elsewhere looking first must do.

        Between the look and the put another writer may come: that is what the lease is for.
        """
        if not create_only:
            return {}
        if self.honours_create_only():
            return {"IfNoneMatch": "*"}
        if self.stat(key) is not None:
            raise AlreadyExistsError(f"{self.url(key)} exists already")
        return {}

    def _put(self, key: str, data: bytes, condition: dict[str, Any]) -> None:
        attempt = uuid.uuid4().hex
        place = self._place(key)
        try:
            self._calls.run(
                "put",
                self.url(key),
                lambda client: client.put_object(
                    **place, Body=data, Metadata={ATTEMPT: attempt}, **condition
                ),
            )
        except RefusedError as refusal:
            self._judge(refusal, key, attempt)

    def _judge(self, refusal: RefusedError, key: str, attempt: str) -> None:
        """Return when the object is this very put's, whose answer was lost; else raise what it means."""
        if refusal.code in ("PreconditionFailed", "NoSuchUpload") and self._is_ours(key, attempt):
            return
        if refusal.code == "PreconditionFailed":
            raise AlreadyExistsError(f"{self.url(key)} exists already") from None
        raise refusal

    def _is_ours(self, key: str, attempt: str) -> bool:
        """Whether the object there was written by this attempt."""
        try:
            head = self._calls.run(
                "look at", self.url(key), lambda client: client.head_object(**self._place(key))
            )
        except NotFoundError:
            return False
        # rclone gives the names back capitalised
        return {name.lower(): value for name, value in head["Metadata"].items()}.get(ATTEMPT) == attempt

    def _put_parts(self, key: str, path: Path, size: int, condition: dict[str, Any]) -> bool:
        """Send a file in parts; False when the store lost the upload, or it met another of the same key."""
        attempt = uuid.uuid4().hex
        place, url = self._place(key), self.url(key)
        begun = self._calls.run(
            "put",
            url,
            lambda client: client.create_multipart_upload(
                **place, **checksum_named(client), Metadata={ATTEMPT: attempt}
            ),
        )
        upload = {**place, "UploadId": begun["UploadId"]}
        try:
            parts = self._send(url, path, size, upload)
            self._calls.run(
                "put",
                url,
                lambda client: client.complete_multipart_upload(
                    **upload, MultipartUpload={"Parts": parts}, **condition
                ),
                final=(CONFLICT,),
            )
        except RefusedError as refusal:
            if refusal.code == "NoSuchUpload" and not self._is_ours(key, attempt):
                return False
            self._abort(upload)
            if refusal.code == CONFLICT:  # S3 wants such an upload begun again, not only completed again
                return False
            self._judge(refusal, key, attempt)
        except BaseException:  # an interrupt too: parts left behind cost money
            self._abort(upload)
            raise
        return True

    def _send(self, url: str, path: Path, size: int, upload: dict[str, Any]) -> list[Any]:
        """Upload the parts side by side; what completing needs to know of each."""
        part = _part_of(size)

        def send(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek((number - 1) * part)
                body = file.read(part)
            answer = self._calls.run(
                "put", url, lambda client: client.upload_part(**upload, PartNumber=number, Body=body)
            )
            told = {
                name: value for name, value in answer.items() if name == "ETag" or name.startswith("Checksum")
            }
            told.pop("ChecksumType", None)
            return {"PartNumber": number, **told}

        with ThreadPoolExecutor(SENDERS, thread_name_prefix="s3-part") as pool:
            return list(pool.map(send, range(1, -(-size // part) + 1)))

    def _abort(self, upload: dict[str, Any]) -> None:
        """Drop an upload's parts, in two tries: the failure that led here is the one to report."""
        for _ in range(2):  # the first may meet a kept connection that the store has closed
            with suppress(Exception):
                self._calls.client.abort_multipart_upload(**upload)
                return

    def get_bytes(self, key: str, most: int = MAX_WHOLE) -> bytes:
        """See `Storage.get_bytes`."""
        with S3Reader(self._calls, self._bucket, self._full(key), self.url(key)) as reader:
            check_size(self.url(key), reader.left, most)
            return reader.readall()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See `Storage.get_range`."""
        if start < 0 or length < 0:
            raise ValueError(f"not a range of bytes: {length} from {start}; neither may be negative")
        if length == 0:
            return b""
        url = self.url(key)
        try:
            with S3Reader(self._calls, self._bucket, self._full(key), url, start, start + length) as reader:
                data = reader.readall()
        except RefusedError as refusal:
            if refusal.code != "InvalidRange":
                raise
            data = b""
        if len(data) != length:
            raise StorageError(f"{url}: {len(data)} bytes at {start} instead of {length}; it was cut short")
        return data

    def open(self, key: str) -> BinaryIO:
        """See `Storage.open`; a connection that breaks is opened again where it broke."""
        reader = S3Reader(self._calls, self._bucket, self._full(key), self.url(key))
        return cast(BinaryIO, io.BufferedReader(reader, MIB))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See `Storage.list`; one request for each thousand objects, made as they are asked for."""
        base = f"{self._prefix}/" if self._prefix else ""
        for page in self._pages(prefix, {"Prefix": base + prefix}):
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(base)
                # Consoles mark folders with empty objects whose names end in a slash.
                if not item["Key"].endswith("/") and not key.rpartition("/")[2].startswith(TEMPORARY):
                    yield _listed(key, item)

    def look(self, folder: str = "") -> Folder:
        """See `Storage.look`; one request for each thousand names, however much lies deeper."""
        base = f"{self._full(folder) if folder else self._prefix}/".lstrip("/")
        objects: list[str] = []
        folders: list[str] = []
        for page in self._pages(folder, {"Prefix": base, "Delimiter": "/"}):
            objects += [item["Key"].removeprefix(base) for item in page.get("Contents", ())]
            deeper = (item["Prefix"] for item in page.get("CommonPrefixes", ()))
            folders += [prefix.removeprefix(base).removesuffix("/") for prefix in deeper]
        return Folder.of(objects, folders)

    def _pages(self, place: str, request: dict[str, Any]) -> Iterator[Any]:
        """The pages of a listing, made as they are asked for."""
        request = {"Bucket": self._bucket, **request}
        while True:
            page = self._calls.run("list", f"{self.root}/{place}", _lister(request))
            yield page
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def stat(self, key: str) -> Entry | None:
        """See `Storage.stat`."""
        place = self._place(key)
        try:
            head = self._calls.run("look at", self.url(key), lambda client: client.head_object(**place))
        except NotFoundError:
            return None
        return Entry(key, head["ContentLength"], head["ETag"].strip('"'), head["LastModified"].timestamp())

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        place = self._place(key)
        with suppress(NotFoundError):
            self._calls.run("delete", self.url(key), lambda client: client.delete_object(**place))

    def abandoned(self) -> tuple[Entry, ...]:
        """See `Storage.abandoned`: probes, since an object is put whole or not at all."""
        hidden = f"{self._prefix}/{TEMPORARY}".lstrip("/")
        start = len(hidden) - len(TEMPORARY)
        pages = self._pages(TEMPORARY, {"Prefix": hidden})
        return tuple(
            _listed(item["Key"][start:], item) for page in pages for item in page.get("Contents", ())
        )

    def honours_create_only(self) -> bool:
        """Found out by trying, once for each opening, on a throwaway object that no listing shows.

        Raises:
            StorageError: an object cannot be put in parts, as shards are, read back, listed or deleted.
        """
        if self._honours is None:
            self._honours = self._probe()
        return self._honours

    def _probe(self) -> bool:
        key = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
        with tempfile.TemporaryDirectory() as folder:
            first, second = Path(folder, "first"), Path(folder, "second")
            first.write_bytes(b"first")
            second.write_bytes(b"second")
            try:
                self._put_in_parts(key, first, {})
                self._check_probe(key)
                return (
                    self._refuses(lambda condition: self._put(key, b"second", condition))
                    and self._refuses(lambda condition: self._put_in_parts(key, second, condition))
                    and self.get_bytes(key) == b"first"
                )
            finally:
                with suppress(StorageError):
                    self.delete(key)

    def _check_probe(self, key: str) -> None:
        if self.get_bytes(key) != b"first":
            raise StorageError(
                f"{self.url(key)} does not hold what was put there in parts; use another store"
            )
        if all(entry.key != key for entry in self.abandoned()):
            raise StorageError(
                f"{self.root}: its listing lacks an object that was just put; allow s3:ListBucket, or use another store"
            )

    def _refuses(self, put: Callable[[dict[str, Any]], None]) -> bool:
        """Whether a put under a name that is taken is refused where it must only create."""
        try:
            put({"IfNoneMatch": "*"})
        except AlreadyExistsError:
            return True
        except RefusedError as refusal:
            if refusal.code != "NotImplemented":
                raise
        return False

    def clock_ahead(self) -> float | None:
        """See `Storage.clock_ahead`; asked without a signature, which is what a wrong clock would spoil."""
        return self._calls.run("ask the time of", self.root, lambda _: self._calls.clock_ahead(self._bucket))

    def url(self, key: str) -> str:
        """An s3:// address."""
        return f"{self.root}/{check_key(key)}"

    def _full(self, key: str) -> str:
        return f"{self._prefix}/{check_key(key)}".lstrip("/")

    def _place(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._full(key)}


def _lister(request: dict[str, Any]) -> Any:
    """A call that lists one page."""

    def call(client: "S3Client") -> Any:
        return client.list_objects_v2(**request)

    return call


def parse_root(root: str) -> tuple[str, str]:
    """Bucket and prefix of a root.

    Raises:
        UsageError: not s3://bucket or s3://bucket/prefix.
    """
    wanted = "give s3://bucket/prefix"
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    if "@" in bucket or ":" in bucket:  # not repeated: it may hold a secret
        raise UsageError(
            f"the S3 root holds more than a bucket before its first slash; {wanted}, and credentials by "
            "the AWS_* variables"
        )
    if not root.startswith("s3://") or not bucket:
        raise UsageError(f"root {root!r}: no bucket; {wanted}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", bucket):
        raise UsageError(
            f"root {root!r}: {bucket!r} is not a bucket's name (3 to 63 letters, digits, '.', '-'); {wanted}"
        )
    prefix = prefix.rstrip("/")
    if prefix and (
        re.search(r"[?#\\\x00-\x1f]", prefix) or any(part in ("", ".", "..") for part in prefix.split("/"))
    ):
        raise UsageError(
            f"root 's3://{bucket}/…': its prefix has an empty, '.' or '..' part, or one of ? # \\; {wanted}"
        )
    return bucket, prefix


def checksum_named(client: Any) -> dict[str, Any]:
    """What an upload in parts says of its parts' checksums, where botocore adds them.

    Stores that check parts refuse to complete an upload whose parts bear checksums that its beginning did not name
    (`InvalidPart`: LocalStack, and AWS by several reports).
    """
    return {"ChecksumAlgorithm": PART_CHECKSUM} if sends_checksums(client) else {}


def _listed(key: str, item: Mapping[str, Any]) -> Entry:
    return Entry(key, item["Size"], item["ETag"].strip('"'), item["LastModified"].timestamp())
