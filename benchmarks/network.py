"""A network of nodes with addresses of their own on one machine: namespaces, joined by a bridge.

    hub (the process that asks for it) ── bridge ──┬── store   10.213.0.9
                                                   ├── head    10.213.0.1
                                                   └── n1, n2  10.213.0.11, .12

All of it lives inside one `unshare` of its own network, mounts and processes, which the kernel ends with the process
that asked for it: nothing of it can be left behind. Needs Linux with `ip`, `tc` and util-linux, and root or user
namespaces.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ADDRESSES = {"store": "10.213.0.9", "head": "10.213.0.1", "n1": "10.213.0.11", "n2": "10.213.0.12"}
HUB = "10.213.0.254"
INSIDE = "BENCHMARK_NETWORK"
PREPARE = "mkdir -p /run/netns && mount -t tmpfs none /run/netns && ip link set lo up"
QUEUE_MILLISECONDS = 500  # of a slow link; what would wait longer is lost


def why_not() -> str:
    """Why there can be no such network on this machine; empty where there can."""
    missing = [tool for tool in ("setpriv", "unshare", "ip", "tc") if not shutil.which(tool)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    attempt = (
        f"{PREPARE} && ip link add hub type bridge && ip netns add probe "
        "&& ip link add probe0 type veth peer name probe1 "
        "&& tc qdisc add dev probe0 root tbf rate 1mbit burst 16kb latency 50ms"
    )
    tried = subprocess.run([*_unshared(), "sh", "-c", attempt], capture_output=True, text=True)
    return f"no network namespaces here: {tried.stderr.strip()[-200:]}" if tried.returncode else ""


def enter(words: Sequence[str]) -> int | None:
    """Run this program once more where it may make a network, and make it there.

    Args:
        words: its command line, without the interpreter.

    Returns:
        its exit code; None where this is already the run inside.
    """
    if not os.environ.get(INSIDE):
        again = [*_unshared(), sys.executable, *words]
        return subprocess.run(again, env=os.environ | {INSIDE: "1"}).returncode
    subprocess.run(["sh", "-c", PREPARE], check=True)
    _lay()
    return None


def _unshared() -> list[str]:
    """Namespaces of one's own, all of whose processes end with the one that asks."""
    words = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
    ]
    return [*words, "--mount-proc", *([] if os.geteuid() == 0 else ["--map-root-user"])]


def _lay() -> None:
    run("ip link add hub type bridge")
    run("ip link set hub up")
    run(f"ip addr add {HUB}/24 dev hub")
    hardware = {}
    for name, address in ADDRESSES.items():
        run(f"ip netns add {name}")
        run(f"ip link add v-{name} type veth peer name eth0 netns {name}")
        run(f"ip link set v-{name} master hub up")
        run(f"ip -n {name} link set lo up")
        run(f"ip -n {name} addr add {address}/24 dev eth0")
        run(f"ip -n {name} link set eth0 up")
        run(f"ip -n {name} route add default via {HUB}")  # Ray finds its own address by a route to outside
        words = run(f"ip -n {name} -o link show eth0").split()
        hardware[name] = words[words.index("link/ether") + 1]
    # Fixed neighbours: with a link cut, packets are lost in silence; otherwise the address would not be found.
    for name in ADDRESSES:
        for other, address in hardware.items():
            if other != name:
                run(f"ip -n {name} neigh replace {ADDRESSES[other]} lladdr {address} dev eth0 nud permanent")


def at(name: str) -> list[str]:
    """What a command line begins with that is to run on a node."""
    return ["ip", "netns", "exec", name]


def pids(name: str, pattern: str = "") -> list[int]:
    """Processes of a node whose command line matches a pattern."""
    found = []
    for pid in map(int, run(f"ip netns pids {name}").split()):
        with suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if line and re.search(pattern, line):
                found.append(pid)
    return found


def cut(name: str) -> None:
    """Take a node's port off the bridge: packets in both directions are lost, none is refused."""
    run(f"ip link set v-{name} nomaster")


def heal(name: str) -> None:
    """Put it back."""
    run(f"ip link set v-{name} master hub")


def slow(name: str, megabits: float) -> None:
    """Hold a node's link to a rate in both directions."""
    shape = f"root tbf rate {round(megabits * 1000)}kbit burst 16kb latency {QUEUE_MILLISECONDS}ms"
    run(f"tc qdisc replace dev v-{name} {shape}")
    run(f"tc -n {name} qdisc replace dev eth0 {shape}")


def fast(name: str) -> None:
    """Let it go."""
    run(f"tc qdisc del dev v-{name} root")
    run(f"tc -n {name} qdisc del dev eth0 root")


def run(command: str) -> str:
    """Run a command and give what it prints; RuntimeError with its words where it fails."""
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")
    return done.stdout
