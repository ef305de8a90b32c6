"""Meeting Ray: connect quietly, see what the cluster has, stop when asked to."""

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shards.errors import UsageError


@dataclass(frozen=True)
class Cluster:
    """What the cluster offers.

    Attributes:
        nodes: ids of the living nodes.
        cpus: CPUs Ray was told of, all nodes together.
        gpus: GPUs Ray was told of, all nodes together.
    """

    nodes: tuple[str, ...]
    cpus: float
    gpus: float

    def __str__(self) -> str:
        plural = "" if len(self.nodes) == 1 else "s"
        return f"{len(self.nodes)} node{plural}, {self.cpus:g} CPUs, {self.gpus:g} GPUs"


class StopRequest:
    """Whether SIGTERM or Ctrl-C arrived; a second one ends the process at once."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.exit_code = 0

    def __bool__(self) -> bool:
        return self._event.is_set()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._event.is_set():
            raise SystemExit(128 + number)
        self.exit_code = 128 + number
        self._event.set()

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Take over SIGTERM and SIGINT for a while; enter after `ray.init`, which installs its own handlers."""
        with _handling(self._handle):
            yield


@contextmanager
def signals_exit() -> Iterator[None]:
    """SIGTERM and Ctrl-C leave through SystemExit(128 + number), so that `finally` blocks run."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handling(leave):
        yield


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def connected() -> Iterator[Cluster]:
    """Join the Ray cluster there is, or start a local one, and leave it as found.

    Under `ray job submit` and where `RAY_ADDRESS` is set or `ray start` has run, Ray finds that cluster itself.
    """
    already = ray.is_initialized()
    if not already:
        _join_or_start()
    for noisy in ("ray", "ray.data", "ray.train"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        yield _survey()
    finally:
        if not already:
            ray.shutdown()


def check_shared(root: str, cluster: Cluster) -> None:
    """Make sure that every node sees the same local folder.

    Args:
        root: dataset root; S3 roots are shared by nature.
        cluster: the nodes to ask.

    Raises:
        UsageError: some node does not see a file that the driver just wrote there.
    """
    if root.startswith("s3://") or len(cluster.nodes) < 2:
        return
    folder = Path(root).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{uuid.uuid4().hex}"
    probe.write_text("seen by every node?")
    try:
        blind = nodes_without(probe, cluster)
    finally:
        probe.unlink()
    if blind:
        raise UsageError(
            f"{root} is local to this node: {len(blind)} of {len(cluster.nodes)} nodes do not see it "
            f"({', '.join(node[:8] for node in blind)}); use a shared file system or s3://bucket/prefix"
        )


def nodes_without(path: Path, cluster: Cluster) -> list[str]:
    """The nodes on which a file does not exist."""
    exists = ray.remote(num_cpus=0)(_exists)
    seen = ray.get(
        [
            exists.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                str(path)
            )
            for node in cluster.nodes
        ]
    )
    return [node for node, there in zip(cluster.nodes, seen, strict=True) if not there]


def _exists(path: str) -> bool:
    return Path(path).exists()


def _survey() -> Cluster:
    resources = ray.cluster_resources()
    nodes = tuple(node["NodeID"] for node in ray.nodes() if node["Alive"])
    return Cluster(nodes, resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def _join_or_start() -> None:
    # What workers have to say reaches the driver as results and errors, so their logs stay in Ray's own files;
    # the core's log level is read when it starts, from the environment only.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _native_stderr_closed():
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError as error:
            if address := os.environ.get("RAY_ADDRESS"):
                raise UsageError(
                    f"no Ray cluster answers at RAY_ADDRESS={address}: {' '.join(str(error).split())}; "
                    "start one with `ray start --head`, or unset RAY_ADDRESS to use a local one"
                ) from None
            # Ray warns of a coming default about hidden accelerators on every start; "0" is that default.
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            ray.init(address="local", include_dashboard=False, **quiet)


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Ray's core announces its own log level on stderr while it starts; its errors come as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
