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
from functools import cached_property
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from fault_proxy import FaultProxy
from shards.stores.s3_client import Patience

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
        return boto3.client(
            "s3",
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


@pytest.fixture
def fault_proxy():
    """Make proxies before servers: `fault_proxy(server, rate=0.2, seed=1)`."""
    with ExitStack() as proxies:
        yield lambda server, **options: proxies.enter_context(FaultProxy(server.port, **options))
