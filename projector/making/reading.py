"""What reads pictures for `build`, `import` and `extract`: Qwen3-VL, the graft, or both, as stored tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from projector.inference.copies import Arriving
from projector.inference.text_encoder import SampleError
from projector.inference.vision_encoder import VisionEncoding, VisionLanguageEncoder, pooled
from projector.models.int8 import Quantize
from projector.models.resolve import ModelSource
from projector.options import GRAFT
from shards.errors import UsageError
from shards.format.sample import Array, Failure

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class ReadingSettings:
    """How pictures are read; fields as in the jobs' options, `auto` resolved."""

    layers: tuple[int, ...]
    text_modes: tuple[str, ...]
    vl_tokens: str
    dtype: str
    readers: tuple[str, ...] = ("vl",)
    quantize: Quantize = "none"


def load_readers(
    settings: ReadingSettings, vl: ModelSource, pipeline: ModelSource | None, *, device: str
) -> dict[str, VisionLanguageEncoder]:
    """Load what reads pictures, by the prefix of its tensors.

    Args:
        settings: which readers, and how they read.
        vl: the vision-language model.
        pipeline: whose text encoder the graft takes; None where `settings` asks for no graft.
        device: to load to.

    Raises:
        UsageError: a graft without a pipeline, which would read as plain Qwen3-VL.
    """
    if GRAFT in settings.readers and pipeline is None:
        raise UsageError(
            "readers holds graft and no pipeline is given; give the one whose text encoder it takes"
        )
    return {
        reader: VisionLanguageEncoder.from_pretrained(
            vl.here(),
            device=device,
            dtype=DTYPES[settings.dtype],
            layers=settings.layers,
            text_modes=settings.text_modes,
            quantize=settings.quantize,
            language=pipeline.here() if reader == GRAFT and pipeline is not None else None,
        )
        for reader in settings.readers
    }


def vision_tensors(
    seen: Mapping[str, VisionEncoding | SampleError], vl_tokens: str, others: Mapping[str, Array]
) -> Mapping[str, Array] | Failure:
    """A sample's tensors as they are stored; what readers saw may still be on its way from the device.

    Args:
        seen: hidden states by reader, which names of tensors begin with.
        vl_tokens: `all`, or `pooled:N` to average each kind of VL token down to at most N.
        others: of the sample's tensors, by name.

    Returns:
        arrays by name (FORMAT.md, the embeddings); or why a reader could not read it.
    """
    here, coming = dict(others), dict[str, torch.Tensor]()
    for reader, vision in seen.items():
        if isinstance(vision, SampleError):
            return Failure.from_exception("vl", vision)
        kept = pooled(vision, vl_tokens)
        for mode, states in kept.states.items():
            here[f"{reader}.{mode}.kind"] = kept.kind[mode].numpy()
            coming |= {f"{reader}.{mode}.{layer}": state for layer, state in states.items()}
    return Arriving(here, coming)
