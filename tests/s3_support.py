"""Real S3 servers for tests, and fixtures that a room's conftest takes over by importing them."""

import os
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fault_proxy import FaultProxy
from shards.stores.s3_client import Patience
from strict_bucket import Bucket
from strict_s3 import StrictS3

GIVEN = "S3_TEST_ENDPOINT"  # http://127.0.0.1:PORT of a further server to test on, such as LocalStack
HASTY = Patience(
    first_contact=2.0,
    give_up_after=4.0,
    first_pause=0.005,
    longest_pause=0.05,
    connect_timeout=2,
    read_timeout=1,
)


@dataclass(frozen=True)
class Server:
    """A running S3 server: `env` is all that a process needs to reach it."""

    name: str
    port: int
    access_key: str
    secret_key: str

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        return self.env_through(self.endpoint)

    def env_through(self, endpoint: str) -> dict[str, str]:
        """The environment that leads to this server by another address, such as a proxy's."""
        return {
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @cached_property
    def client(self):
        """A plain client, for what tests do behind the storage's back."""
        return self._client()

    def _client(self, **more):
        return boto3.client(
            "s3",
            **more,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )

    def new_bucket(self) -> str:
        """Make a bucket of a fresh name."""
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=bucket)
        return bucket


def use(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    """Make an environment this process's own, without what the user's shell has of AWS."""
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)


@contextmanager
def running_moto(folder: Path) -> Iterator[Server]:
    """`moto_server`: heeds If-None-Match, checks no credentials, holds everything in memory."""
    server = _server("moto")
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(server.port)]
    with _running(command, server, folder):
        yield server


@contextmanager
def running_rclone(folder: Path) -> Iterator[Server]:
    """`rclone serve s3`: checks credentials, ignores If-None-Match and If-Match, keeps objects as files."""
    server = _server("rclone")
    (folder / "objects").mkdir()
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--config", os.devnull]
    command += ["--addr", f"127.0.0.1:{server.port}"]
    command += ["--auth-key", f"{server.access_key},{server.secret_key}", str(folder / "objects")]
    with _running(command, server, folder):
        yield server


@dataclass(frozen=True)
class StrictServer(Server):
    """The strict stand-in; `state` is what it holds, `certificate` of its TLS, where it has one."""

    state: StrictS3
    certificate: Path | None

    @property
    def endpoint(self) -> str:
        return f"http{'s' if self.certificate else ''}://localhost:{self.port}"

    def env_through(self, endpoint: str) -> dict[str, str]:
        trusted = {"AWS_CA_BUNDLE": str(self.certificate)} if self.certificate else {}
        return super().env_through(endpoint) | trusted

    @cached_property
    def client(self):
        return self._client(verify=str(self.certificate) if self.certificate else None)

    def bucket(self, root: str) -> Bucket:
        """The bucket of a root."""
        return self.state.buckets[root.split("/")[2]]


@contextmanager
def running_strict(certificate: Path | None = None) -> Iterator[StrictServer]:
    """The stand-in of the tests' own: checks what AWS checks (`strict_s3`)."""
    keys = _server("strict")
    state = StrictS3(keys.access_key, keys.secret_key)
    with state.serving(certificate=certificate) as port:
        yield StrictServer("strict", port, keys.access_key, keys.secret_key, state, certificate)


def certificate_in(folder: Path) -> Path:
    """A certificate for localhost, signed by itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = folder / "localhost.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM) + key.private_bytes(*form))
    return path


def _server(name: str) -> Server:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Server(name, port, f"AKIA{secrets.token_hex(8).upper()}", secrets.token_urlsafe(30))


@contextmanager
def _running(command: list[str], server: Server, folder: Path) -> Iterator[None]:
    log = folder / f"{server.name}.log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            _wait(server, process, log)
            yield
        finally:
            process.kill()


def _wait(server: Server, process: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", server.port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{server.name} did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def moto(tmp_path_factory) -> Iterator[Server]:
    with running_moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory) -> Iterator[Server]:
    with running_rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def strict() -> Iterator[StrictServer]:
    with running_strict() as server:
        yield server


@pytest.fixture(scope="session")
def strict_tls(tmp_path_factory) -> Iterator[StrictServer]:
    """Over TLS botocore sends bodies in chunks with their checksum behind them, as it does to AWS."""
    with running_strict(certificate_in(tmp_path_factory.mktemp("tls"))) as server:
        yield server


def servers() -> list[str]:
    """Fixtures of the servers that every test of a store runs on."""
    return ["moto", "rclone", "strict", *(["given"] if GIVEN in os.environ else [])]


@pytest.fixture(scope="session")
def given() -> Server:
    """A server that runs already: any at the address in S3_TEST_ENDPOINT that takes the keys `test` and `test`."""
    return Server("given", int(os.environ[GIVEN].rpartition(":")[2]), "test", "test")


@pytest.fixture
def fault_proxy():
    """Make proxies before servers: `fault_proxy(server, rate=0.2, seed=1)`."""
    with ExitStack() as proxies:
        yield lambda server, **options: proxies.enter_context(FaultProxy(server.port, **options))


# On each server; the fixture `server` opens it.
EACH = pytest.mark.parametrize("server", servers(), indirect=True)
