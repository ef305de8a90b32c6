"""Whether the nodes of a cluster are fit for a job: each is asked, and what is wrong is named with its node."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from projector.models.resolve import ModelSource
from ray_jobs.cluster.connect import Cluster
from ray_jobs.cluster.node_probe import (
    TO_BE_FETCHED,
    Answer,
    Device,
    Question,
    glance_at,
    look_around,
    plain,
    versions_here,
)
from shards.errors import StorageError, UsageError
from shards.stores.local import open_storage
from shards.stores.store import TEMPORARY, Storage

# S3 refuses a signature whose time is 15 minutes off (RequestTimeTooSkewed); a clock that is 5 off is not being set.
CLOCK_SECONDS = 300.0
# For a worker to start, its imports from a cold disk, and a store that is given up after 20 s to be tried twice.
ANSWER_SECONDS = 300.0
CHECKS = ("GPUs", "versions", "store", "clock", "models", "spool")


@dataclass(frozen=True)
class Node:
    """A node and what it answered.

    Attributes:
        id: Ray's.
        address: its IP address.
        gpus: that Ray was told of.
        answer: None where there was none.
        silent: why there was none.
    """

    id: str
    address: str
    gpus: float
    answer: Answer | None
    silent: str = ""

    @property
    def devices(self) -> tuple[Device, ...]:
        """Its GPUs as far as it told of them."""
        return (self.answer.devices if self.answer else None) or ()

    def __str__(self) -> str:
        return f"{self.address} ({self.id[:8]})"


@dataclass(frozen=True)
class Fault:
    """Something that is wrong.

    Attributes:
        where: the node, or `driver`, or `cluster`.
        check: one of `CHECKS`, or `answer`.
        said: what, and what to do.
    """

    where: str
    check: str
    said: str

    def __str__(self) -> str:
        return f"{self.where}: {self.check}: {self.said}"


def ask_nodes(question: Question, *, builders_on_gpus: bool) -> list[Node]:
    """Put a question to every living node, all at once; those that live through it answer.

    Args:
        question: as for one builder; nodes where nothing is built are not asked for a spool, those without GPUs not
            for GPUs.
        builders_on_gpus: whether nothing is built on nodes without GPUs.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    look: Any = ray.remote(num_cpus=0, max_retries=0)(look_around)
    asked = []
    for node in alive:
        gpus = node["Resources"].get("GPU", 0.0)
        builders = max(1, round(gpus)) if gpus or not builders_on_gpus else 0
        own = replace(
            question,
            devices=question.devices and gpus > 0,
            spool_bytes=question.spool_bytes * builders,
        )
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked.append(look.options(scheduling_strategy=there).remote(own))
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS)
    still_there = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    nodes = []
    for node, reference in zip(alive, asked, strict=True):
        if node["NodeID"] not in still_there:
            continue  # taken away meanwhile, as spot nodes are
        answer, silent = _answer_of(reference) if reference in answered else (None, _too_late(reference))
        gpus = node["Resources"].get("GPU", 0.0)
        nodes.append(Node(node["NodeID"], node["NodeManagerAddress"], gpus, answer, silent))
    return nodes


def _answer_of(reference: Any) -> tuple[Answer | None, str]:
    try:
        return ray.get(reference), ""
    except RayError as error:
        # The last line of a traceback says what it was.
        reason = plain(str(error).strip().rpartition("\n")[2]) or type(error).__name__
        return None, f"{reason[:300]}; is the project installed there, in this version?"


def _too_late(reference: Any) -> str:
    ray.cancel(reference, force=True)
    return f"nothing within {ANSWER_SECONDS:.0f} s"


@contextmanager
def probed(roots: Sequence[str]) -> Iterator[str]:
    """Put an object under each root for the time of a block; its key and content."""
    probe = f"{TEMPORARY}seen-{uuid.uuid4().hex}"
    with ExitStack() as stack:
        for root in roots:
            storage = open_storage(root)
            storage.put_bytes(probe, probe.encode())
            stack.callback(_forget, storage, probe)
        yield probe


def _forget(storage: Storage, key: str) -> None:
    with suppress(StorageError):  # it is hidden, and gc removes it
        storage.delete(key)


def faults_of(node: Node, versions: Mapping[str, str], models: Mapping[str, str]) -> list[Fault]:
    """What is wrong with a node.

    Args:
        node: that was asked.
        versions: of the driver.
        models: what each model looks like to the driver, a hash by id.
    """
    answer = node.answer
    if answer is None:
        return [Fault(str(node), "answer", node.silent)]
    found = {**answer.faults}
    other = [
        f"{name} is {answer.versions.get(name)}, the driver has {wanted}"
        for name, wanted in versions.items()
        if _release(answer.versions.get(name, "absent")) != _release(wanted)
    ]
    if other:
        found["versions"] = f"{'; '.join(other)}; install the same on every node"
    if answer.clock_ahead is not None and abs(answer.clock_ahead) > CLOCK_SECONDS:
        side = "ahead of" if answer.clock_ahead > 0 else "behind"
        found["clock"] = (
            f"{abs(answer.clock_ahead):.0f} s {side} the store's; S3 refuses signatures from 900 s on: set it (NTP)"
        )
    for id, seen in answer.models.items():
        if seen not in (models.get(id), TO_BE_FETCHED):
            found.setdefault(
                "models", f"{id} is not the driver's: {seen}, not {models.get(id)}; copy it again"
            )
    if answer.devices is not None and len(answer.devices) < node.gpus:
        found.setdefault(
            "GPUs",
            f"Ray was told of {node.gpus:g}, torch sees {len(answer.devices)}; check the driver and that torch is a "
            "CUDA build, or start Ray there with --num-gpus",
        )
    return [Fault(str(node), check, said) for check, said in found.items()]


def _release(version: str) -> str:
    """Without the build (+cpu, +cu130): a head without a GPU may have another one."""
    return version.partition("+")[0]


def check_nodes(
    cluster: Cluster,
    *,
    writes: Sequence[str],
    reads: Sequence[str] = (),
    models: Sequence[ModelSource] = (),
    spool: str | None = None,
    spool_bytes: int = 0,
) -> None:
    """What is quick of the preflight, at the start of a job: everything but the GPUs, which are asked anyway.

    Args:
        cluster: asked where it has several nodes; one alone is the driver's own.
        writes, reads, models, spool, spool_bytes: as in `Question`.

    Raises:
        UsageError: a node is not fit; names the first fault.
        StorageError: the driver itself cannot put, read, list or delete an object under a root of `writes`.
    """
    for root in writes:
        open_storage(root).honours_create_only()
    if len(cluster.nodes) < 2:
        return
    with probed(writes) as probe:
        question = Question(tuple(writes), tuple(reads), probe, tuple(models), spool, spool_bytes)
        nodes = ask_nodes(question, builders_on_gpus=cluster.gpus > 0)
    versions, seen = versions_here(), {model.id: glance_at(model) for model in models}
    faults = [fault for node in nodes for fault in faults_of(node, versions, seen)]
    if faults:
        more = f" ({len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise UsageError(f"node {faults[0]}{more}; python -m ray_jobs preflight shows every node")
