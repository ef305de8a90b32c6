"""Getting near what the device can do: compiled blocks that are checked against eager ones, and the batch size."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from projector.generate import ImageGenerator
from projector.models import ModelSource, cache_folder

COMPILED_PARITY = 0.02  # relative error of one step; bfloat16 rounding alone gives about 0.004 a block
# A compiled graph per length of the padded captions: multiples of 32 up to 512 tokens, at a few batch sizes.
GRAPHS = 64
MOST = 16  # pictures together; a device that gains from more does not exist at 1024²
GAIN = 1.03  # by which a doubled batch has to be faster a picture


def compile_checked(images: ImageGenerator) -> str:
    """Compile the transformer's blocks, and keep that only if one step comes out as without.

    Args:
        images: on its device.

    Returns:
        a line for people where it was not kept; empty otherwise.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    transformer = images.pipeline.transformer
    eager = images.one_step(1)
    reason = ""
    try:
        transformer.compile_repeated_blocks(dynamic=False)
        error = float((images.one_step(1) - eager).norm() / eager.norm())
        if not error <= COMPILED_PARITY:
            reason = f"a step differs by {error:.2g}, more than {COMPILED_PARITY:g}"
    except Exception as failure:  # a missing compiler is as good a reason as any to go on without
        reason = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
    if not reason:
        return ""
    for module in transformer.modules():
        module._compiled_call_impl = None
    return f"compiled blocks are not used: {reason}"


def find_batch_size(images: ImageGenerator, source: ModelSource) -> int:
    """How many pictures to make together; searched once for a device, models and size, then remembered.

    Args:
        images: on its device.
        source: of its weights.
    """
    device = next(images.pipeline.transformer.parameters()).device
    about = [
        torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        images.height,
        images.width,
    ]
    about += [str(images.pipeline.transformer.dtype), sorted(source.files.items())]
    record = (
        cache_folder() / "batch-sizes" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.json"
    )
    with suppress(OSError, ValueError, KeyError, TypeError):
        return max(1, min(MOST, int(json.loads(record.read_text())["batch_size"])))

    def seconds(size: int) -> float:
        images.one_step(size)
        begun = time.monotonic()
        images.one_step(size)
        return time.monotonic() - begun

    found = fastest(seconds)
    write_whole(
        record,
        json.dumps({"batch_size": found, "device": about[0], "height": images.height, "width": images.width}),
    )
    return found


def fastest(seconds: Callable[[int], float]) -> int:
    """The batch size that makes most pictures a second.

    Args:
        seconds: that a batch of a size takes; raises torch.OutOfMemoryError where it does not fit.

    Returns:
        1, or the last doubling that was worth it.
    """
    best, pace = 1, 0.0
    size = 1
    while size <= MOST:
        try:
            now = size / max(seconds(size), 1e-9)
        except torch.OutOfMemoryError:
            now = -math.inf
        if now < pace * GAIN:
            break
        best, pace, size = size, now, 2 * size
    torch.cuda.empty_cache()
    return best


def write_whole(path: Path, text: str) -> None:
    """Write a small file that other processes may be writing too; one of them wins, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)
