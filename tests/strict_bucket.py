"""What an S3 bucket accepts and refuses: the rules of AWS's API reference, each with AWS's word for its breach.

Taken from the reference of PutObject, CreateMultipartUpload, UploadPart, CompleteMultipartUpload and from
"Checking object integrity" in the S3 user guide, where those are open the stricter reading.
"""

import base64
import hashlib
import struct
import threading
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

SMALLEST_PART = 5 << 20  # bytes; all but the last
CHECKSUMS = {"crc32": lambda data: struct.pack(">I", zlib.crc32(data))}
CHECKSUMS |= {name: (lambda data, name=name: hashlib.new(name, data).digest()) for name in ("sha1", "sha256")}


class Refusal(Exception):
    """An answer that is an error: status, code, and what else belongs into it."""

    def __init__(self, status: int, code: str, message: str = "", headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


@dataclass(frozen=True)
class Stored:
    """An object: its bytes, its ETag with quotes, its metadata and checksum headers, and when it was put."""

    data: bytes
    tag: str
    metadata: Mapping[str, str]
    checksums: Mapping[str, str]
    written: datetime


@dataclass
class Upload:
    """An upload in parts: the checksum it named, and each part's bytes, ETag and checksum by number."""

    key: str
    algorithm: str
    metadata: Mapping[str, str]
    parts: dict[int, tuple[bytes, str, str]] = field(default_factory=dict)
    conflicted: bool = False


class Bucket:
    """A bucket in memory.

    Args:
        region: where it is; requests signed for another are redirected.
        encryption: `x-amz-server-side-encryption` of everything put; ETags of `aws:kms` objects are no MD5.
        demanded: an encryption that puts must ask for by header, as a policy may have it.
    """

    def __init__(self, region: str, encryption: str = "AES256", demanded: str = "") -> None:
        self.region, self.encryption, self.demanded, self.plain = region, encryption, demanded, False
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.conflicts: Counter[str] = Counter()  # by key: so many conditional writes meet another
        self.lock = threading.Lock()
        self._writing: Counter[str] = Counter()

    def put(self, key: str, data: bytes, headers: Mapping[str, str]) -> Stored:
        """Store an object whole."""
        self._check_encryption(headers)
        checksums = _checked(data, headers)
        with self._conditional(key, headers):
            stored = Stored(data, self._tag(data), _metadata(headers), checksums, datetime.now(UTC))
            self.objects[key] = stored
        return stored

    def begin(self, key: str, headers: Mapping[str, str]) -> str:
        """Begin an upload in parts; its id."""
        self._check_encryption(headers)
        algorithm = headers.get("x-amz-checksum-algorithm", "").lower()
        if algorithm and algorithm not in CHECKSUMS:
            raise Refusal(400, "InvalidRequest", "Checksum algorithm provided is unsupported")
        upload = uuid.uuid4().hex
        with self.lock:
            self.uploads[upload] = Upload(key, algorithm, _metadata(headers))
        return upload

    def put_part(
        self, upload_id: str, key: str, number: int, data: bytes, headers: Mapping[str, str]
    ) -> tuple[str, dict[str, str]]:
        """Store a part; its ETag and checksum headers."""
        upload = self._upload(upload_id, key)
        if not 1 <= number <= 10_000:
            raise Refusal(
                400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive"
            )
        checksums = _checked(data, headers)
        name = next((header.rpartition("-")[2] for header in checksums), "")
        if upload.algorithm and name != upload.algorithm:
            told = f"expected checksum Type: {upload.algorithm}, actual checksum Type: {name or 'null'}"
            raise Refusal(400, "InvalidRequest", f"Checksum Type mismatch occurred, {told}")
        tag = self._tag(data)
        with self.lock:
            upload.parts[number] = data, tag, checksums.get(f"x-amz-checksum-{name}", "")
        return tag, checksums

    def complete(
        self, upload_id: str, key: str, listed: list[dict[str, str]], headers: Mapping[str, str]
    ) -> Stored:
        """Make an object of parts."""
        upload = self._upload(upload_id, key)
        if upload.conflicted:
            raise Refusal(409, "ConditionalRequestConflict", "initiate the upload again")
        parts = _parts(upload, listed)
        try:
            with self._conditional(key, headers):
                tags = b"".join(hashlib.md5(data).digest() for data, _, _ in parts)
                digest = hashlib.md5(tags).hexdigest()
                tag = f'"{digest}-{len(parts)}"'
                data = b"".join(data for data, _, _ in parts)
                checksums = _composite(upload.algorithm, parts)
                stored = Stored(data, tag, upload.metadata, checksums, datetime.now(UTC))
                self.objects[key] = stored
        except Refusal as refusal:
            upload.conflicted = refusal.status == 409
            raise
        with self.lock:
            self.uploads.pop(upload_id, None)
        return stored

    def abort(self, upload_id: str, key: str) -> None:
        """Forget an upload."""
        self._upload(upload_id, key)
        with self.lock:
            self.uploads.pop(upload_id, None)

    def _upload(self, upload_id: str, key: str) -> Upload:
        upload = self.uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise Refusal(404, "NoSuchUpload", "The specified upload does not exist")
        return upload

    def check_headers(self, headers: Mapping[str, str]) -> None:
        """Refuse headers of checksums where `plain` is set, as Backblaze B2 does."""
        odd = [name for name in headers if name.startswith(("x-amz-checksum-", "x-amz-sdk-checksum-"))]
        if self.plain and odd:
            raise Refusal(
                400, "InvalidArgument", f"Unsupported header '{odd[0]}' received for this API call."
            )

    def _check_encryption(self, headers: Mapping[str, str]) -> None:
        if self.demanded and headers.get("x-amz-server-side-encryption") != self.demanded:
            raise Refusal(403, "AccessDenied", "with an explicit deny in a resource-based policy")

    def _tag(self, data: bytes) -> str:
        digest = hashlib.md5(data).hexdigest() if self.encryption == "AES256" else uuid.uuid4().hex
        return f'"{digest}"'

    @contextmanager
    def _conditional(self, key: str, headers: Mapping[str, str]) -> Iterator[None]:
        """Hold the bucket while an object is replaced, where the condition allows it.

        Of two conditional writes of one key at a time the later gets 409, as on AWS.
        """
        condition = headers.get("if-none-match")
        if condition not in (None, "*"):
            raise Refusal(
                501, "NotImplemented", "A header you provided implies functionality that is not implemented"
            )
        with self.lock:
            busy = condition and (self._writing[key] or self.conflicts[key])
            if busy:
                self.conflicts[key] -= bool(self.conflicts[key])
                raise Refusal(
                    409, "ConditionalRequestConflict", "a conflicting conditional operation is under way"
                )
            self._writing[key] += 1
        try:
            with self.lock:
                if condition and key in self.objects:
                    raise Refusal(
                        412, "PreconditionFailed", "At least one of the pre-conditions did not hold"
                    )
                yield
        finally:
            with self.lock:
                self._writing[key] -= 1


def _parts(upload: Upload, listed: list[dict[str, str]]) -> list[tuple[bytes, str, str]]:
    """The parts that a completion lists, each held against what was sent."""
    numbers = [int(part["PartNumber"]) for part in listed]
    if not listed:
        raise Refusal(400, "MalformedXML", "The XML you provided was not well-formed")
    if numbers != sorted(set(numbers)):
        raise Refusal(400, "InvalidPartOrder", "The list of parts was not in ascending order")
    found = []
    for number, part in zip(numbers, listed, strict=True):
        data, tag, checksum = upload.parts.get(number, (b"", "", ""))
        told = {name[8:].lower(): value for name, value in part.items() if name.startswith("Checksum")}
        expected = {upload.algorithm: checksum} if upload.algorithm else {}
        if upload.algorithm and not told:
            missing = f"The complete request must include the checksum for each part. It was missing for part {number}"
            raise Refusal(400, "InvalidRequest", missing)
        if (
            number not in upload.parts
            or part.get("ETag", "").strip('"') != tag.strip('"')
            or told != expected
        ):
            raise Refusal(400, "InvalidPart", "One or more of the specified parts could not be found")
        found.append((data, tag, checksum))
    if any(len(data) < SMALLEST_PART for data, _, _ in found[:-1]):
        raise Refusal(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
    return found


def _composite(algorithm: str, parts: list[tuple[bytes, str, str]]) -> dict[str, str]:
    """The checksum of an object put in parts: that of its parts' checksums, and how many they are."""
    if not algorithm:
        return {}
    whole = CHECKSUMS[algorithm](b"".join(base64.b64decode(checksum) for _, _, checksum in parts))
    value = f"{base64.b64encode(whole).decode()}-{len(parts)}"
    return {f"x-amz-checksum-{algorithm}": value, "x-amz-checksum-type": "COMPOSITE"}


def _checked(data: bytes, headers: Mapping[str, str]) -> dict[str, str]:
    """The checksum headers of a request, after comparing them with its body."""
    told = {f"x-amz-checksum-{name}": headers.get(f"x-amz-checksum-{name}") for name in CHECKSUMS}
    found = {name: value for name, value in told.items() if value is not None}
    if len(found) > 1:
        raise Refusal(400, "InvalidRequest", "Expecting a single x-amz-checksum- header")
    promised = headers.get("x-amz-sdk-checksum-algorithm", "").lower()
    if promised and f"x-amz-checksum-{promised}" not in found:
        raise Refusal(
            400, "InvalidRequest", "x-amz-sdk-checksum-algorithm specified, but no corresponding checksum"
        )
    for header, value in found.items():
        name = header.rpartition("-")[2]
        if value != base64.b64encode(CHECKSUMS[name](data)).decode():
            raise Refusal(400, "BadDigest", f"The {name} you specified did not match the calculated checksum")
    md5 = headers.get("content-md5")
    if md5 is not None and md5 != base64.b64encode(hashlib.md5(data).digest()).decode():
        raise Refusal(400, "BadDigest", "The Content-MD5 you specified did not match what we received")
    return found


def _metadata(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("x-amz-meta-")}
