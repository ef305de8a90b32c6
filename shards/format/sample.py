"""One sample: its members in a shard, what makes it sound, and what is written down when there is none.

Letters: T text tokens, V vision-language tokens, D hidden size.
"""

import hashlib
import io
import json
import logging
import re
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import safetensors
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shards.errors import CorruptShardError
from shards.format.plan import PlannedSample
from shards.format.splits import normalise_caption

Array = NDArray[Any]
ImageFormat = Literal["png", "webp", "jpg"]
IMAGE_FORMATS: tuple[ImageFormat, ...] = ("png", "webp", "jpg")

LONGEST_TRACE = 20_000  # characters of a traceback in a log; its end says most
logger = logging.getLogger("shards.format.sample")

KIND_TEMPLATE, KIND_IMAGE, KIND_CAPTION, KIND_MARKER = range(4)
KIND_NAMES = ("template", "image", "caption", "marker")

LATENTS = "latents"  # of a generated picture, as the VAE got them
READERS = ("vl", "graft")  # what reads the pictures: the vision-language model, or the grafted text encoder
_INPUT = re.compile(rf"(?:{'|'.join(READERS)})\.\w+\.-\d+")
_INPUT_KIND = re.compile(rf"(?:{'|'.join(READERS)})\.\w+\.kind")

MAX_HEAD = 1 << 20  # bytes of a sample's safetensors head; 36 layers in two modes have 20,000
MAX_PIXELS = 8192 * 8192  # larger headers are a decompression bomb, not a picture of this dataset
_NUMPY = {"BF16": np.dtype(ml_dtypes.bfloat16), "U8": np.dtype(np.uint8), "F32": np.dtype(np.float32)}


@dataclass(frozen=True)
class Sample:
    """A whole sample, as it is written and read.

    Attributes:
        key: WebDataset key.
        caption: exactly as the user gave it.
        metadata: the `.json` member.
        image: encoded picture; empty when it was not asked for.
        image_format: of `image`; in an imported dataset the one name of all its pictures, `jpg`.
        tensors: by name: `text` (T, D), `text.kind` (T,), `vl.MODE.LAYER` (V, D), `vl.MODE.kind` (V,), the same two
            under `graft.` where that reader was used too, and `latents` (C, h, w) where they were kept;
            bfloat16 (ml_dtypes) and uint8.
    """

    key: str
    caption: str
    metadata: Mapping[str, Any]
    image: bytes
    image_format: ImageFormat
    tensors: Mapping[str, Array]


@dataclass(frozen=True)
class Failure:
    """Why a sample could not be made.

    Attributes:
        stage: text, image, vl, check, worker, memory, or plan where it is tried again in a later shard.
        error_class: name of the exception's class.
        message: its text, on one line.
        attempts: tries so far.
        traceback_sha256: over the traceback, to tell one cause from another.
    """

    stage: str
    error_class: str
    message: str
    attempts: int
    traceback_sha256: str

    @classmethod
    def from_exception(cls, stage: str, error: BaseException, attempts: int = 1) -> "Failure":
        """Write an exception down."""
        trace = "".join(traceback.format_exception(error))
        digest = hashlib.sha256(trace.encode(errors="replace")).hexdigest()
        message = " ".join(str(error).split())[:2000].encode(errors="backslashreplace").decode()
        logger.warning(json.dumps({"traceback_sha256": digest, "traceback": trace[-LONGEST_TRACE:]}))
        return cls(stage, type(error).__name__, message, attempts, digest)


@dataclass(frozen=True)
class Expected:
    """What every sample of a dataset must hold.

    Attributes:
        text_modes: of each reader's tensors.
        layers: of each reader's tensors.
        width, height: of the image in pixels; 0 for any.
        max_side: that the longer side may have; 0 for any.
        imported: whether a sample's id is that of its picture's name in a source and its caption, not of its caption.
        readers: prefixes of the input tensors, some of READERS.
        latents: whether the final latents of the picture are kept.
    """

    text_modes: tuple[str, ...]
    layers: tuple[int, ...]
    width: int = 0
    height: int = 0
    imported: bool = False
    readers: tuple[str, ...] = ("vl",)
    latents: bool = False
    max_side: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """What a reader saw in the picture: `vl.caption`, `graft.none` and so on."""
        return tuple(f"{reader}.{mode}" for reader in self.readers for mode in self.text_modes)


def make_sample(
    planned: PlannedSample,
    *,
    image: bytes,
    image_format: ImageFormat,
    tensors: Mapping[str, Array],
    source: Mapping[str, Any] | None = None,
) -> Sample:
    """Put a sample together; its `.json` member follows from the plan, the picture's header and the tensors.

    Args:
        planned: the sample's place in the plan.
        image: encoded picture.
        image_format: of the picture.
        tensors: see `Sample.tensors`.
        source: of an imported picture, what it is called there and what became of it; None for a generated one.

    Returns:
        the sample.
    """
    with Image.open(io.BytesIO(image)) as picture:
        width, height = picture.size
    inputs = sorted(name.removesuffix(".kind") for name in tensors if _INPUT_KIND.fullmatch(name))
    modes = sorted({name.split(".")[1] for name in inputs})
    layers = sorted({int(name.split(".")[2]) for name in tensors if _INPUT.fullmatch(name)})
    spans = {name.split(".")[1]: _span(tensors[f"{name}.kind"], KIND_IMAGE) for name in reversed(inputs)}
    metadata = {
        "id": planned.id,
        "caption": planned.caption,
        "categories": {"content": planned.content, "style": planned.style, "subject": planned.subject},
        "seed": planned.seed,
        "width": width,
        "height": height,
        "tokens": {
            "text": len(tensors["text.kind"]),
            **{name: len(tensors[f"{name}.kind"]) for name in inputs},
        },
        "layers": layers,
        "text_modes": modes,
        "image_span": spans,
        "plan_index": planned.index,
    }
    if source is not None:
        metadata["source"] = dict(source)
    return Sample(planned.key, planned.caption, metadata, image, image_format, tensors)


def group_of(sample: Sample) -> str:
    """What the sample shares its split with: its picture where that was imported, else its caption, normalised."""
    source = sample.metadata.get("source")
    picture = source.get("picture") if isinstance(source, Mapping) else None
    return f"picture {picture}" if picture else f"caption {normalise_caption(sample.caption)}"


def _span(kinds: Array, wanted: int) -> list[int]:
    """First position of a kind and one past its last."""
    places = np.flatnonzero(kinds == wanted)
    return [int(places[0]), int(places[-1]) + 1] if len(places) else [0, 0]


def check_sample(sample: Sample, planned: PlannedSample, expected: Expected) -> int:
    """Refuse a sample that is not the planned one or not sound.

    Args:
        sample: the sample.
        planned: what it should be.
        expected: what every sample of the dataset holds.

    Returns:
        its hidden size D.

    Raises:
        ValueError: says what is wrong.
    """
    promised = {
        "id": planned.id,
        "caption": planned.caption,
        "seed": planned.seed,
        "plan_index": planned.index,
    }
    found = {name: sample.metadata.get(name) for name in promised}
    if (sample.key, sample.caption, found) != (planned.key, planned.caption, promised):
        raise ValueError(f"sample {sample.key} is not the planned {planned.key}")
    size = check_tensors(sample.tensors, expected)
    check_image(sample.image, expected)
    return size


def is_finite(tensor: Array) -> bool:
    """Whether a bfloat16 array holds no NaN and no infinity.

    Both have an exponent of ones alone; looking for that is much faster than numpy's `isfinite`.
    """
    return bool((tensor.view(np.uint16) & np.uint16(0x7F80)).max(initial=0) < 0x7F80)


def check_tensors(tensors: Mapping[str, Array], expected: Expected) -> int:
    """Refuse embeddings that are missing, misshapen, empty or not finite; returns D."""
    names = {"text", "text.kind"} | {f"{name}.kind" for name in expected.inputs}
    names |= {f"{name}.{layer}" for name in expected.inputs for layer in expected.layers}
    names |= {LATENTS} if expected.latents else set()
    if set(tensors) != names:
        raise ValueError(f"tensors {sorted(tensors)} instead of {sorted(names)}")
    size = tensors["text"].shape[-1] if tensors["text"].ndim == 2 else 0
    for name, tensor in tensors.items():
        if name.endswith(".kind"):
            _check_kinds(name, tensor)
            continue
        if name == LATENTS:
            fits, shape = tensor.ndim == 3 and tensor.size > 0, "(channels, height, width)"
        else:
            kinds = tensors[name.rpartition(".")[0] + ".kind" if name != "text" else "text.kind"]
            fits, shape = tensor.shape == (len(kinds), size) and size > 0, f"({len(kinds)}, {size})"
        if tensor.dtype != ml_dtypes.bfloat16 or not fits:
            raise ValueError(f"{name}: {tensor.dtype} {tensor.shape}, expected bfloat16 {shape}")
        if not is_finite(tensor):
            raise ValueError(f"{name}: NaN or infinite values")
    for name in expected.inputs:
        if KIND_IMAGE not in tensors[f"{name}.kind"]:
            raise ValueError(f"{name}: no image tokens")
    if KIND_CAPTION not in tensors["text.kind"]:
        raise ValueError("text: no caption tokens")
    return size


def _check_kinds(name: str, kinds: Array) -> None:
    if kinds.dtype != np.uint8 or kinds.ndim != 1 or len(kinds) == 0:
        raise ValueError(f"{name}: {kinds.dtype} {kinds.shape}, expected uint8 (tokens,) with a token")
    if kinds.max() > KIND_MARKER:
        raise ValueError(f"{name}: kind {kinds.max()} does not exist")


def check_image(data: bytes, expected: Expected) -> None:
    """Refuse a picture that does not decode, has another size, or shows one colour only."""
    check_image_size(data, expected.width, expected.height, expected.max_side)
    with open_image(data) as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=1)  # None when there are more
    if colours is not None:
        raise ValueError(f"image is one colour, RGB {colours[0][1]}")


def check_image_size(data: bytes, width: int, height: int, max_side: int) -> None:
    """Refuse a picture of another size than a dataset's, by its header and before it is decoded; 0 is any."""
    with _image(data) as picture:
        size = picture.size
    if width and size != (width, height):
        raise ValueError(f"image is {size}, expected {(width, height)}")
    if max_side and max(size) > max_side:
        raise ValueError(f"image is {size}, its longer side has at most {max_side}")


def open_image(data: bytes) -> Image.Image:
    """Open a picture without trusting it: formats of this dataset only, size checked before decoding.

    Raises:
        ValueError: it does not decode, or claims an absurd size.
    """
    picture = _image(data)
    with _not_decoded():
        picture.load()
    return picture


def _image(data: bytes) -> Image.Image:
    """A picture of which only the header is read; ValueError as for `open_image`."""
    with _not_decoded():
        picture = Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG"))
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"image claims {picture.width} x {picture.height} pixels")
    return picture


@contextmanager
def _not_decoded() -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:  # its own words name an address in memory, another in each run
        raise ValueError("image does not decode: no PNG, WEBP or JPEG") from None
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"image does not decode: {error}") from None


def picture_of(sample: Sample) -> Image.Image:
    """The picture of a committed sample in RGB; CorruptShardError, naming the sample, where it does not decode."""
    try:
        return open_image(sample.image).convert("RGB")
    except ValueError as error:
        raise CorruptShardError(f"sample {sample.key}: {error}; run repair, then build") from None


def as_png(picture: Image.Image) -> bytes:
    """A picture as PNG, lossless; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def encode_tensors(tensors: Mapping[str, Array]) -> bytes:
    """Tensors as the bytes of a safetensors file; the same tensors give the same bytes."""
    # The library takes addresses, so the arrays must live until it is done.
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in sorted(tensors.items())}
    specs = {
        name: safetensors.TensorSpec(
            dtype=array.dtype.name, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes
        )
        for name, array in arrays.items()
    }
    return bytes(safetensors.serialize(specs))


def decode_tensors(data: bytes, names: Collection[str] | None = None) -> dict[str, Array]:
    """Tensors of a safetensors file as numpy arrays without copying.

    Args:
        data: the file.
        names: which to return; None for all.

    Returns:
        arrays by name, bfloat16 as `ml_dtypes.bfloat16`.

    Raises:
        ValueError: not a safetensors file, or a tensor of another dtype than this format's.
        KeyError: a name that the file has not.
    """
    if len(data) < 8 or int.from_bytes(data[:8], "little") > len(data) - 8:
        raise ValueError("not a safetensors file: the header's length exceeds the data")
    start = 8 + int.from_bytes(data[:8], "little")
    if start > MAX_HEAD:
        raise ValueError(f"not a safetensors file of a sample: its head has {start:,} bytes")
    try:
        header = json.loads(data[8:start])
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        wanted = entries if names is None else {name: entries[name] for name in names}
        return {name: _tensor(data, start, name, entry) for name, entry in wanted.items()}
    except (
        UnicodeDecodeError,
        json.JSONDecodeError,
        AttributeError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ValueError(f"not a safetensors file: {error}") from None


def _tensor(data: bytes, start: int, name: str, entry: Mapping[str, Any]) -> Array:
    dtype = _NUMPY.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"{name}: dtype {entry['dtype']}, expected one of {', '.join(_NUMPY)}")
    first, last = entry["data_offsets"]
    shape = tuple(entry["shape"])
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not (0 <= first <= last <= len(data) - start) or last - first != size or any(n < 0 for n in shape):
        raise ValueError(f"{name}: offsets {first}-{last} do not fit shape {shape}")
    return np.frombuffer(data, dtype=dtype, count=size // dtype.itemsize, offset=start + first).reshape(shape)
