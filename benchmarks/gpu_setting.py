"""What the steps of `gpu.py` share: the models of a size, and how time on the device is taken."""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from random_models import Models, make_models

from projector.inference.compile_and_batch import compile_checked
from projector.inference.image_generator import ImageGenerator

ONE = ([-8], ["caption"])  # layer and text mode, of the plainest build
PEAK_SIZE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Setting:
    """One run of `gpu.py`.

    Attributes:
        size: of the models, as in `random_models`.
        side: of the pictures, pixels.
        steps: of denoising.
        batch_size: pictures made together.
        device: `cuda` or `cpu`.
        turns: of the guide's loop and ours that count.
    """

    size: str
    side: int
    steps: int
    batch_size: int
    device: str
    turns: int = 2

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device != "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16 on a GPU, float32 on a CPU, as in `build`."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    @cached_property
    def models(self) -> Models:
        """Whole models with random weights, on the device."""
        with torch.inference_mode(False):  # weights made inside would refuse to be trained through
            return make_models(self.size, self.device, self.dtype)

    @cached_property
    def images(self) -> ImageGenerator:
        """Our generator over the pipeline's weights, before blocks are compiled; `compile_note` compiles them."""
        return self.models.ours(self.side, self.side, self.steps, *ONE)[1]

    @cached_property
    def compile_note(self) -> str:
        """What a build would say of compiled blocks, which `images` uses from then on if they are faster."""
        return compile_checked(self.images, self.batch_size) if self.on_gpu else "not compiled on a CPU"

    @cached_property
    def width(self) -> int:
        """Hidden size D."""
        return int(self.models.vl.config.text_config.hidden_size)

    @cached_property
    def peak(self) -> float:
        """Most floating-point operations a second that a large square product of random numbers reaches here."""
        size = PEAK_SIZE[self.device]
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * size**3 / (min(self.milliseconds(lambda: a @ b, calls=30)) / 1e3)

    def words(self, samples: int) -> argparse.Namespace:
        """What `engine` takes as its options."""
        return argparse.Namespace(
            side=self.side,
            steps=self.steps,
            batch_size=self.batch_size,
            samples=samples,
            device=self.device,
            dtype=str(self.dtype).removeprefix("torch."),
        )

    def milliseconds(self, call: Callable[[], Any], *, calls: int = 3, warm_up: int = 1) -> list[float]:
        """Time of each of some calls, taken by device events on a GPU."""
        for _ in range(warm_up):
            call()
        if not self.on_gpu:
            return [_wall_milliseconds(call) for _ in range(calls)]
        torch.cuda.synchronize()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) for before, after in itertools.pairwise(marks)]

    def median(self, call: Callable[[], Any], *, calls: int = 3, warm_up: int = 1) -> float:
        """Median of `milliseconds`, rounded to microseconds."""
        return round(statistics.median(self.milliseconds(call, calls=calls, warm_up=warm_up)), 3)

    def forget_peak(self) -> None:
        """Begin to measure memory anew."""
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gigabytes(self) -> float | None:
        """Most memory that tensors took since `forget_peak`; None on a CPU."""
        return round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.on_gpu else None

    def resident_gigabytes(self) -> float | None:
        """Memory that tensors take now; None on a CPU."""
        return round(torch.cuda.memory_allocated() / 1e9, 2) if self.on_gpu else None


def _wall_milliseconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e3
