"""From planned samples to whole samples: caption → conditioning → picture → hidden states.

The caption is encoded once, and the stored tensor is the tensor that conditions the picture.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import nn

from projector.inference.compile_and_batch import compile_checked, find_batch_size
from projector.inference.copies import Arriving
from projector.inference.frozen_transformer import padded_length
from projector.inference.image_generator import ImageGenerator
from projector.inference.text_encoder import SampleError, TextEncoder, TextEncoding
from projector.inference.vision_encoder import VisionEncoding, VisionLanguageEncoder
from projector.making.batching import BatchMaker, Stage
from projector.making.reading import DTYPES, ReadingSettings, load_readers, vision_tensors
from projector.models.offload import Residence
from projector.models.resolve import ModelSource, ModelSources
from shards.format.plan import PlannedSample
from shards.format.sample import LATENTS, Array, Failure, ImageFormat, Sample, as_png, make_sample, open_image

READ_TOGETHER = 4  # pictures, where the batch size of making them is searched for
PNG_THREADS = 4  # a batch's pictures side by side
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class PairSettings(ReadingSettings):
    """How pairs are made; fields as in `build`, `auto` resolved.

    But for two: a batch size of None is searched for, and `compile` of None means on GPUs.
    """

    height: int
    width: int
    steps: int
    guidance: float
    max_tokens: int
    batch_size: int | None
    compile: bool | None = None
    latents: bool = False


@dataclass(frozen=True)
class Pictured:
    """A sample half made.

    Attributes:
        planned: the sample.
        tensors: `text`, `text.kind` and, where they are kept, `latents`, as they are stored.
        picture: RGB, or still being made.
        image: the same, encoded.
        image_format: of `image`.
        source: of an imported picture, what the sample says of where it is from.
    """

    planned: PlannedSample
    tensors: Mapping[str, Array]
    picture: Future[Image.Image]
    image: Future[bytes]
    image_format: ImageFormat = "png"
    source: Mapping[str, Any] | None = None

    def __reduce__(self) -> tuple[Callable[..., "Pictured"], tuple[Any, ...]]:
        """Another process is sent the encoded picture alone, which holds it whole."""
        return _received, (
            self.planned,
            dict(self.tensors),
            self.image.result(),
            self.image_format,
            self.source,
        )


def _received(
    planned: PlannedSample,
    tensors: Mapping[str, Array],
    image: bytes,
    image_format: ImageFormat,
    source: Mapping[str, Any] | None,
) -> Pictured:
    picture = open_image(image).convert("RGB")
    return Pictured(planned, tensors, finished(picture), finished(image), image_format, source)


def finished(result: Found) -> Future[Found]:
    """What is already there, for those who would wait for it."""
    done: Future[Found] = Future()
    done.set_result(result)
    return done


class PictureSource(BatchMaker[PlannedSample, Pictured]):
    """What gives each planned sample its conditioning and its picture; its kinds say where pictures are from.

    Args:
        text: the pipeline's text encoder.
        batch_size: pictures made together at first.
        residence: what lets models onto the device.
        notes: what people should know of how it works.
    """

    def __init__(
        self, text: TextEncoder, batch_size: int, residence: Residence, notes: Sequence[str] = ()
    ) -> None:
        super().__init__(batch_size)
        self.notes = tuple(notes)
        self._text = text
        self._residence = residence
        self._ahead: dict[str, TextEncoding | SampleError] = {}

    def encode_ahead(self, planned: Sequence[PlannedSample]) -> None:
        """Encode a whole shard's captions, in batches of like length; `make` then finds them."""
        encodings = self._encode([sample.caption for sample in planned])
        self._ahead = {sample.id: found for sample, found in zip(planned, encodings, strict=True)}

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Of its models."""
        return self._text.modules

    has_lengths = False
    """Whether batches are faster when their captions are of one length."""

    def length(self, sample: PlannedSample) -> int:
        """What samples of one batch had better have alike."""
        return 0

    @abstractmethod
    def _picture(
        self, conditioned: Sequence[tuple[PlannedSample, TextEncoding]]
    ) -> Iterator[Pictured | Failure]:
        """Their pictures, in order."""

    def _make(self, batch: Sequence[PlannedSample]) -> list[Pictured | Failure]:
        results: dict[str, Pictured | Failure] = {}
        conditioned: list[tuple[PlannedSample, TextEncoding]] = []
        for planned, encoding in zip(batch, self._encodings(batch), strict=True):
            if isinstance(encoding, SampleError):
                results[planned.id] = Failure.from_exception("text", encoding)
            else:
                conditioned.append((planned, encoding))
        if conditioned:
            pictured = zip(conditioned, self._picture(conditioned), strict=True)
            results |= {planned.id: result for (planned, _), result in pictured}
        return [results[sample.id] for sample in batch]

    def _encodings(self, batch: Sequence[PlannedSample]) -> list[TextEncoding | SampleError]:
        if all(sample.id in self._ahead for sample in batch):
            return [self._ahead[sample.id] for sample in batch]
        return self._encode([sample.caption for sample in batch])

    def _encode(self, captions: Sequence[str]) -> list[TextEncoding | SampleError]:
        """Conditioning as it is stored: rounded to bfloat16 before it is used, so that both are the same tensor."""
        self._residence.let_in(self._text)
        with Stage("text"):
            return [
                item
                if isinstance(item, SampleError)
                else TextEncoding(item.embeddings.to(torch.bfloat16).to(item.embeddings.dtype), item.kind)
                for item in self._text.encode(captions)
            ]


class PictureMaker(PictureSource):
    """The Z-Image pipeline on one device: captions to conditioning to pictures.

    Args:
        text, images: its models.
        batch_size, residence, notes: see `PictureSource`.
        keep_latents: whether samples hold what their pictures were decoded from.
    """

    def __init__(
        self,
        text: TextEncoder,
        images: ImageGenerator,
        batch_size: int,
        residence: Residence,
        notes: Sequence[str] = (),
        *,
        keep_latents: bool = False,
    ) -> None:
        super().__init__(text, batch_size, residence, notes)
        self._keep_latents = keep_latents
        # A 1024² PNG takes a tenth of a second, most of it in zlib, which lets other threads run.
        self._encoders = ThreadPoolExecutor(PNG_THREADS, thread_name_prefix="png")
        self._images = images

    @classmethod
    def load(cls, source: ModelSource, settings: PairSettings, residence: Residence) -> "PictureMaker":
        """Load the pipeline's models for a run's settings."""
        where: dict[str, Any] = {"device": residence.loading_device, "dtype": DTYPES[settings.dtype]}
        text = TextEncoder.from_pretrained(
            source.here(), max_tokens=settings.max_tokens, quantize=settings.quantize, **where
        )
        negative = None
        if settings.guidance > 0:
            residence.let_in(text)
            negative = text.empty_prompt()
        images = ImageGenerator.from_pretrained(
            source.here(),
            height=settings.height,
            width=settings.width,
            steps=settings.steps,
            guidance=settings.guidance,
            negative=negative,
            **where,
        )
        notes = []
        compiled = residence.device == "cuda" if settings.compile is None else settings.compile
        if compiled or settings.batch_size is None:
            residence.let_in(images)
        if compiled:
            notes.append(compile_checked(images, settings.batch_size or READ_TOGETHER))
        batch_size = settings.batch_size or find_batch_size(images, source)
        return cls(text, images, batch_size, residence, notes, keep_latents=settings.latents)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Of its models."""
        return (*self._text.modules, *self._images.modules)

    has_lengths = True

    def length(self, sample: PlannedSample) -> int:
        """Rows that the transformer pads the caption's conditioning to; without encoding it."""
        return padded_length(self._text.rows(sample.caption))

    def _picture(self, conditioned: Sequence[tuple[PlannedSample, TextEncoding]]) -> Iterator[Pictured]:
        self._residence.let_in(self._images)
        embeddings = [encoding.embeddings for _, encoding in conditioned]
        seeds = [planned.seed for planned, _ in conditioned]
        with Stage("image"):
            try:
                levels, latents = self._images.generate_with_latents(embeddings, seeds)
            except torch.OutOfMemoryError:
                if len(seeds) > 1 or self._images.decodes_in_tiles:
                    raise
                self._images.decode_in_tiles()
                levels, latents = self._images.generate_with_latents(embeddings, seeds)
        arriving = Arriving({}, {"levels": levels})
        pictures = [
            self._encoders.submit(lambda at: Image.fromarray(arriving["levels"][at]), at)
            for at in range(len(seeds))
        ]
        for (planned, encoding), picture, latent in zip(conditioned, pictures, latents, strict=True):
            png = self._encoders.submit(lambda drawn: as_png(drawn.result()), picture)
            kept = {LATENTS: latent} if self._keep_latents else {}
            yield Pictured(planned, text_tensors(encoding, kept), picture, png)


class PictureReader(BatchMaker[Pictured, Sample]):
    """What reads pictures on one device: pictures to whole samples.

    Args:
        visions: the models by the prefix of their tensors, `vl` or `graft`.
        vl_tokens: which of its tokens are kept, as in `build`.
        batch_size: pictures read together at first.
        residence: what lets models onto the device.
    """

    def __init__(
        self,
        visions: Mapping[str, VisionLanguageEncoder],
        vl_tokens: str,
        batch_size: int,
        residence: Residence,
    ) -> None:
        super().__init__(batch_size)
        self._visions, self._vl_tokens = visions, vl_tokens
        self._residence = residence

    @classmethod
    def load(
        cls, sources: ModelSources, settings: PairSettings, residence: Residence | None = None
    ) -> "PictureReader":
        """Load the models for a run's settings; alone on this process's device unless a residence is given."""
        residence = residence or Residence()
        visions = load_readers(settings, sources.vl, sources.image, device=residence.loading_device)
        return cls(visions, settings.vl_tokens, settings.batch_size or READ_TOGETHER, residence)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Of its models."""
        return tuple(module for vision in self._visions.values() for module in vision.modules)

    def _make(self, batch: Sequence[Pictured]) -> list[Sample | Failure]:
        pictures = [item.picture.result() for item in batch]
        captions = [item.planned.caption for item in batch]
        seen: dict[str, list[VisionEncoding | SampleError]] = {}
        for reader, vision in self._visions.items():
            self._residence.let_in(vision)
            with Stage("vl"):
                seen[reader] = vision.encode(pictures, captions)
        return [
            self._whole(item, dict(zip(seen, states, strict=True)))
            for item, *states in zip(batch, *seen.values(), strict=True)
        ]

    def _whole(self, item: Pictured, seen: Mapping[str, VisionEncoding | SampleError]) -> Sample | Failure:
        """A sample of what its readers saw."""
        tensors = vision_tensors(seen, self._vl_tokens, item.tensors)
        if isinstance(tensors, Failure):
            return tensors
        with Stage("check"):
            return make_sample(
                item.planned,
                image=item.image.result(),
                image_format=item.image_format,
                tensors=tensors,
                source=item.source,
            )


def text_tensors(encoding: TextEncoding, others: Mapping[str, torch.Tensor]) -> Mapping[str, Array]:
    """The conditioning of a sample as it is stored, and others of its tensors from the device."""
    return Arriving({"text.kind": encoding.kind.numpy()}, {"text": encoding.embeddings, **others})
