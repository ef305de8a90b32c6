"""Steps of `gpu.py` that train: resident epochs, a call, one rank of NCCL, gradients through the image model."""

import argparse
import os
import statistics
import tempfile
import time
from typing import Any

import torch
from apply import measure
from gpu_making import CAPTION_ROWS
from gpu_setting import Setting
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from projector.data.pairs import Pair, PairSource, in_memory
from projector.data.world import World
from projector.inference.rotary import use_real_rotations
from projector.network.architectures import ProjectorNetwork, Shape
from projector.options import Arch, TrainOptions
from projector.training.worker import Trainer
from shards.format.sample import KIND_IMAGE

PAIRS = {"full": 20_000, "medium": 640, "tiny": 64}
POSITIONS = 64
BATCH = 32
EPOCHS = 3  # the first one warms up
RESPONSE_BATCHES = (1, 4)


def projector_calls(setting: Setting) -> dict[str, Any]:
    """Milliseconds that a projector adds to a call, by architecture and number of tokens."""
    calls = 30 if setting.on_gpu else 5
    words = argparse.Namespace(width=setting.width, tokens=[1050, 64], calls=calls)
    return measure(words, torch.device(setting.device))


def epochs(setting: Setting) -> dict[str, Any]:
    """Seconds to start and seconds an epoch over pairs that are on the device, by architecture."""
    count = PAIRS[setting.size]
    pairs = _pairs(count, setting.width)
    held_out = in_memory(list(pairs.read(0, 64)))
    world = World(0, 1, torch.device(setting.device))
    found: dict[str, Any] = {"pairs": count, "positions": POSITIONS}
    for name, options in {
        "mlp": TrainOptions(arch="mlp", align="pool", length=POSITIONS),
        "attention": TrainOptions(arch="attention", align="pool", length=POSITIONS),
    }.items():
        found[name] = _epochs(options, world, pairs, held_out)
    return found


def _epochs(options: TrainOptions, world: World, pairs: PairSource, held_out: PairSource) -> dict[str, Any]:
    begun = time.perf_counter()
    run = Trainer(options, world, pairs, held_out, None)
    started = time.perf_counter()
    seconds = []
    for _ in range(EPOCHS):
        before = time.perf_counter()
        run.epoch(on_progress=None, should_stop=None, save=lambda **_: None)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - before)
        run.close_epoch()
    return {
        "seconds_to_load_and_start": round(started - begun, 2),
        "seconds_per_epoch": round(statistics.median(seconds[1:]), 3),
        "pairs_per_second": round(len(pairs) / statistics.median(seconds[1:])),
    }


def _pairs(count: int, width: int) -> PairSource:
    """Random pairs; a thousand distinct ones repeat, since the arithmetic does not know."""
    distinct = min(count, 1000)
    sides = torch.randn(2, distinct, POSITIONS, width, generator=torch.Generator().manual_seed(0))
    vl, text = sides.to(torch.bfloat16)
    kind = torch.full((POSITIONS,), KIND_IMAGE, dtype=torch.uint8)
    return in_memory([Pair(str(i), vl[i % distinct], kind, text[i % distinct]) for i in range(count)])


def distributed_step(setting: Setting) -> dict[str, Any]:
    """Steps under DistributedDataParallel with one rank, NCCL on a GPU: the same weights as without, and its cost."""
    backend = "nccl" if setting.on_gpu else "gloo"
    device = torch.device(setting.device, 0) if setting.on_gpu else torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        store = distributed.FileStore(os.path.join(folder, "store"), 1)
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            plain, plain_ms = _steps(setting, device, wrapped=False)
            spread, spread_ms = _steps(setting, device, wrapped=True)
        finally:
            distributed.destroy_process_group()
    differences = [float((a - b).abs().max()) for a, b in zip(plain, spread, strict=True)]
    return {
        "backend": backend,
        "ranks": 1,
        "largest_difference": max(differences),
        "step_ms": {"alone": plain_ms, "distributed": spread_ms},
    }


def _steps(setting: Setting, device: torch.device, *, wrapped: bool) -> tuple[list[Tensor], float]:
    arch: Arch = "mlp"
    torch.manual_seed(0)
    hidden = TrainOptions(arch=arch).hidden_size(setting.width)
    network = ProjectorNetwork(
        Shape(arch, setting.width, hidden, POSITIONS, residual=True), random_start=True
    )
    network.to(device)
    module: nn.Module = network
    if wrapped:
        ids = [device] if device.type == "cuda" else None
        module = DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    batch = torch.randn(BATCH, POSITIONS, setting.width, device=device)
    mask = torch.ones(BATCH, POSITIONS, dtype=torch.bool, device=device)

    def step() -> None:
        module(batch, mask).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    spent = setting.median(step, calls=20)
    return [parameter.detach().cpu() for parameter in network.parameters()], spent


def response_steps(setting: Setting) -> dict[str, Any]:
    """Time and memory of a gradient of the conditioning through the frozen image model, checkpointed or not."""
    _, images, _ = setting.models.ours(setting.side, setting.side, setting.steps, [-8], ["caption"])
    transformer, flags = images.pipeline.transformer, (True, False)
    use_real_rotations(transformer)
    found: dict[str, Any] = {}
    for side in (setting.side // 2, setting.side):
        for count in RESPONSE_BATCHES:
            for checkpointed in flags:
                name = f"{side} pixels, {count} together{', checkpointed' if checkpointed else ''}"
                try:
                    found[name] = _response(setting, transformer, side, count, checkpointed)
                except torch.OutOfMemoryError:
                    found[name] = "out of memory"
    return found


def _response(
    setting: Setting, transformer: Any, side: int, count: int, checkpointed: bool
) -> dict[str, Any]:
    if checkpointed:
        transformer.enable_gradient_checkpointing()
    else:
        transformer.disable_gradient_checkpointing()
    where = {"device": setting.device, "dtype": setting.dtype}
    latents = list(torch.randn(count, 16, 1, side // 8, side // 8, **where))
    moment = torch.full((count,), 0.5, **where)
    rows = torch.randn(count, CAPTION_ROWS, setting.width, **where)
    with torch.no_grad():
        aim = torch.stack(transformer(latents, moment, list(rows), return_dict=False)[0])
    guess = (rows + 0.1 * torch.randn_like(rows)).requires_grad_()

    def step() -> None:
        seen = torch.stack(transformer(latents, moment, list(guess), return_dict=False)[0])
        (seen.float() - aim.float()).square().mean().backward()
        guess.grad = None

    before = setting.resident_gigabytes() or 0.0
    setting.forget_peak()
    spent = setting.median(step, calls=2)
    most = setting.peak_gigabytes()
    return {
        "milliseconds": spent,
        "gigabytes_beside_weights": None if most is None else round(most - before, 2),
    }
