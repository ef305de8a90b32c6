"""S3 servers of a benchmark's own, on this machine; both come with the `test` extra."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def serving(kind: str) -> Iterator[str]:
    """Run an S3 server and give a root in it; it, and what it holds, ends with the context."""
    import boto3.session

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    access, secret = f"AKIA{secrets.token_hex(8).upper()}", secrets.token_urlsafe(30)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {"AWS_ENDPOINT_URL_S3": f"http://{address}", "AWS_REGION": "us-east-1"}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}
    os.environ |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    programs = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        command = [str(programs / "moto_server"), "-H", "127.0.0.1", "-p", address.rpartition(":")[2]]
        if kind == "rclone":
            command = [str(programs / "rclone"), "serve", "s3", "--config", os.devnull, "--addr", address]
            command += ["--auth-key", f"{access},{secret}", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                wait_for(address, process)
                boto3.session.Session().client("s3").create_bucket(Bucket="benchmark")
                yield "s3://benchmark"
            finally:
                process.kill()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the server answers; RuntimeError when it does not start."""
    host, _, port = address.partition(":")
    for _ in range(600):
        if process.poll() is not None:
            break
        with suppress(OSError):
            socket.create_connection((host, int(port)), 1).close()
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not start")
