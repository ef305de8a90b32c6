"""Meeting Ray: connect quietly, see what the cluster has, stop when asked to."""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs.cli.progress import repeated
from ray_jobs.cli.signals import handling
from ray_jobs.cluster.address import Address, cluster_to_join, ray_folder
from shards.errors import CorruptShardError, StorageError, UsageError

HEAD_SECONDS = 45.0  # without a head; Ray waits for one that is being restarted for 60
SOCKET_PATH = 107  # bytes, on Linux
LONGEST_SOCKET = len("/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store")  # below Ray's folder
ANSWER_SECONDS = 10.0  # time for a head that has just been started


@dataclass(frozen=True)
class Cluster:
    """What the cluster offers.

    Attributes:
        nodes: ids of the living nodes.
        cpus: CPUs Ray was told of, all nodes together.
        gpus: GPUs Ray was told of, all nodes together.
        gpu_nodes: ids of the nodes that have any.
    """

    nodes: tuple[str, ...]
    cpus: float
    gpus: float
    gpu_nodes: tuple[str, ...] = ()

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
        with handling(self._handle):
            yield


@contextmanager
def connected() -> Iterator[Cluster]:
    """Join the cluster of `ray job submit`, `RAY_ADDRESS` or `ray start`, or start a local one; leave it as found.

    A local cluster is this job's own: another job on the same machine starts its own as well.
    """
    already = ray.is_initialized()
    if not already:
        _join_or_start()
    for noisy in ("ray", "ray.train"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors come as exceptions, too
    try:
        with _noticing_its_end():
            yield _survey()
    except RayError as error:
        raise plain_error(error) from error
    finally:
        if not already:
            ray.shutdown()


def plain_error(error: BaseException) -> Exception:
    """What went wrong in a worker, or in Ray itself, as one of the errors that end in one line."""
    ours = UsageError | StorageError | CorruptShardError
    # Ray raises a class that is both its own and ours, with a traceback for text.
    while (isinstance(error, RayError) or not isinstance(error, ours)) and (
        inner := getattr(error, "cause", None) or error.__cause__
    ):
        error = inner
    if isinstance(error, ours):
        return type(error)(str(error))
    reason = " ".join(str(error).split())[:500]
    return StorageError(f"a worker failed: {type(error).__name__}: {reason}; run it again to go on")


@contextmanager
def _noticing_its_end() -> Iterator[None]:
    """End this process with a line once its node or the head is gone; Ray's core would end it without a word."""
    here = ray.get_runtime_context().get_node_id()
    node = next(each for each in ray.nodes() if each["NodeID"] == here)
    head, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    places = (
        ("this node's raylet", node["NodeManagerAddress"], node["NodeManagerPort"], 2),
        ("the cluster's head", head, int(port), HEAD_SECONDS),
    )
    answered = dict.fromkeys(places, time.monotonic())

    def look() -> None:
        for place in places:
            name, host, number, patience = place
            try:
                socket.create_connection((host, number), timeout=5).close()
                answered[place] = time.monotonic()
            except OSError as error:
                if time.monotonic() - answered[place] > patience:
                    reason = error.strerror or str(error)
                    print(
                        f"failed: {name} does not answer at {host}:{number} any more: {reason}; "
                        "see that it runs, then run it again to go on",
                        file=sys.stderr,
                        flush=True,
                    )
                    sys.stdout.flush()
                    os._exit(1)  # every call to Ray waits for what is gone

    with repeated(look, 0.5):
        yield


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
    alive = [node for node in ray.nodes() if node["Alive"]]
    return Cluster(
        nodes=tuple(node["NodeID"] for node in alive),
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        gpu_nodes=tuple(node["NodeID"] for node in alive if node["Resources"].get("GPU")),
    )


def _join_or_start() -> None:
    # What workers have to say reaches the driver as results and errors, so their logs stay in Ray's own files;
    # the core's log level is read when it starts, from the environment only.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray warns of a coming default about hidden accelerators on every start; "0" is that default.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    where = cluster_to_join()
    if where is None:
        _require_short_folder()
    else:
        _require_answer(where)
    with _native_stderr_closed():
        try:
            # Without an address, Ray joins what the environment or `ray start` names and else starts a cluster of
            # this job's own; "auto" would also join the local cluster of another job, and die with it.
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # what keeps a node from starting has no class of its own
            reason = " ".join(str(error).split())[:500]
            if where is None:
                raise StorageError(
                    f"Ray did not start on this machine: {reason or type(error).__name__}; see its logs in "
                    f"{ray_folder()}/session_latest/logs, free memory and CPUs, and run it again"
                ) from None
            raise UsageError(
                f"the Ray cluster at {where} cannot be joined: {reason}; "
                "give the address of a head (host:6379), and RAY_AUTH_MODE=token where it wants a token"
            ) from None


def _require_short_folder() -> None:
    """Make sure that Ray's sockets have paths that the system takes.

    Raises:
        UsageError: the folder for temporary files is too long a name.
    """
    folder = ray_folder().parent
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    if (excess := len(os.fsencode(ray_folder())) + LONGEST_SOCKET - SOCKET_PATH) > 0:
        raise UsageError(
            f"{name} = {str(folder)!r}: Ray keeps sockets below it, whose paths may have {SOCKET_PATH} bytes, "
            f"{excess} fewer than there; set RAY_TMPDIR to a folder with a shorter name, such as /tmp"
        )


def _require_answer(where: Address) -> None:
    """Make sure that something listens where a cluster should be; Ray would try in silence for 13 minutes.

    Raises:
        UsageError: nothing does, or a head cannot be there.
    """
    if where.text == "auto":  # asked for by name: any cluster on this machine, and Ray knows at once
        return
    try:
        parts = urlsplit(f"//{where.text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or "://" in where.text:
        raise UsageError(
            f"{where} is not the address of a Ray head; give host:port (its port is 6379 unless told otherwise), "
            f"or {where.remedy}; from outside a cluster, use `ray job submit`"
        )
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise UsageError(
                f"no Ray cluster answers at {where}: {error.strerror or error}; "
                f"start a head there with `ray start --head`, or {where.remedy}"
            ) from None
        return


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
