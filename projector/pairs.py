"""From planned samples to whole samples: caption → conditioning → picture → hidden states.

The caption is encoded once, and the stored tensor is the tensor that conditions the picture.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import torch
from PIL import Image

from projector.batches import BatchMaker, Stage
from projector.generate import ImageGenerator
from projector.models import ModelSources
from projector.text import SampleError, TextEncoder, TextEncoding
from projector.vision import VisionEncoding, VisionLanguageEncoder, pooled
from shards.plan import PlannedSample
from shards.sample import Array, Failure, Sample, make_sample

PNG_THREADS = 4  # a batch's pictures side by side


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made; fields as in `build`, `auto` resolved."""

    height: int
    width: int
    steps: int
    guidance: float
    layers: tuple[int, ...]
    text_modes: tuple[str, ...]
    vl_tokens: str
    max_tokens: int
    dtype: str
    batch_size: int


class PairMaker(BatchMaker):
    """All models of a run on one device.

    Args:
        sources: the models.
        settings: how pairs are made.
    """

    def __init__(self, sources: ModelSources, settings: PairSettings) -> None:
        super().__init__(settings.batch_size)
        self.settings = settings
        # A 1024² PNG takes a tenth of a second, most of it in zlib, which lets other threads run.
        self._encoders = ThreadPoolExecutor(PNG_THREADS, thread_name_prefix="png")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[settings.dtype]
        self._text = TextEncoder.from_pretrained(
            sources.image.path, device=device, dtype=dtype, max_tokens=settings.max_tokens
        )
        self._images = ImageGenerator.from_pretrained(
            sources.image.path,
            device=device,
            dtype=dtype,
            height=settings.height,
            width=settings.width,
            steps=settings.steps,
            guidance=settings.guidance,
            negative=self._text.empty_prompt() if settings.guidance > 0 else None,
        )
        self._vision = VisionLanguageEncoder.from_pretrained(
            sources.vl.path,
            device=device,
            dtype=dtype,
            layers=settings.layers,
            text_modes=settings.text_modes,
        )

    def _make(self, batch: Sequence[PlannedSample]) -> list[Sample | Failure]:
        results: dict[str, Sample | Failure] = {}
        conditioned: list[tuple[PlannedSample, TextEncoding]] = []
        for planned, encoding in zip(batch, self._encode([sample.caption for sample in batch]), strict=True):
            if isinstance(encoding, SampleError):
                results[planned.id] = Failure.from_exception("text", encoding)
            else:
                conditioned.append((planned, encoding))
        if conditioned:
            results |= self._picture_and_read(conditioned)
        return [results[sample.id] for sample in batch]

    def _encode(self, captions: Sequence[str]) -> list[TextEncoding | SampleError]:
        """Conditioning as it is stored: rounded to bfloat16 before it is used, so that both are the same tensor."""
        with Stage("text"):
            return [
                item
                if isinstance(item, SampleError)
                else TextEncoding(item.embeddings.to(torch.bfloat16).to(item.embeddings.dtype), item.kind)
                for item in self._text.encode(captions)
            ]

    def _picture_and_read(
        self, conditioned: Sequence[tuple[PlannedSample, TextEncoding]]
    ) -> dict[str, Sample | Failure]:
        with Stage("image"):
            images = self._images.generate(
                [encoding.embeddings for _, encoding in conditioned],
                [planned.seed for planned, _ in conditioned],
            )
        encoded = [self._encoders.submit(as_png, image) for image in images]  # while the device reads them
        with Stage("vl"):
            seen = self._vision.encode(images, [planned.caption for planned, _ in conditioned])
        results: dict[str, Sample | Failure] = {}
        for (planned, encoding), image, states in zip(conditioned, encoded, seen, strict=True):
            if isinstance(states, SampleError):
                results[planned.id] = Failure.from_exception("vl", states)
                continue
            with Stage("check"):
                results[planned.id] = make_sample(
                    planned,
                    image=image.result(),
                    image_format="png",
                    tensors=pair_tensors(encoding, states, self.settings.vl_tokens),
                )
        return results


def as_png(image: Image.Image) -> bytes:
    """A picture as PNG, lossless; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def pair_tensors(text: TextEncoding, vision: VisionEncoding, vl_tokens: str = "all") -> dict[str, Array]:
    """The tensors of a sample as they are stored.

    Args:
        text: conditioning.
        vision: hidden states.
        vl_tokens: `all`, or `pooled:N` to average each kind of VL token down to at most N.

    Returns:
        arrays by name (FORMAT.md, the embeddings).
    """
    stored = {"text": as_array(text.embeddings), "text.kind": text.kind.numpy()}
    return stored | vision_tensors(vision, vl_tokens)


def vision_tensors(vision: VisionEncoding, vl_tokens: str = "all") -> dict[str, Array]:
    """The vision-language half of `pair_tensors`; same arguments and result."""
    kept = pooled(vision, vl_tokens)
    tensors: dict[str, Array] = {}
    for mode, states in kept.states.items():
        tensors[f"vl.{mode}.kind"] = kept.kind[mode].numpy()
        tensors |= {f"vl.{mode}.{layer}": as_array(state) for layer, state in states.items()}
    return tensors


def as_array(tensor: torch.Tensor) -> Array:
    """A tensor as a numpy array of bfloat16, rounded to nearest even."""
    bits = tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy()
    array: Array = np.ascontiguousarray(bits).view(ml_dtypes.bfloat16)
    return array
