"""A small S3 server of the tests' own that refuses what AWS refuses; it is no product, and keeps all in memory.

moto and rclone let much pass: checksums that an upload in parts did not name, small parts, requests signed for
another region. This one checks signatures (by botocore's own signer), regions, payload hashes, chunked bodies with
trailing checksums as botocore sends them over TLS, and what `strict_bucket` says of objects.

`python tests/strict_s3.py PORT ACCESS_KEY SECRET_KEY` serves plain HTTP until it is killed.
"""

import hashlib
import hmac
import re
import ssl
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from strict_bucket import Bucket, Refusal, Stored

CREDENTIAL = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+)"
)
SKEW = timedelta(minutes=15)


class StrictS3:
    """The server's state: who may ask, and the buckets.

    Args:
        access_key, secret_key: the only ones that are accepted.
        region: of buckets that are made without one.
        host: its name; a request to `BUCKET.host` is addressed in virtual style.
    """

    def __init__(
        self, access_key: str, secret_key: str, region: str = "us-east-1", host: str = "localhost"
    ) -> None:
        self.access_key, self.secret_key, self.region, self.host = access_key, secret_key, region, host
        self.buckets: dict[str, Bucket] = {}
        self.requests: list[str] = []

    @contextmanager
    def serving(self, port: int = 0, certificate: Path | None = None) -> Iterator[int]:
        """Serve on a port of this machine, over TLS with a certificate and key in one file; gives the port."""
        server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"state": self}))
        server.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            server.server_close()

    def address(self, host: str, path: str) -> tuple[str, str, str]:
        """Bucket, key and style of a request."""
        prefix = host.partition(":")[0].removesuffix(self.host)
        if prefix.endswith("."):
            return prefix[:-1], unquote(path[1:]), "virtual"
        bucket, _, key = path[1:].partition("/")
        return unquote(bucket), unquote(key), "path"

    def check(self, method: str, url: str, headers: Mapping[str, str], body: bytes, bucket: str) -> None:
        """Refuse a request that is not signed as it should be."""
        match = CREDENTIAL.match(headers.get("authorization", ""))
        if match is None:
            raise Refusal(403, "AccessDenied", "Access Denied")
        key, _, region, signed = match.groups()
        if key != self.access_key:
            raise Refusal(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist")
        stamp = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if abs(datetime.now(UTC) - stamp) > SKEW:
            raise Refusal(
                403, "RequestTimeTooSkewed", "The difference between the request time and ours is too large"
            )
        wanted = self.buckets[bucket].region if bucket in self.buckets else self.region
        if region != wanted:
            words = (
                f"The authorization header is malformed; the region '{region}' is wrong; expecting '{wanted}'"
            )
            raise Refusal(400, "AuthorizationHeaderMalformed", words, {"x-amz-bucket-region": wanted})
        if not hmac.compare_digest(
            self._signature(method, url, headers, region, signed), _signature_in(headers)
        ):
            raise Refusal(403, "SignatureDoesNotMatch", "The request signature we calculated does not match")
        told = headers.get("x-amz-content-sha256", "")
        if re.fullmatch("[0-9a-f]{64}", told) and told != hashlib.sha256(body).hexdigest():
            raise Refusal(
                400, "XAmzContentSHA256Mismatch", "The provided header does not match what was computed"
            )

    def _signature(self, method: str, url: str, headers: Mapping[str, str], region: str, signed: str) -> str:
        signer = S3SigV4Auth(Credentials(self.access_key, self.secret_key), "s3", region)
        request = AWSRequest(method, url, headers={name: headers[name] for name in signed.split(";")})
        request.context["timestamp"] = headers["x-amz-date"]
        canonical = signer.canonical_request(request)
        return signer.signature(signer.string_to_sign(request, canonical), request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: StrictS3

    def do_PUT(self) -> None:
        self._serve()

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            body = self._body(headers)
            parts = urlsplit(self.path)
            bucket, key, style = self.state.address(headers.get("host", ""), parts.path)
            self.state.requests.append(f"{style} {self.command} {self.path}")
            if "authorization" in headers or self.command != "HEAD" or key:
                url = f"http://{headers.get('host')}{self.path}"
                self.state.check(self.command, url, headers, body, bucket)
            if headers.get("content-encoding") == "aws-chunked":
                body = _unchunked(body, headers)
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            status, answer, more = self._answer(bucket, key, query, headers, body)
        except Refusal as refusal:
            status, more = refusal.status, dict(refusal.headers)
            region = f"<Region>{more['x-amz-bucket-region']}</Region>" if more else ""
            answer = _xml(
                "Error", f"<Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message>{region}"
            )
        except (ConnectionError, TimeoutError):
            self.close_connection = True
            return
        self._send(status, answer, more)

    def _send(self, status: int, answer: bytes, more: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(answer)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        if self.command == "PUT" and "content-length" not in headers:
            raise Refusal(411, "MissingContentLength", "You must provide the Content-Length HTTP header")
        body = self.rfile.read(int(headers.get("content-length", 0)))
        if len(body) != int(headers.get("content-length", 0)):
            raise ConnectionError
        return body

    def _answer(
        self, name: str, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        method = self.command
        if not key and method == "PUT":
            region = re.search(rb"<LocationConstraint>([^<]+)<", body)
            self.state.buckets[name] = Bucket(region[1].decode() if region else self.state.region)
            return 200, b"", {}
        bucket = self.state.buckets.get(name)
        if bucket is None:
            raise Refusal(404, "NoSuchBucket", "The specified bucket does not exist")
        bucket.check_headers(headers)
        if not key:
            where = {"x-amz-bucket-region": bucket.region}
            return (200, b"", where) if method == "HEAD" else (200, _listing(bucket, query), where)
        upload = query.get("uploadId", "")
        if method == "POST" and "uploads" in query:
            begun = bucket.begin(key, headers)
            return 200, _xml("InitiateMultipartUploadResult", f"<UploadId>{begun}</UploadId>"), {}
        if method == "POST" and upload:
            stored = bucket.complete(upload, key, _listed_parts(body), headers)
            return 200, _xml("CompleteMultipartUploadResult", f"<ETag>{escape(stored.tag)}</ETag>"), {}
        if method == "PUT" and upload:
            tag, checksums = bucket.put_part(upload, key, int(query["partNumber"]), body, headers)
            return 200, b"", {"ETag": tag, **checksums}
        if method == "PUT":
            stored = bucket.put(key, body, headers)
            return 200, b"", {"ETag": stored.tag, "x-amz-server-side-encryption": bucket.encryption}
        if method == "DELETE":
            bucket.abort(upload, key) if upload else bucket.objects.pop(key, None)
            return 204, b"", {}
        if key not in bucket.objects:
            raise Refusal(404, "NoSuchKey", "The specified key does not exist.")
        return self._read(bucket, bucket.objects[key], headers)

    def _read(
        self, bucket: Bucket, stored: Stored, headers: Mapping[str, str]
    ) -> tuple[int, bytes, dict[str, str]]:
        facts = {
            "ETag": stored.tag,
            "Last-Modified": format_datetime(stored.written, usegmt=True),
            "x-amz-server-side-encryption": bucket.encryption,
            **stored.metadata,
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        size = len(stored.data)
        if asked is None:
            if headers.get("x-amz-checksum-mode") == "ENABLED":
                facts |= stored.checksums
            return 200, stored.data, facts
        start, stop = int(asked[1]), min(int(asked[2] or size) + 1, size)
        if start >= size:
            raise Refusal(416, "InvalidRange", "The requested range is not satisfiable")
        return 206, stored.data[start:stop], facts | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}


def _signature_in(headers: Mapping[str, str]) -> str:
    return headers["authorization"].rpartition("Signature=")[2]


def _unchunked(body: bytes, headers: dict[str, str]) -> bytes:
    """The content of a body in chunks of AWS's own, its trailing checksum put among the headers."""
    content, rest = [], body
    while True:
        line, _, rest = rest.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if size == 0:
            break
        content.append(rest[:size])
        rest = rest[size + 2 :]
    trailers = dict(line.decode().lower().split(":", 1) for line in rest.split(b"\r\n") if line)
    promised = headers.get("x-amz-trailer", "").lower()
    if promised not in ("", *trailers):
        raise Refusal(
            400, "MalformedTrailerError", "The request contained trailing data that was not well-formed"
        )
    values = {
        line.partition(b":")[0].decode().lower(): line.partition(b":")[2] for line in rest.split(b"\r\n")
    }
    headers |= {promised: values[promised].decode().strip()} if promised else {}
    data = b"".join(content)
    if len(data) != int(headers["x-amz-decoded-content-length"]):
        raise Refusal(400, "IncompleteBody", "You did not provide the number of bytes specified")
    return data


def _listed_parts(body: bytes) -> list[dict[str, str]]:
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        raise Refusal(400, "MalformedXML", "The XML you provided was not well-formed") from None
    return [
        {_bare(child.tag): child.text or "" for child in part} for part in root if _bare(part.tag) == "Part"
    ]


def _bare(tag: str) -> str:
    return tag.rpartition("}")[2]


def _listing(bucket: Bucket, query: Mapping[str, str]) -> bytes:
    """A page of a listing, keys in the order of their UTF-8 bytes; or the unfinished uploads."""
    if "uploads" in query:
        uploads = (
            f"<Upload><Key>{escape(upload.key)}</Key><UploadId>{name}</UploadId></Upload>"
            for name, upload in list(bucket.uploads.items())
        )
        return _xml("ListMultipartUploadsResult", "".join(uploads))
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = unquote(query.get("continuation-token", ""))
    most = min(int(query.get("max-keys", 1000)), 1000)
    names: dict[str, str] = {}
    for key in sorted(bucket.objects, key=str.encode):
        folder = (
            key[: key.index(delimiter, len(prefix)) + 1]
            if delimiter and delimiter in key[len(prefix) :]
            else ""
        )
        if (
            key.startswith(prefix)
            and (folder or key).encode() > after.encode()
            and (folder or key) not in names
        ):
            names[folder or key] = _common(folder) if folder else _content(key, bucket.objects[key])
    page = list(names)[:most]
    more = len(names) > most
    token = f"<NextContinuationToken>{quote(page[-1])}</NextContinuationToken>" if more else ""
    head = f"<IsTruncated>{str(more).lower()}</IsTruncated><EncodingType>url</EncodingType>{token}"
    return _xml("ListBucketResult", head + "".join(names[name] for name in page))


def _common(folder: str) -> str:
    return f"<CommonPrefixes><Prefix>{quote(folder)}</Prefix></CommonPrefixes>"


def _content(key: str, stored: Stored) -> str:
    when = stored.written.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    facts = (
        f"<LastModified>{when}</LastModified><ETag>{escape(stored.tag)}</ETag><Size>{len(stored.data)}</Size>"
    )
    return f"<Contents><Key>{quote(key)}</Key>{facts}</Contents>"


def _xml(name: str, content: str) -> bytes:
    space = "" if name == "Error" else ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}{space}>{content}</{name}>'.encode()


if __name__ == "__main__":
    with StrictS3(*sys.argv[2:4]).serving(int(sys.argv[1])):
        threading.Event().wait()
