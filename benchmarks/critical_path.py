"""CPU work that a device waits for while pairs are made: a stand-in device sleeps where a GPU would compute.

    python benchmarks/critical_path.py                                    64 pictures of 1024², two minutes
    python benchmarks/critical_path.py --samples 8 --side 256             does it run

As a GPU does, the stand-in takes work while it is still at earlier work, and whoever looks at a result waits; so does
whoever copies to it as torch does, from memory that is not pinned. A pass of a model takes as long as on an H200
(`DEVICE_SECONDS`) and gives tensors of the full size; operations on those, and copies to pinned memory, are done by the
CPU here and counted as the device's. It idles from the end of its work until more is given: that share of the time is
CPU work on the critical path. What the libraries' own models do on the CPU, and where they look at the device, is not
in it: their passes are stand-ins.

All threads have clocks of their own, which count their CPU seconds and the sleep until something is there, and sleep
takes no real time: so other work on this machine changes little.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import png
import torch
from planned import planned_shard
from random_models import make_models
from torch.overrides import TorchFunctionMode
from training import hardware

from projector.inference import copies, image_generator, patches, text_encoder, vision_encoder
from projector.inference.image_generator import ImageGenerator
from projector.inference.text_encoder import TextEncoder
from projector.inference.vision_encoder import VisionLanguageEncoder
from projector.making.device_clock import DeviceClock
from projector.making.generated import PictureMaker, PictureReader
from projector.making.shard_maker import FusedMaker
from projector.models.offload import Residence
from ray_jobs.building.builder import BATCHES_BEHIND
from shards.format.plan import PlannedShard
from shards.format.sample import Expected, Failure
from shards.format.shard_writer import ShardWriter

WIDTH, LAYERS, MODES, TOGETHER, STEPS = 2560, [-8, -6], ["caption", "none"], 4, 8
# Four pictures of 1024² on an H200, 4.1 s in all (docs/performance.md); reading is what its warm shard has left.
DEVICE_SECONDS = {"text": 0.05, "denoising step": 0.382, "decoder": 0.302, "vision": 0.1, "language": 0.3}
TARGET = 0.02


class SleepingDevice:
    """A stand-in for a GPU: it sleeps where that would compute, and knows how long it had nothing to do."""

    def __init__(self) -> None:
        self.passed = 0.0  # seconds that this thread waited, less those in which it computed for others
        self.for_others = 0  # whether it does now, and how many times over
        self.begin()

    def begin(self) -> None:
        """Start to count."""
        self.free_at = self.now()
        self.worked = 0.0
        self.idle: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        """Seconds of this thread."""
        return time.thread_time() + self.passed

    def work(self, name: str, seconds: float | None = None) -> None:
        """Take in a pass of this name, to begin once earlier ones are over."""
        seconds = DEVICE_SECONDS[name] if seconds is None else seconds
        self.idle[f"before {name}"] += max(0.0, self.now() - self.free_at)
        self.free_at = max(self.now(), self.free_at) + seconds
        self.worked += seconds

    def wait(self, until: float | None = None) -> None:
        """Sleep until all work is done, or until a time."""
        self.passed += max(0.0, (self.free_at if until is None else until) - self.now())

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What happens inside takes this thread no time: a GPU does it, or another thread."""
        begun = time.thread_time()
        self.for_others += 1
        yield
        self.for_others -= 1
        if not self.for_others:
            self.passed -= time.thread_time() - begun

    def tensor(self, values: torch.Tensor) -> "OnDevice":
        """Values as if they were on this device."""
        found = values.as_subclass(OnDevice)
        OnDevice.home = self
        return found


class Mark:
    """What is over when the device has done all that it was given so far, as a `torch.cuda.Event`."""

    def __init__(self, device: SleepingDevice) -> None:
        self._device = device
        self.record()

    def record(self) -> None:
        """Stand behind all work so far."""
        self._at = self._device.free_at

    def query(self) -> bool:
        """Whether that is done."""
        return self._device.now() >= self._at

    def synchronize(self) -> None:
        """Wait for it; other threads do so in time of their own."""
        if threading.current_thread() is threading.main_thread() and not self._device.for_others:
            self._device.wait(self._at)


class OnDevice(torch.Tensor):
    """What is on the device: computing with it is the device's work, and a look at it waits for that."""

    home: SleepingDevice

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, or wait."""
        kwargs = kwargs or {}
        looks = function in (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.item)
        if looks or (function is torch.Tensor.to and "cpu" in args):  # a device of the models is no string
            if kwargs.get("non_blocking"):
                with cls.home.elsewhere():
                    return args[0].as_subclass(torch.Tensor).clone()
            cls.home.wait()
            plain = args[0].as_subclass(torch.Tensor).clone()
            return function(plain, *args[1:], **kwargs)
        with cls.home.elsewhere():
            return super().__torch_function__(function, types, args, kwargs)


class Copying(TorchFunctionMode):
    """Lets copies to the device wait for all of its work, as torch's do from memory that is not pinned."""

    def __init__(self, device: SleepingDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call, and wait where it copies."""
        kwargs = kwargs or {}
        to_device = any(isinstance(value, torch.device) for value in (*args, *kwargs.values()))
        copies = function is torch.tensor or (
            function is torch.Tensor.to and not isinstance(args[0], OnDevice)
        )
        found = function(*args, **kwargs)
        if copies and to_device:
            self._device.wait()
            return self._device.tensor(found)
        return found


def sleeping_maker(device: SleepingDevice, side: int) -> FusedMaker:
    """This project's engine around models that sleep."""
    text, images, vision = make_models("tiny", "cpu", torch.float32).ours(side, side, STEPS, LAYERS, MODES)
    states = device.tensor(torch.randn(16, 2048, WIDTH).to(torch.bfloat16))
    _let_text_sleep(device, text, states)
    _let_images_sleep(device, images, side)
    _let_vision_sleep(device, vision, states)
    _let_copies_go_on(device)
    maker = FusedMaker(
        PictureMaker(text, images, TOGETHER, Residence()),
        PictureReader({"vl": vision}, "all", TOGETHER, Residence()),
    )
    maker._clock = DeviceClock((), partial(Mark, device), ahead=True)
    return maker


def _let_copies_go_on(device: SleepingDevice) -> None:
    """Copies as they are on a GPU, from and to pinned memory."""

    def onto(_device: torch.device, values: torch.Tensor) -> torch.Tensor:
        pinned = values.clone()
        return device.tensor(pinned)

    copies._event = lambda _device: Mark(device)
    for module in (image_generator, patches, text_encoder, vision_encoder):
        module.onto = onto  # type: ignore[attr-defined]


def _let_text_sleep(device: SleepingDevice, text: TextEncoder, states: torch.Tensor) -> None:
    def forward(input_ids: torch.Tensor, **_: Any) -> Any:
        device.work("text")
        return SimpleNamespace(last_hidden_state=states[: len(input_ids), : input_ids.shape[1]])

    text.model.forward = forward


def _let_images_sleep(device: SleepingDevice, images: ImageGenerator, side: int) -> None:
    pixels = np.asarray(png.picture().resize((side, side)))
    decoded = device.tensor(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1)

    def denoise(latents: Sequence[torch.Tensor], *_: Any, **__: Any) -> Any:
        device.work("denoising step")
        return ([torch.zeros_like(latent) for latent in latents],)

    def decode(latents: torch.Tensor, *_: Any) -> torch.Tensor:
        device.work("decoder")
        return decoded.expand(len(latents), -1, -1, -1)

    images.pipeline.transformer.forward = denoise
    images.pipeline.vae.decoder.forward = decode


def _let_vision_sleep(device: SleepingDevice, vision: VisionLanguageEncoder, states: torch.Tensor) -> None:
    def see(*_: Any, **__: Any) -> None:
        device.wait()  # the library looks at the grid of the pictures before the tower, and again behind it
        device.work("vision")
        device.wait()

    def read(input_ids: torch.Tensor, **_: Any) -> None:
        device.work("language")
        for layer in LAYERS:
            vision._captured[layer] = states[: len(input_ids), : input_ids.shape[1]]

    def mask(*arguments: Any) -> torch.Tensor:
        with device.elsewhere():
            return packed_mask(*arguments)

    packed_mask, vision_encoder._packed_mask = vision_encoder._packed_mask, mask
    vision.model.get_image_features = see
    vision.model.forward = read
    vision._patches._table = device.tensor(vision._patches._table)


def one_shard(maker: FusedMaker, shard: PlannedShard, device: SleepingDevice, side: int) -> dict[str, float]:
    """Make a shard as a builder does; how its seconds divide."""
    expected = Expected(tuple(MODES), tuple(LAYERS), side, side)
    device.begin()
    behind: deque[float] = deque()  # when the writer will be done with a batch
    free = device.now()
    with (
        tempfile.TemporaryDirectory() as folder,
        ShardWriter(shard, Path(folder), "benchmark", expected) as writer,
    ):
        for step in maker.steps(shard.samples, (), {}):
            while len(behind) >= BATCHES_BEHIND:
                device.wait(behind.popleft())
            results, _ = maker.timed(step.run)
            if results:
                begun = time.thread_time()
                with device.elsewhere():
                    for result in results:
                        assert not isinstance(result, Failure), result
                        writer.add(result)
                free = max(free, device.free_at) + time.thread_time() - begun
                behind.append(free)
        device.wait()
        device.work("next shard", 0.0)
        writer.close()
    idle, batches = sum(device.idle.values()), len(shard.samples) / TOGETHER
    found = {"share": idle / (idle + device.worked), "device at work": device.worked / batches}
    return found | {f"idle {name}": seconds / batches for name, seconds in device.idle.items()}


def main(words: list[str]) -> None:
    """Run, and print or write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--side", type=int, default=1024, help="of the pictures, pixels")
    parser.add_argument("--output", type=Path, help="JSON file; default: stdout")
    options = parser.parse_args(words)
    shard = planned_shard(options.samples)
    torch.set_num_threads(1)  # as in builders
    device = SleepingDevice()
    maker = sleeping_maker(device, options.side)
    with Copying(device):
        one_shard(maker, shard, device, options.side)  # warms up
        found = one_shard(maker, shard, device, options.side)
    result = {
        "hardware": hardware(),
        "samples": options.samples,
        "side": options.side,
        "share_of_cpu_work": round(found.pop("share"), 4),
        "target": TARGET,
        "seconds_a_batch": {name: round(seconds, 4) for name, seconds in found.items()},
    }
    text = json.dumps(result, indent=1) + "\n"
    options.output.write_text(text) if options.output else print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
