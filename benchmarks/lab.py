"""Clusters on one machine whose nodes have addresses of their own: network namespaces, an S3 server in one of them.

    hub (the process that asks for it) ── bridge ──┬── store   10.213.0.9   moto, an S3 server
                                                   ├── head    10.213.0.1   GCS, raylet, drivers
                                                   └── n1, n2  10.213.0.11, .12   raylets

All of it lives inside one `unshare` of its own network, mounts and processes (`enter`), so nothing of it can be left
behind: when the process that asked for it ends, the kernel ends the rest. Needs root, or user namespaces.
"""

import os
import re
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

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(sys.executable).parent
INSIDE = "PROJECTOR_LAB"
ADDRESSES = {"store": "10.213.0.9", "head": "10.213.0.1", "n1": "10.213.0.11", "n2": "10.213.0.12"}
HUB = "10.213.0.254"
OBJECT_STORE_BYTES = 80_000_000  # Ray's least is 75 MB
# A node whose link is cut refuses nothing; it counts as lost once it has not answered so often for so long. Ray's
# own figures (10 s, 3 s, 5 times) find it out after about a minute.
LIVENESS = {
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
PREPARE = "mkdir -p /run/netns && mount -t tmpfs none /run/netns && ip link set lo up"
UNSHARE = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def why_not() -> str:
    """Why there can be no lab on this machine; empty where there can."""
    missing = [tool for tool in ("unshare", "ip", "tc") if not shutil.which(tool)]
    if missing:
        return f"{', '.join(missing)} not installed"
    tried = subprocess.run(
        [*_unshare(), "sh", "-c", f"{PREPARE} && ip link add hub type bridge && ip netns add probe"],
        capture_output=True,
        text=True,
    )
    return "" if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()[-200:]}"


def _unshare() -> list[str]:
    return UNSHARE if os.geteuid() == 0 else [*UNSHARE, "--map-root-user"]


def enter(words: Sequence[str]) -> int | None:
    """Run this program once more inside namespaces of its own.

    Args:
        words: its command line.

    Returns:
        its exit code; None where this is already the run inside.
    """
    if os.environ.get(INSIDE):
        subprocess.run(["sh", "-c", PREPARE], check=True)
        return None
    again = [*_unshare(), sys.executable, *words]
    return subprocess.run(again, env=os.environ | {INSIDE: "1"}, check=False).returncode


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
    """The network with its store; clusters come and go in it.

    Args:
        folder: for logs and objects; short, as Ray's sockets lie below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._started = 0
        keys = {"AWS_ACCESS_KEY_ID": f"AKIA{secrets.token_hex(8).upper()}"}
        keys["AWS_SECRET_ACCESS_KEY"] = secrets.token_urlsafe(30)
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "RAY_", "SHARDS_"))
        }
        self.environment |= keys | {
            "AWS_ENDPOINT_URL_S3": f"http://{ADDRESSES['store']}:80",
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "GLOO_SOCKET_IFNAME": "eth0",  # all nodes have this machine's name, which leads each to itself
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "RAY_AUTH_MODE": "disabled",  # nothing outside reaches this network
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        os.environ.update(
            {name: value for name, value in self.environment.items() if name.startswith("AWS_")}
        )
        _run("ip link add hub type bridge")
        _run("ip link set hub up")
        _run(f"ip addr add {HUB}/24 dev hub")
        for name, address in ADDRESSES.items():
            _run(f"ip netns add {name}")
            _run(f"ip link add v-{name} type veth peer name eth0 netns {name}")
            _run(f"ip link set v-{name} master hub up")
            _run(f"ip -n {name} link set lo up")
            _run(f"ip -n {name} addr add {address}/24 dev eth0")
            _run(f"ip -n {name} link set eth0 up")
            _run(
                f"ip -n {name} route add default via {HUB}"
            )  # Ray finds its own address by a route to outside
        self._know_each_other()
        self._serve()

    def _know_each_other(self) -> None:
        """Fixed neighbours: with a link cut, packets are lost in silence, instead of an address that is not found."""
        hardware = {name: _run(f"ip -n {name} -o link show eth0").split() for name in ADDRESSES}
        for name in ADDRESSES:
            for other, words in hardware.items():
                if other != name:
                    address = words[words.index("link/ether") + 1]
                    _run(
                        f"ip -n {name} neigh replace {ADDRESSES[other]} lladdr {address} dev eth0 nud permanent"
                    )

    def _serve(self) -> None:
        self.requests = self.folder / "requests.log"
        command = [str(PROGRAMS / "moto_server"), "-H", "0.0.0.0", "-p", "80"]
        with self.requests.open("wb") as log:
            subprocess.Popen([*_in("store"), *command], env=self.environment, stdout=log, stderr=log)
        until(lambda: _answers(ADDRESSES["store"], 80), "the store does not start")
        import boto3

        self.client = boto3.client("s3")
        self.client.create_bucket(Bucket="lab")

    def start(
        self, name: str, *, cpus: int = 1, gpus: int = 0, liveness: Mapping[str, str] = LIVENESS
    ) -> None:
        """Start a node; the head first. Returns at once where it is not the head."""
        self._started += 1
        temporary = self.folder / f"{name}{self._started}"
        words = [str(PROGRAMS / "ray"), "start", "--block", f"--node-ip-address={ADDRESSES[name]}"]
        words += [f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        words += [f"--temp-dir={temporary}", "--disable-usage-stats"]
        words += (
            ["--head", "--include-dashboard=false"]
            if name == "head"
            else [f"--address={ADDRESSES['head']}:6379"]
        )
        with (self.folder / f"{name}.log").open("ab") as log:
            self._nodes[name] = subprocess.Popen(
                [*_in(name), *words], env=self.environment | liveness, stdout=log, stderr=log
            )
        if name == "head":
            until(lambda: _answers(ADDRESSES["head"], 6379), "the head does not start")

    def cluster(self, *nodes: str, gpus: int = 0, **options: Mapping[str, str]) -> None:
        """A new cluster: a head without processors of its own, and nodes with one each."""
        self.end()
        self.start("head", cpus=0, **options)
        for name in nodes:
            self.start(name, gpus=gpus, **options)
        self.wait_for_nodes(1 + len(nodes))

    def wait_for_nodes(self, count: int) -> None:
        """Wait until so many nodes are alive."""
        script = "import ray; ray.init(log_to_driver=False, logging_level=50); import time\n"
        script += f"while sum(node['Alive'] for node in ray.nodes()) != {count}: time.sleep(0.5)"
        done = subprocess.run(
            [*_in("head"), sys.executable, "-c", script],
            env=self.environment | {"RAY_ADDRESS": f"{ADDRESSES['head']}:6379"},
            capture_output=True,
            text=True,
            timeout=180,
        )
        if done.returncode:
            raise RuntimeError(f"no cluster of {count} nodes: {done.stderr[-2000:]}")

    def job(self, words: Sequence[str]) -> Job:
        """Start `python -m ray_jobs …` on the head."""
        log = self.folder / f"job-{time.monotonic_ns()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_in("head"), sys.executable, "-m", "ray_jobs", *words],
                env=self.environment | {"RAY_ADDRESS": f"{ADDRESSES['head']}:6379"},
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return Job(process, log)

    def kill(self, name: str, pattern: str = "") -> int:
        """kill -9 to a node's processes whose command line holds the pattern; returns how many there were."""
        found = self.pids(name, pattern)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)

    def pids(self, name: str, pattern: str = "") -> list[int]:
        """Processes of a node whose command line matches the pattern."""
        found = []
        for pid in map(int, _run(f"ip netns pids {name}").split()):
            with suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if line and re.search(pattern, line):
                    found.append(pid)
        return found

    def stop(self, name: str) -> None:
        """SIGTERM to a node, as a service manager stops it; returns when it is gone."""
        self._nodes[name].terminate()
        with suppress(subprocess.TimeoutExpired):
            self._nodes[name].wait(60)
        self.kill(name)

    def drain(self, name: str, seconds: int) -> None:
        """Give Ray the notice that a node is taken away in so many seconds, as a watcher of spot notices would."""
        script = (
            "import ray, subprocess, sys\n"
            "ray.init(log_to_driver=False, logging_level=50)\n"
            "node, = [n['NodeID'] for n in ray.nodes()"
            f" if n['Alive'] and n['NodeManagerAddress'] == {ADDRESSES[name]!r}]\n"
            f"subprocess.run([{str(PROGRAMS / 'ray')!r}, 'drain-node', '--node-id', node, "
            "'--reason', 'DRAIN_NODE_REASON_PREEMPTION', '--reason-message', 'spot notice', "
            f"'--deadline-remaining-seconds', '{seconds}'], check=True, stdout=sys.stderr)\n"
        )
        subprocess.run(
            [*_in("head"), sys.executable, "-c", script],
            env=self.environment | {"RAY_ADDRESS": f"{ADDRESSES['head']}:6379"},
            check=True,
            capture_output=True,
            timeout=120,
        )

    def cut(self, name: str) -> None:
        """Take a node's port off the bridge: packets in both directions are lost, none is refused."""
        _run(f"ip link set v-{name} nomaster")

    def heal(self, name: str) -> None:
        """Put it back."""
        _run(f"ip link set v-{name} master hub")

    def slow(self, name: str, megabits: float) -> None:
        """Hold a node's link to a rate in both directions; packets queue for up to half a second, then are lost."""
        shape = f"root tbf rate {int(megabits * 1000)}kbit burst 16kb latency 500ms"
        _run(f"tc qdisc replace dev v-{name} {shape}")
        _run(f"tc -n {name} qdisc replace dev eth0 {shape}")

    def fast(self, name: str) -> None:
        """Undo it."""
        _run(f"tc qdisc del dev v-{name} root")
        _run(f"tc -n {name} qdisc del dev eth0 root")

    def end(self) -> None:
        """kill -9 to whatever runs on head and nodes."""
        for name in ADDRESSES:
            if name != "store":
                self.kill(name)
        for process in self._nodes.values():
            process.wait()
        self._nodes.clear()
        self.reap()

    def reap(self) -> None:
        """Bury the dead: orphans come to this process, which is the first in its namespace."""
        with suppress(ChildProcessError):
            while os.getpid() == 1 and os.waitpid(-1, os.WNOHANG)[0]:
                pass


@contextmanager
def laboratory() -> Iterator[Lab]:
    """A lab for the while."""
    folder = Path(tempfile.mkdtemp(prefix="lab", dir="/tmp"))
    try:
        lab = Lab(folder)
        try:
            yield lab
        finally:
            lab.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def until(condition: Callable[[], object], otherwise: str, seconds: float = 300) -> float:
    """Wait for a condition; returns the seconds it took, RuntimeError where it does not come."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            raise RuntimeError(f"{otherwise} (waited {seconds:g} s)")
        time.sleep(0.1)
    return time.monotonic() - begun


def _in(name: str) -> list[str]:
    return ["ip", "netns", "exec", name]


def _answers(host: str, port: int) -> bool:
    with suppress(OSError):
        socket.create_connection((host, port), 1).close()
        return True
    return False


def _run(command: str) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")
    return done.stdout
