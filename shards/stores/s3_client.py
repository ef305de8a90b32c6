"""Calls to an S3 store: the client, what is tried again and for how long, and how a failure is told."""

import logging
import os
import random
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import boto3.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    InvalidConfigError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from shards.errors import NotFoundError, StorageError, UsageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
logger = logging.getLogger("shards.stores.s3")

CONNECTIONS = 32  # kept open; more threads than this at once wait for one
THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
EXPIRED = {
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
    "400",
}  # a HEAD's 400 gives no name
PASSING = (
    THROTTLED
    | EXPIRED
    | {
        "RequestTimeout",
        "InternalError",
        "OperationAborted",
        "ConditionalRequestConflict",  # 409: another conditional put of that key is under way
        "BadDigest",  # 400: damaged on the way, and the checksum noticed
        "IncompleteBody",
    }
)
CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN for temporary ones), "
    "AWS_PROFILE, or give the machine a role"
)
# Backblaze B2 and others: `Unsupported header 'x-amz-checksum-crc32'`, `STREAMING-UNSIGNED-PAYLOAD-TRAILER`
CHECKSUM_HEADER = re.compile(r"(?i)x-amz-(sdk-)?checksum|x-amz-trailer|unsigned-payload-trailer")
WITHOUT_CHECKSUMS = "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required for a store that takes no checksums"
# What a call may raise: the reading of a body lets urllib3's own errors through.
ERRORS = (BotoCoreError, ClientError, ResponseParserError, HTTPError, OSError)


@dataclass(frozen=True)
class Patience:
    """How long a store may fail before the work is given up. All in seconds."""

    first_contact: float = 20.0
    """Before the store has answered once: then a wrong address is likelier than an outage."""

    give_up_after: float = 300.0
    """From the first failure of a call to its last try; long enough for a store to restart."""

    first_pause: float = 0.1
    """Before the second try; doubled each time, five times as long when the store says SlowDown."""

    longest_pause: float = 20.0
    """Pauses grow no further."""

    connect_timeout: float = 10.0
    """For a connection to open."""

    read_timeout: float = 60.0
    """For the next bytes to come."""


class RefusedError(StorageError):
    """The store answered no, and will answer no again; `code` is its word for why."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class S3Calls:
    """One client for a process, made again after a fork and when its credentials have expired.

    botocore's own retries are off. They count tries, not time; share a quota that a long outage empties, after
    which nothing is tried again; and know neither 409 nor a body that breaks off.
    """

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self._answered = False
        self._client = make_client(patience)
        self._owner = os.getpid()

    @property
    def client(self) -> "S3Client":
        """The client of this process; a forked child must not share its parent's sockets."""
        if self._owner != os.getpid():
            self._client, self._owner = make_client(self.patience), os.getpid()
        return self._client

    def run(
        self, operation: str, url: str, call: Callable[["S3Client"], T], *, final: Collection[str] = ()
    ) -> T:
        """Make a call until it succeeds, is refused, or patience ends.

        Args:
            operation: what is being done, for the message: `put`, `get`.
            url: what it is done to.
            call: does it, with the client it is given; may be made several times.
            final: the store's words after which this call is not made again, though others are.

        Returns:
            what the call returned.

        Raises:
            NotFoundError: there is no such object.
            RefusedError: the store refused.
            StorageError: it kept failing.
        """
        tries = Tries(self.patience, self._answered)
        while True:
            try:
                result = call(self.client)
            except ERRORS as error:
                cause = self.describe(error)
                if not passing(error) or _code(error) in final:
                    self._answered = True
                    raise _refused(f"cannot {operation} {url}: {cause}", error) from None
                if _code(error) in EXPIRED:
                    self._client = make_client(self.patience)  # reads environment, files and roles again
                tries.wait_or_raise(f"cannot {operation} {url}: {cause}", throttled=_code(error) in THROTTLED)
            else:
                self._answered = True
                return result

    def clock_ahead(self, bucket: str) -> float | None:
        """Seconds by which this machine's clock is ahead of the store's, in one try; None where it tells no time."""
        before = time.time()
        answer: Any
        try:
            answer = make_client(self.patience, signature_version=UNSIGNED).head_bucket(Bucket=bucket)
        except ClientError as error:  # whatever it says, it says when
            answer = error.response
        told = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        if told is None:
            return None
        try:
            there = parsedate_to_datetime(told).timestamp()
        except ValueError:
            return None
        return (before + time.time()) / 2 - there

    def describe(self, error: Exception) -> str:
        """A failure in words that hold no secret, whatever the store may have echoed."""
        if isinstance(error, ClientError):
            details = error.response.get("Error", {})
            text = f"{details.get('Code', '')}: {details.get('Message', '')}".strip(": ")
        elif isinstance(error, HTTPClientError | BotoConnectionError | HTTPError | OSError):
            text = f"{type(error).__name__} at {urlsplit(self._client.meta.endpoint_url).hostname}"
        else:
            text = f"{type(error).__name__}: {error}"
        signer = self._client._request_signer  # type: ignore[attr-defined]  # the only way to what must not be shown
        credentials = getattr(signer, "_credentials", None)
        for secret in (getattr(credentials, name, None) for name in ("secret_key", "token", "access_key")):
            text = text.replace(secret, "…") if secret else text
        return text


class Tries:
    """The tries of one piece of work: pauses between them, and gives up in the end."""

    def __init__(self, patience: Patience, answered: bool) -> None:
        self._patience = patience
        self._limit = (
            patience.give_up_after if answered else min(patience.first_contact, patience.give_up_after)
        )
        self._count = 0
        self._begun = 0.0

    def wait_or_raise(self, failure: str, *, throttled: bool = False) -> None:
        """Pause before the next try; StorageError with the failure when there shall be none."""
        now = time.monotonic()
        self._count += 1
        if self._count == 1:
            self._begun = now
        longest = self._patience.first_pause * (5 if throttled else 1) * 2 ** min(self._count - 1, 30)
        # Between half and whole, at random: clients that failed together do not come back together.
        pause = min(longest, self._patience.longest_pause) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        if now + pause - self._begun > self._limit:
            raise StorageError(
                f"{failure} (tried {self._count} times in {now - self._begun:.0f} s)"
            ) from None
        if self._count == 4:
            logger.warning("%s; trying on for up to %.0f s", failure, self._limit)
        time.sleep(pause)

    def progress(self) -> None:
        """Count from the beginning again: something came through."""
        self._count = 0


def make_client(patience: Patience, **more: Any) -> "S3Client":
    """A client by the standard AWS names: environment, profile files, or the machine's role.

    Args:
        patience: its time-outs.
        more: further settings of botocore's `Config`.

    Raises:
        UsageError: no credentials, or a configuration that cannot be used; says which variables to set.
    """
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=patience.connect_timeout,
        read_timeout=patience.read_timeout,
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
        # Asked for with whole objects only: `rclone serve s3` answers a range with the whole object's checksum.
        response_checksum_validation="when_required",
        **more,
    )
    try:
        session = boto3.session.Session()
        found = session.get_credentials()
        client = session.client("s3", config=config)
    except (PartialCredentialsError, NoCredentialsError) as error:
        raise UsageError(
            f"the credentials for S3 are incomplete ({type(error).__name__}); {CREDENTIALS}"
        ) from None
    except (ProfileNotFound, ConfigNotFound, InvalidConfigError) as error:
        raise UsageError(
            f"the AWS configuration cannot be used: {error}; check AWS_PROFILE and its files"
        ) from None
    except ValueError:  # the value is not repeated: an endpoint may hold a password
        raise UsageError(
            "the S3 endpoint or region is not valid; check AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL (such as "
            "https://host:port) and AWS_REGION"
        ) from None
    if found is None:
        raise UsageError(f"no credentials for S3; {CREDENTIALS}")
    return client


def sends_checksums(client: Any) -> bool:
    """Whether requests bear checksums: some stores refuse every header that speaks of them."""
    return bool(client.meta.config.request_checksum_calculation != "when_required")


def passing(error: Exception) -> bool:
    """Whether trying again may help."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        # botocore names an error by its status when the body that would name it broke off; a HEAD never has one.
        # 409 says that another conditional put of that key is under way.
        cut = _code(error) in ("400", "404") and error.operation_name != "HeadObject"
        return (
            cut or _code(error) in PASSING or status in (408, 409, 429) or (status >= 500 and status != 501)
        )
    return isinstance(
        error,
        HTTPClientError
        | BotoConnectionError
        | HTTPError
        | OSError
        | FlexibleChecksumError
        | ResponseParserError
        | CredentialRetrievalError
        | MetadataRetrievalError,
    )


def _code(error: Exception) -> str:
    """The store's word for an error; its status where there is no word and the status says which it is."""
    code = str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""
    return {"412": "PreconditionFailed", "416": "InvalidRange", "501": "NotImplemented"}.get(code, code)


def _refused(message: str, error: Exception) -> StorageError:
    code = _code(error)
    if code in ("404", "NoSuchKey"):
        return NotFoundError(message)
    if code == "NoSuchBucket":
        return RefusedError(f"{message}; make the bucket or check its name", code)
    if CHECKSUM_HEADER.search(message):
        return RefusedError(f"{message}; {WITHOUT_CHECKSUMS}", code)
    if code in ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"):
        return RefusedError(f"{message}; check the credentials and what they allow ({CREDENTIALS})", code)
    return RefusedError(message, code)
