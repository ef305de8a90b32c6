"""Which process and which device an actor is running on."""

import os
import socket

import ray

from shards.format.commit import Maker


def whereabouts(run: str) -> Maker:
    """This actor, by all that leads to its log."""
    here = ray.get_runtime_context()
    job, pid = here.get_job_id(), os.getpid()
    return Maker(
        run=run,
        node=here.get_node_id(),
        host=socket.gethostname(),
        address=ray.util.get_node_ip_address(),
        actor=here.get_actor_id() or "",
        pid=pid,
        job=job,
        # https://docs.ray.io/en/latest/ray-observability/user-guides/configure-logging.html: worker log files
        log=f"worker-{here.get_worker_id()}-{job}-{pid}",
    )


def device_name() -> str:
    """The accelerator Ray gave this actor, or the CPU: `GPU 2 (NVIDIA H200)`, `CPU`."""
    ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    if not ids:
        return "CPU"
    import torch  # here, where a device is at hand: without one a builder may have no use for it

    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else "declared, no device found"
    return f"GPU {','.join(ids)} ({kind})"
