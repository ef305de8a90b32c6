"""Pieces of work spread over actors, one at a time each, and what goes wrong there in one line."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from ray_jobs.cluster.connect import StopRequest, plain_error
from ray_jobs.cluster.crew import BUILDER_CPUS

RESTARTS = 3  # of a worker that dies, and tries of the piece it was at

Work = tuple[str, tuple[Any, ...]]  # a method of the workers and its arguments


def start_workers(made_of: type, spec: object, count: int, gpus: float) -> list[Any]:
    """So many actors of a class, each told the spec and given so many GPUs."""
    worker: Any = ray.remote(made_of)
    told = ray.put(spec)
    return [
        worker.options(
            num_cpus=BUILDER_CPUS, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS
        ).remote(told)
        for _ in range(count)
    ]


def spread(workers: Sequence[Any], work: Sequence[Work], stop: StopRequest) -> Iterator[tuple[int, Any]]:
    """Have the workers do the work, one piece each at a time, in its order.

    Args:
        workers: actors.
        work: pieces.
        stop: once it is set, no new piece begins.

    Yields:
        number and result of each piece, as they end.

    Raises:
        UsageError, StorageError, CorruptShardError: as a piece raised them; StorageError for anything else.
    """
    idle, waiting = list(workers), deque(enumerate(work))
    running: dict[Any, tuple[Any, int]] = {}
    while running or (waiting and not stop):
        while idle and waiting and not stop:
            index, (method, arguments) = waiting.popleft()
            worker = idle.pop()
            running[getattr(worker, method).remote(*arguments)] = worker, index
        for reference in ray.wait(list(running), timeout=0.5)[0]:
            worker, index = running.pop(reference)
            idle.append(worker)
            try:
                yield index, ray.get(reference)
            except RayError as error:
                raise plain_error(error) from error
