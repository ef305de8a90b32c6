"""Steps of `gpu.py` about memory: the decoder's, and which placement fits which GPU."""

import gc
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from gpu_setting import ONE, Setting
from planned import planned_shard

from projector.making.generated import PictureMaker, PictureReader
from projector.making.shard_maker import FusedMaker
from projector.models.offload import Residence
from shards.format.sample import Failure

MEMORIES = (80, 48, 32, 24)  # GB of GPUs that people have


@torch.inference_mode()
def decoder_memory(setting: Setting) -> dict[str, Any]:
    """Memory and time of decoding, by pictures together and memory format."""
    vae = setting.models.pipeline.vae
    found: dict[str, Any] = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        vae.to(memory_format=layout)
        for count in (1, 2, 4, 8):
            latents = torch.randn(
                count, 16, setting.side // 8, setting.side // 8, device=setting.device, dtype=setting.dtype
            )
            before = setting.resident_gigabytes() or 0.0
            setting.forget_peak()
            spent = setting.median(lambda latents=latents: vae.decode(latents, return_dict=False)[0], calls=2)
            most = setting.peak_gigabytes()
            found[f"{str(layout).removeprefix('torch.')}, {count}"] = {
                "milliseconds": spent,
                "gigabytes_beside_weights": None if most is None else round(most - before, 2),
            }
    return found


def placements(setting: Setting) -> dict[str, Any]:
    """Whether a batch goes through on GPUs of several sizes, by this process's share of the memory; fused first."""
    if not setting.on_gpu:
        return {"found": "needs a GPU"}
    total = torch.cuda.get_device_properties(0).total_memory
    found: dict[str, Any] = {}
    for placement in ("fused", "offload"):
        maker = _placed(setting, placement)
        for memory in MEMORIES if placement == "fused" else (24, 16):
            if memory * 1e9 > total:
                continue
            with _limited(memory * 1e9 / total):
                found[f"{placement}, {memory} GB"] = _one_batch(setting, maker)
        del maker
    return found


def _placed(setting: Setting, placement: str) -> FusedMaker:
    """A maker without what the libraries' whole models hold beside it."""
    from diffusers import ZImagePipeline

    text, images, vision = setting.models.ours(setting.side, setting.side, setting.steps, *ONE)
    whole = images.pipeline
    images.pipeline = ZImagePipeline(whole.scheduler, whole.vae, None, None, whole.transformer)
    images.pipeline.set_progress_bar_config(disable=True)
    if placement == "offload":
        for model in (text, images, vision):
            model.to("cpu")
        setting.models.vl.to("cpu")
        setting.models.pipeline.text_encoder.to("cpu")
    residence = Residence(one_at_a_time=placement == "offload")
    return FusedMaker(
        PictureMaker(text, images, setting.batch_size, residence),
        PictureReader({"vl": vision}, "all", setting.batch_size, residence),
        in_turn=placement == "offload",
    )


def _one_batch(setting: Setting, maker: FusedMaker) -> dict[str, Any]:
    shard = planned_shard(setting.batch_size)
    maker.pictures.batch_size = maker.reader.batch_size = setting.batch_size
    setting.models.pipeline.vae.disable_tiling()
    setting.forget_peak()
    begun = time.monotonic()
    results = [result for step in maker.steps(shard.samples, (), {}) for result in step.run()]
    failures = [result for result in results if isinstance(result, Failure)]
    return {
        "made": len(results) - len(failures),
        "failed": Counter(f"{failure.stage}: {failure.error_class}" for failure in failures),
        "batch_size_at_end": maker.pictures.batch_size,
        "decodes_in_tiles": maker.pictures._images.decodes_in_tiles,
        "peak_gigabytes": setting.peak_gigabytes(),
        "seconds": round(time.monotonic() - begun, 1),
    }


@contextmanager
def _limited(share: float) -> Iterator[None]:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
