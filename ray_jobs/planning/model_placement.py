"""Which models stand where: all on one GPU, one after the other on it, or on different ones; and why."""

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from projector.making.generated import PairSettings
from projector.models.resolve import ModelSources
from ray_jobs.cluster.connect import Cluster
from shards.errors import UsageError

Placement = Literal["fused", "staged", "offload"]

BYTES = {"bfloat16": 2, "float32": 4}
# What lies on the device beside the weights, by pixel of a batch: the decoder's widest layer, four float32 maps of
# 128 channels at full size; and for each process, CUDA's context and the allocator's slack.
ACTIVATION_BYTES_PER_PIXEL = 4 * 4 * 128
PROCESS_BYTES = 1.5e9
ANSWER_SECONDS = 60.0
# Memory of a machine where weights wait: a builder's interpreter with torch and what a batch passes through, and the
# system with Ray and a driver (estimates); beyond 95% Ray kills workers (RAY_memory_usage_threshold).
BUILDER_MEMORY, MACHINE_MEMORY, MEMORY_SHARE = 2e9, 3e9, 0.95


@dataclass(frozen=True)
class Needs:
    """Bytes on the device.

    Attributes:
        text, image, vl: weights of the text encoder, of transformer and decoder, of the vision-language model.
        beside: activations and the process itself.
    """

    text: float
    image: float
    vl: float
    beside: float

    def of(self, placement: Placement) -> float:
        """Of the fullest device under a placement."""
        weights = {
            "fused": self.text + self.image + self.vl,
            "staged": max(self.text + self.image, self.vl),
            "offload": max(self.text, self.image, self.vl),
        }
        return weights[placement] + self.beside


def needs(sources: ModelSources, settings: PairSettings) -> Needs:
    """What a run's models take.

    Args:
        sources: the models.
        settings: image size, batch size and arithmetic.
    """
    image, size = Path(sources.image.path), BYTES[settings.dtype]
    linear = 1 if settings.quantize == "int8" else size
    return Needs(
        text=weight_bytes(image / "text_encoder", size, linear),
        image=weight_bytes(image / "transformer", size, size) + weight_bytes(image / "vae", size, size),
        vl=len(settings.readers) * weight_bytes(Path(sources.vl.path), size, linear),
        beside=ACTIVATION_BYTES_PER_PIXEL * settings.height * settings.width * (settings.batch_size or 1)
        + PROCESS_BYTES,
    )


def weight_bytes(folder: Path, size: int, linear: int) -> int:
    """Bytes of a folder's safetensors once loaded, from their headers.

    Args:
        folder: of one model.
        size: of a number.
        linear: of a number in a linear layer.
    """
    return sum(
        prod(shape) * (linear if len(shape) == 2 and "embed" not in name else size)
        for path in sorted(folder.glob("*.safetensors"))
        for name, shape in _shapes(path)
    )


def _shapes(path: Path) -> Iterator[tuple[str, list[int]]]:
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, entry["shape"]


def choose_placement(asked: str, wanted: Needs, memory: float | None) -> tuple[Placement, str]:
    """The placement of a run.

    Args:
        asked: `auto` or a placement.
        wanted: what the models take.
        memory: bytes that each builder has on its smallest device; None on CPUs.

    Returns:
        the placement, and why, as a line for people.

    Raises:
        UsageError: the weights alone do not fit.
    """
    if memory is None:
        return ("fused" if asked == "auto" else asked), ""  # type: ignore[return-value]
    told = f"{memory / 1e9:.0f} GB a builder"
    if asked == "auto" and wanted.of("fused") <= memory:
        return "fused", f"placement fused: all models take {wanted.of('fused') / 1e9:.0f} GB of {told}"
    placement: Placement = "offload" if asked == "auto" else asked  # type: ignore[assignment]
    weights = wanted.of(placement) - wanted.beside
    if weights > memory:
        raise UsageError(
            f"build.placement = {asked!r}: the weights on a device take {weights / 1e9:.1f} GB, it has {told}; "
            f"{'' if placement == 'offload' else 'take build.placement = offload, '}"
            "give each builder more of a GPU (build.gpus_per_actor), or use larger GPUs"
        )
    if asked != "auto":
        return placement, ""
    return (
        "offload",
        f"placement offload: all models would take {wanted.of('fused') / 1e9:.0f} GB of {told}, "
        f"one at a time {wanted.of('offload') / 1e9:.0f} GB",
    )


def device_memory(cluster: Cluster, gpus: float) -> float | None:
    """Bytes of the smallest GPU of the cluster, times the share of it that a builder reserves.

    Args:
        cluster: whose nodes are asked.
        gpus: that each builder reserves.

    Returns:
        None where there is none, or none can be asked (declared without a device, or held by another job).
    """
    if not gpus:
        return None
    ask = ray.remote(num_cpus=0, num_gpus=min(gpus, 1.0))(_memory_here)
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in cluster.gpu_nodes
    ]
    # GPUs that another job holds cannot be asked; the build then goes by those that could.
    answered, busy = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS)
    for task in busy:
        ray.cancel(task)
    found = [memory for memory in ray.get(answered) if memory]
    return min(found) * min(gpus, 1.0) if found else None


def check_offloading(
    cluster: Cluster, actors: int, gpus: float, wanted: Needs, section: str = "build"
) -> None:
    """Check that the memory of every machine holds the weights that wait there, of all builders that run on it.

    Args:
        cluster: whose nodes with GPUs are asked.
        actors: builders in all.
        gpus: that each reserves.
        wanted: what the models of one take.
        section: of the options, which errors name.

    Raises:
        UsageError: a machine has too little; names it.
    """
    ask = ray.remote(num_cpus=0)(_machine_memory)
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["NodeID"] in cluster.gpu_nodes}
    asked = {
        id: ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(id, soft=False)).remote()
        for id in nodes
    }
    answered, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)
    for id, reference in asked.items():
        if reference in answered:
            builders = min(actors, int(nodes[id]["Resources"].get("GPU", 0.0) / gpus + 1e-9))
            check_memory(nodes[id]["NodeManagerAddress"], builders, ray.get(reference), wanted, section)


def check_memory(node: str, builders: int, memory: float, wanted: Needs, section: str = "build") -> None:
    """UsageError where a machine's memory does not hold the offloaded weights of its builders.

    Args:
        node: its address.
        builders: that run on it.
        memory: its bytes.
        wanted: what the models of one builder take.
        section: of the options, which errors name.
    """
    weights = wanted.text + wanted.image + wanted.vl
    needed = builders * (weights + BUILDER_MEMORY) + MACHINE_MEMORY
    if needed > MEMORY_SHARE * memory:
        raise UsageError(
            f"node {node}: each of its {builders} builder(s) keeps {weights / 1e9:.0f} GB of weights in memory, "
            f"one model at a time on the GPU, which takes {needed / 1e9:.0f} GB with what runs beside them; it has "
            f"{memory / 1e9:.0f} GB. "
            f"Lower {section}.actors, or use GPUs or machines with more memory"
        )


def _machine_memory() -> float:
    """Bytes that this machine has, or its container may use."""
    whole = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        return min(whole, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit, which reads `max`
        return whole


def _memory_here() -> float | None:
    if not torch.cuda.is_available():
        return None
    return float(
        min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    )
