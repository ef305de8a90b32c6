"""Getting near what the device can do: compiled blocks that are checked against eager ones, and the batch size."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress

import torch

from projector.inference.image_generator import ImageGenerator
from projector.inference.rotary import use_complex_rotations, use_real_rotations
from projector.models.machine_records import write_whole
from projector.models.resolve import ModelSource, cache_folder

COMPILED_PARITY = 0.02  # relative error of one step; bfloat16 rounding alone gives about 0.004 a block
COMPILED_GAIN = 1.03  # by which compiled steps have to be faster
TIMED_STEPS = 3
ROWS, LONGER_ROWS = 64, 96  # of a caption; captions of one length need no mask, of two they do
MOST = 16  # pictures together; a device that gains from more does not exist at 1024²
GAIN = 1.03  # by which a doubled batch has to be faster a picture


def compile_checked(images: ImageGenerator, pictures: int) -> str:
    """Compile the transformer's blocks, and keep that only if steps come out as without, and sooner.

    Both have to hold for captions of one length and for those of two, whose attention has a mask. One graph serves
    all lengths of captions: a graph for each would be compiled for minutes on every new machine.

    Args:
        images: on its device.
        pictures: made together.

    Returns:
        a line for people: how much faster steps are where they gain least, or why they are not compiled.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    transformer = images.pipeline.transformer
    shapes = [[ROWS] * pictures, [ROWS] * (pictures - 1) + [LONGER_ROWS]]
    eager = [_timed_step(images, rows) for rows in shapes]
    try:
        use_real_rotations(transformer)
        # Sizes that happen to be equal, a caption's rows and half a head's numbers, say, must not be taken for one.
        torch.fx.experimental._config.use_duck_shape = False
        transformer.compile_repeated_blocks(dynamic=True)
        compiled = [_timed_step(images, rows) for rows in shapes]
        error = max(float((b - a).norm() / a.norm()) for (a, _), (b, _) in zip(eager, compiled, strict=True))
        faster = min(before / after for (_, before), (_, after) in zip(eager, compiled, strict=True))
        if not error <= COMPILED_PARITY:
            reason = f"a step differs by {error:.2g}, more than {COMPILED_PARITY:g}"
        elif faster < COMPILED_GAIN:
            reason = f"a step is {faster:.2f} times as fast"
        else:
            return f"compiled blocks: a step is {faster:.2f} times as fast"
    except Exception as failure:  # a missing compiler is as good a reason as any to do without
        reason = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
    use_complex_rotations(transformer)
    for module in transformer.modules():
        module._compiled_call_impl = None
    return f"compiled blocks are not used: {reason}"


def _timed_step(images: ImageGenerator, rows: list[int]) -> tuple[torch.Tensor, float]:
    """A step's latents and the seconds that it takes once it is warm: the least of three, as other work only adds."""
    latents, seconds = images.one_step(rows), math.inf
    for _ in range(TIMED_STEPS):
        begun = time.monotonic()
        latents = images.one_step(rows)
        seconds = min(seconds, time.monotonic() - begun)
    return latents, seconds


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
        return _timed_step(images, [ROWS] * size)[1]

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
