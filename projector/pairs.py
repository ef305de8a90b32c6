"""From planned samples to whole samples: caption → conditioning → picture → hidden states.

The caption is encoded once, and the stored tensor is the tensor that conditions the picture.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import torch
from PIL import Image

from projector.generate import ImageGenerator
from projector.models import ModelSources
from projector.text import SampleError, TextEncoder, TextEncoding
from projector.vision import VisionEncoding, VisionLanguageEncoder
from shards.plan import PlannedSample
from shards.sample import KIND_NAMES, Array, Failure, Sample, make_sample


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


class PairMaker:
    """All models of a run on one device.

    Args:
        sources: the models.
        settings: how pairs are made.
    """

    def __init__(self, sources: ModelSources, settings: PairSettings) -> None:
        self.settings = settings
        self.batch_size = settings.batch_size
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
            negative=self._empty_prompt() if settings.guidance > 0 else None,
        )
        self._vision = VisionLanguageEncoder.from_pretrained(
            sources.vl.path,
            device=device,
            dtype=dtype,
            layers=settings.layers,
            text_modes=settings.text_modes,
        )

    def _empty_prompt(self) -> torch.Tensor:
        encoding = self._text.encode([""])[0]
        assert isinstance(encoding, TextEncoding)
        return encoding.embeddings

    def batches(self, planned: Sequence[PlannedSample]) -> Iterator[Sequence[PlannedSample]]:
        """Cut a shard into batches, in plan order from its start, so that the same shard meets the same batches."""
        start = 0
        while start < len(planned):
            batch = planned[start : start + self.batch_size]
            yield batch
            start += len(batch)

    def make(self, batch: Sequence[PlannedSample]) -> list[Sample | Failure]:
        """Make samples.

        Args:
            batch: planned samples.

        Returns:
            for each, in order, the sample or why there is none. A sample that brings its batch down fails alone;
            a batch that does not fit in memory is halved, and the smaller size is kept.
        """
        try:
            return self._make(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                return [Failure.from_exception("memory", error)]
            torch.cuda.empty_cache()
            half = len(batch) // 2
            self.batch_size = min(self.batch_size, max(1, half))
            return [*self.make(batch[:half]), *self.make(batch[half:])]
        except Exception as error:
            if len(batch) == 1:
                return [Failure.from_exception(_stage_of(error), error)]
            return [result for sample in batch for result in self.make([sample])]

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
        with _Stage("text"):
            return [
                item
                if isinstance(item, SampleError)
                else TextEncoding(item.embeddings.to(torch.bfloat16).to(item.embeddings.dtype), item.kind)
                for item in self._text.encode(captions)
            ]

    def _picture_and_read(
        self, conditioned: Sequence[tuple[PlannedSample, TextEncoding]]
    ) -> dict[str, Sample | Failure]:
        with _Stage("image"):
            images = self._images.generate(
                [encoding.embeddings for _, encoding in conditioned],
                [planned.seed for planned, _ in conditioned],
            )
        with _Stage("vl"):
            seen = self._vision.encode(images, [planned.caption for planned, _ in conditioned])
        results: dict[str, Sample | Failure] = {}
        for (planned, encoding), image, states in zip(conditioned, images, seen, strict=True):
            if isinstance(states, SampleError):
                results[planned.id] = Failure.from_exception("vl", states)
                continue
            with _Stage("check"):
                results[planned.id] = make_sample(
                    planned,
                    image=as_png(image),
                    image_format="png",
                    tensors=pair_tensors(encoding, states, self.settings.vl_tokens),
                )
        return results


class _Stage:
    """Marks an exception with the stage it left from."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and not hasattr(error, "stage"):
            error.stage = self.name  # type: ignore[attr-defined]


def _stage_of(error: BaseException) -> str:
    return str(getattr(error, "stage", "check"))


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
    tensors = {"text": as_array(text.embeddings), "text.kind": text.kind.numpy()}
    for mode, states in vision.states.items():
        kind = vision.kind[mode]
        if vl_tokens != "all":
            length = int(vl_tokens.removeprefix("pooled:"))
            states = {layer: pool_by_kind(state, kind, length) for layer, state in states.items()}
            kind = pool_by_kind(kind[:, None].float(), kind, length)[:, 0].to(torch.uint8)
        tensors[f"vl.{mode}.kind"] = kind.numpy()
        tensors |= {f"vl.{mode}.{layer}": as_array(state) for layer, state in states.items()}
    return tensors


def pool_by_kind(state: torch.Tensor, kind: torch.Tensor, length: int) -> torch.Tensor:
    """Average neighbours of one kind until at most `length` of it are left.

    Args:
        state: (V, D).
        kind: (V,) uint8.
        length: most tokens of a kind.

    Returns:
        (V', D), kinds in the order of their number, tokens of a kind in order of position.
    """
    parts = []
    for number in range(len(KIND_NAMES)):
        rows = state[kind == number].float()
        if len(rows) > length:
            rows = torch.nn.functional.adaptive_avg_pool1d(rows.T[None], length)[0].T
        parts.append(rows)
    return torch.cat(parts).to(state.dtype)


def as_array(tensor: torch.Tensor) -> Array:
    """A tensor as a numpy array of bfloat16, rounded to nearest even."""
    bits = tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy()
    array: Array = np.ascontiguousarray(bits).view(ml_dtypes.bfloat16)
    return array
