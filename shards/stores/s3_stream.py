"""Reading an S3 object from front to back over connections that may break."""

import io
from typing import TYPE_CHECKING, Any

from botocore.exceptions import FlexibleChecksumError

from shards.errors import StorageError
from shards.stores.s3_client import ERRORS, S3Calls, Tries, sends_checksums

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK = 1 << 20  # bytes a read


class S3Reader(io.RawIOBase):
    """A stream that goes on where a broken connection left it, as long as the object is still the same one.

    Args:
        calls: how to call the store.
        bucket, key: the object.
        url: its address in messages.
        start: first byte wanted.
        stop: one past the last byte wanted; None for the object's end.

    Raises:
        NotFoundError: there is no such object.
        StorageError: the object changed while it was read, kept breaking off, or does not match its checksum.
    """

    def __init__(
        self, calls: S3Calls, bucket: str, key: str, url: str, start: int = 0, stop: int | None = None
    ) -> None:
        super().__init__()
        self._calls, self._bucket, self._key, self._url = calls, bucket, key, url
        self._whole = start == 0 and stop is None
        self._position = start
        self._tries = Tries(calls.patience, answered=True)
        self._tag = ""
        self._body: Any = None
        self._end = stop
        self._connect()

    def _connect(self) -> None:
        """Ask for what is still missing."""
        request: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key}
        resumed = bool(self._tag)
        if resumed or not self._whole:
            request["Range"] = f"bytes={self._position}-{'' if self._end is None else self._end - 1}"
        elif sends_checksums(self._calls.client):
            request["ChecksumMode"] = "ENABLED"
        answer = self._calls.run("get", self._url, lambda client: client.get_object(**request))
        tag = answer["ETag"].strip('"')
        # Compared here, since some stores ignore If-Match.
        if resumed and tag != self._tag:
            answer["Body"].close()
            raise StorageError(f"{self._url} was replaced while it was being read; read it again")
        if "Range" in request and not answer.get("ContentRange", "").startswith(f"bytes {self._position}-"):
            answer["Body"].close()
            raise StorageError(f"cannot get {self._url}: the store ignores ranges")
        self._tag, self._body = tag, answer["Body"]
        self._end = self._position + answer["ContentLength"]

    @property
    def left(self) -> int:
        """Bytes that are still to come, as the store's answer says."""
        assert self._end is not None
        return self._end - self._position

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill the buffer with what comes next; 0 at the end."""
        view = memoryview(buffer).cast("B")
        assert self._end is not None
        while view and self._position < self._end:
            try:
                chunk = self._body.read(min(len(view), self._end - self._position))
            except ERRORS as error:
                self._resume(self._calls.describe(error))
                continue
            if not chunk:
                self._resume("the answer broke off")
                continue
            view[: len(chunk)] = chunk
            self._position += len(chunk)
            self._tries.progress()
            if self._position == self._end:
                self._check()
            return len(chunk)
        return 0

    def readall(self) -> bytes:
        """Everything from here to the end."""
        pieces = []
        while piece := self.read(CHUNK):
            pieces.append(piece)
        return b"".join(pieces)

    def _resume(self, cause: str) -> None:
        self._body.close()
        self._tries.wait_or_raise(f"cannot get {self._url}: {cause} at byte {self._position} of {self._end}")
        self._connect()

    def _check(self) -> None:
        """Have the checksum compared, where the store sent one: botocore does so when it meets the end."""
        try:
            self._body.read(1)
        except FlexibleChecksumError:
            raise StorageError(
                f"{self._url} does not match the store's checksum of it; read it again, then verify"
            ) from None
        except ERRORS:
            pass  # every byte came; what the connection does afterwards is of no interest

    def close(self) -> None:
        """Give up the connection; one read to its end goes back to the pool."""
        if self._body is not None and not self.closed:
            self._body.close()
        super().close()
