"""Ray clusters on the nodes of `network.py`, and an S3 server (moto) on a node of its own."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import boto3
from network import ADDRESSES, at, pids

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(sys.executable).parent
GCS = f"{ADDRESSES['head']}:6379"
OBJECT_STORE_BYTES = 80_000_000  # Ray's least is 75 MB
# A node whose link is cut refuses nothing: it counts as lost once it has not answered so often, for so long each time.
LIVENESS = {
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass
class Job:
    """A driver on the head.

    Attributes:
        process: its, in a session of its own.
        log: what it printed.
    """

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, seconds: float) -> None:
        """Wait for a good end; RuntimeError with what it printed where it takes too long or fails."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        if self.process.poll() != 0:
            raise RuntimeError(f"ended with {self.process.poll()}: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """kill -9 to the driver."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Lab:
    """A store, and the clusters that come and go beside it.

    Args:
        folder: for logs and Ray's own files; short, as its sockets lie below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._started = 0
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "RAY_", "SHARDS_"))
        }
        store = {
            "AWS_ENDPOINT_URL_S3": f"http://{ADDRESSES['store']}:80",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": f"AKIA{secrets.token_hex(8).upper()}",
            "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        os.environ |= store
        self._environment = kept | store
        self._environment |= {
            "GLOO_SOCKET_IFNAME": "eth0",  # all nodes have this machine's name, which leads each to itself
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "RAY_AUTH_MODE": "disabled",  # nothing outside reaches this network
            "RAY_worker_niceness": "0",
        }
        self.requests = folder / "requests.log"
        with self.requests.open("wb") as log:
            serve = [*at("store"), str(PROGRAMS / "moto_server"), "-H", "0.0.0.0", "-p", "80"]
            subprocess.Popen(serve, env=self._environment, stdout=log, stderr=log)
        until(lambda: _answers(ADDRESSES["store"], 80), "no answer of the store")
        self.client = boto3.client("s3")
        self.client.create_bucket(Bucket="lab")

    def start(
        self, name: str, *, cpus: int = 1, gpus: int = 0, liveness: Mapping[str, str] = LIVENESS
    ) -> None:
        """Start a node; the head first, which is waited for."""
        self._started += 1
        words = [str(PROGRAMS / "ray"), "start", "--block", f"--node-ip-address={ADDRESSES[name]}"]
        words += [f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        words += [f"--temp-dir={self.folder / f'{name}{self._started}'}", "--disable-usage-stats"]
        words += ["--head", "--include-dashboard=false"] if name == "head" else [f"--address={GCS}"]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._nodes[name] = subprocess.Popen(
                [*at(name), *words], env=self._environment | liveness, stdout=log, stderr=log
            )
        if name == "head":
            until(lambda: _answers(ADDRESSES["head"], 6379), "no answer of the head")

    def cluster(self, *nodes: str, gpus: int = 0, liveness: Mapping[str, str] = LIVENESS) -> None:
        """A new cluster in place of the old one: a head that holds no work, and nodes of one CPU each."""
        self.end()
        self.start("head", cpus=0, liveness=liveness)
        for name in nodes:
            self.start(name, gpus=gpus, liveness=liveness)
        self._ask(
            f"while sum(node['Alive'] for node in ray.nodes()) != {1 + len(nodes)}: time.sleep(0.5)",
        )

    def drain(self, name: str, seconds: int) -> None:
        """Announce to a node, as EC2 does, that it is taken away in so many seconds; what AWS nodes run tells Ray."""
        service = [*at(name), sys.executable, str(ROOT / "tests" / "metadata_support.py")]
        service += ["8169", str(seconds), ADDRESSES[name]]
        watcher = [*at(name), sys.executable, str(ROOT / "cluster" / "spot_notice.py")]
        watcher += ["--service", "http://127.0.0.1:8169", "--poll", "0.2"]
        metadata = subprocess.Popen(service, env=self._environment)
        try:
            environment = self._environment | {"RAY_ADDRESS": GCS}
            subprocess.run(watcher, env=environment, check=True, timeout=60)
        finally:
            metadata.kill()

    def _ask(self, script: str) -> None:
        """Run a script on the head that has joined the cluster."""
        joined = f"import time, ray\nray.init(log_to_driver=False, logging_level='ERROR')\n{script}"
        done = subprocess.run(
            [*at("head"), sys.executable, "-c", joined],
            env=self._environment | {"RAY_ADDRESS": GCS},
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode:
            raise RuntimeError(f"{script}: {done.stderr[-2000:]}")

    def job(self, words: Sequence[str]) -> Job:
        """Start `python -m ray_jobs …` on the head."""
        log = self.folder / f"job-{time.monotonic_ns()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*at("head"), sys.executable, "-m", "ray_jobs", *words],
                env=self._environment | {"RAY_ADDRESS": GCS},
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return Job(process, log)

    def kill(self, name: str, pattern: str = "") -> int:
        """kill -9 to a node's processes whose command line matches; returns how many there were."""
        found = pids(name, pattern)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)

    def stop(self, name: str) -> None:
        """SIGTERM to a node, as a service manager stops it; returns when it is gone."""
        self._nodes[name].terminate()
        with suppress(subprocess.TimeoutExpired):
            self._nodes[name].wait(60)
        self.kill(name)

    def end(self) -> None:
        """kill -9 to whatever runs on head and nodes."""
        for name in ADDRESSES:
            if name != "store":
                self.kill(name)
        for process in self._nodes.values():
            process.wait()
        self._nodes.clear()


@contextmanager
def laboratory() -> Iterator[Lab]:
    """A lab for the while."""
    folder = Path(tempfile.mkdtemp(prefix="lab", dir="/tmp"))  # a long path is more than a socket may have
    try:
        lab = Lab(folder)
        try:
            yield lab
        finally:
            lab.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def until(condition: Callable[[], object], otherwise: str, seconds: float = 300) -> None:
    """Wait for a condition; RuntimeError where it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{otherwise} for {seconds:g} s")
        time.sleep(0.1)


def _answers(host: str, port: int) -> bool:
    with suppress(OSError):
        socket.create_connection((host, port), 1).close()
        return True
    return False
