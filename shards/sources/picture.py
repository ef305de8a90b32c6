"""Other people's pictures: the one way to open them, and how this format keeps them.

The original bytes are kept where stock readers see in them what this module does; else a PNG of what they show.
"""

import io
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError, features

from shards.format.sample import MAX_PIXELS, ImageFormat, as_png
from shards.sources.beginnings import what_it_is

FORMATS: dict[str, ImageFormat] = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
# Read where Pillow reads them; none of these starts another program, as Pillow's EPS does.
READ = {
    "PNG": "PNG",
    "JPEG": "JPEG",
    "WEBP": "WebP",
    "GIF": "GIF",
    "AVIF": "AVIF",
    "TIFF": "TIFF",
    "BMP": "BMP",
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif", ".tif", ".tiff", ".bmp")
NOT_READ = (
    ".heic",
    ".heif",
    ".jxl",
    ".jp2",
    ".svg",
    ".psd",
    ".dng",
    ".cr2",
    ".nef",
    ".mp4",
    ".webm",
    ".mov",
)  # known by name alone
# A GIF's first frame and a TIFF's first page are taken; those who animate the others mean a film.
STILL_OF_MANY = ("MPO", "GIF", "TIFF")  # a camera's MPO is a JPEG with a preview behind it
MAX_BYTES = 256 << 20  # of an encoded picture; 8192² pixels of noise as PNG have 200 MB
AT_ONCE = MAX_PIXELS  # pixels decoded at the same time in a process: a picture of 8192² alone, or 64 of 1024²
MOST_OBLONG = 100  # long side over short side; Qwen3-VL's processor refuses 200, which shrinking could reach
STRIP = 256  # rows
SAME_COLOUR = 3  # of 255: profiles of sRGB by different makers differ by so much
ORIENTATION = 0x0112  # EXIF tag
# What makes each of its values upright, as in Pillow's ImageOps.exif_transpose, which also writes EXIF anew and fails
# where that is broken.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
PNG_PROFILE = b"iCCP"
MAX_PROFILE = 16 << 20  # bytes of a colour profile; those with tables for print have 2 MB
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # of TIFF: a tag, and its value where 0 is white


# Blocks so large that the C library gives them back when a picture is done with; each thread would keep smaller ones.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]


class ImageError(ValueError):
    """A picture that no further try will make usable."""


class MissingPictureError(ImageError):
    """A picture that its source does not hold, and may hold later."""


@dataclass(frozen=True)
class Kept:
    """A picture as it is stored.

    Attributes:
        data: encoded.
        format: of `data`.
        pixels: RGB, exactly what `data` decodes to.
        original_size: width and height of what came, in pixels, as stored there.
        verbatim: whether `data` is what came, byte for byte.
    """

    data: bytes
    format: ImageFormat
    pixels: Image.Image
    original_size: tuple[int, int]
    verbatim: bool


def kept(data: bytes, max_side: int) -> Kept:
    """A picture as it is stored.

    An sRGB picture in one of this format's encodings that stands upright and is not too large stays as it is. Any
    other is made what `as_rgb` makes of it, shrunk and encoded without loss: a second lossy encoding would show the
    vision-language model artefacts that the original has not.

    Args:
        data: as it came, from anywhere.
        max_side: pixels of the longer side.

    Returns:
        what is stored, and what it shows.

    Raises:
        ImageError: it is empty, no picture, cut off, moving, too large to be true, too narrow, or of one colour.
    """
    with _room_for(data):
        return _kept(data, max_side)


def _kept(data: bytes, max_side: int) -> Kept:
    picture, as_it_came = _opened(data)
    size = picture.size
    verbatim = (
        as_it_came
        and picture.mode == "RGB"
        and picture.format in FORMATS
        and "transparency" not in picture.info
        and _turn(picture) is None
        and _to_srgb(picture) is None
        and max(size) <= max_side
    )
    if verbatim:
        pixels = picture.copy()  # decoded, and free of the file
        image_format = FORMATS[str(picture.format)]
    else:
        pixels = _shrunk(as_rgb(picture), max_side)
        pixels.info.clear()  # what described the original does not describe this one
        data, image_format = as_png(pixels), "png"
    if colours := pixels.getcolors(maxcolors=1):
        raise ImageError(f"picture is one colour, RGB {colours[0][1]}")
    return Kept(data, image_format, pixels, size, verbatim)


def open_picture(data: bytes) -> Image.Image:
    """An encoded picture as everything here sees it; see `as_rgb`.

    Raises:
        ImageError: it is empty, no picture, cut off, moving, too large to be true, or too narrow.
    """
    with _room_for(data):
        return as_rgb(_opened(data)[0])


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode as upright sRGB pixels of 8 bits, transparent parts white.

    Args:
        picture: as Pillow opened it; its EXIF orientation and colour profile are followed.

    Raises:
        ImageError: pixels that have no defined colour, such as floats.
    """
    turn, to_srgb = _turn(picture), _to_srgb(picture)
    try:
        if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion would clip at 255
            grey = np.asarray(picture).astype(np.int64).clip(0, 65535)
            if (
                getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
            ):  # Pillow minds it in 8 bits alone
                grey = 65535 - grey
            seen = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
            if isinstance(clear := picture.info.get("transparency"), int):  # one of its greys
                seen = seen.convert("RGBA")
                seen.putalpha(Image.fromarray(np.where(grey == clear, 0, 255).astype(np.uint8)))
        elif picture.mode == "F":
            raise ValueError("their range is not known")
        elif picture.has_transparency_data:
            seen = picture.convert("RGBA")
        else:
            seen = picture if picture.mode in ("L", "RGB", "CMYK") else picture.convert("RGB")
        if to_srgb is not None:
            seen = _converted(seen, to_srgb)
        if seen.mode == "RGBA":
            seen = _over_white(seen)
    except ValueError as error:
        raise ImageError(
            f"image has pixels of mode {picture.mode}: {error}; save it with 8 or 16 bits a channel"
        ) from None
    seen = seen.convert("RGB")
    return seen if turn is None else seen.transpose(turn)


def _over_white(picture: Image.Image) -> Image.Image:
    """An RGBA picture laid over white, a strip at a time: whole layers would take three times its memory."""
    seen = Image.new("RGB", picture.size)
    for top in range(0, picture.height, STRIP):
        strip = picture.crop((0, top, picture.width, min(top + STRIP, picture.height)))
        white = Image.new("RGBA", strip.size, "white")
        seen.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return seen


class _Room:
    """How many pixels may be decoded at the same time; who comes later waits."""

    def __init__(self) -> None:
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait until so many fit beside those of other threads; more than fit at all go alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= AT_ONCE)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_room = _Room()


def _room_for(data: bytes) -> AbstractContextManager[None]:
    """Room for a picture by the size that its header claims; what claims none will not be decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as picture:
            return _room.taken(min(picture.width * picture.height, MAX_PIXELS))
    except Exception:  # what is wrong with it is said where it is opened
        return _room.taken(0)


def _opened(data: bytes) -> tuple[Image.Image, bool]:
    """Decoded whole, its claims judged first; and whether stock readers decode the bytes as they are."""
    if not data:
        raise ImageError("image does not decode: it is empty, 0 bytes")
    if len(data) > MAX_BYTES:
        raise ImageError(f"picture has {len(data):,} bytes; at most {MAX_BYTES:,}")
    try:
        return _decoded(data), True
    except ImageError:
        # Pillow refuses a PNG for long texts in it, such as the workflow that made it, and for a long colour profile.
        bare, packed = _bare(data)
        if len(bare) == len(data):
            raise
    picture = _decoded(bare)
    if packed:
        picture.info["icc_profile"] = _unpacked_profile(packed)
    return picture, False


def _decoded(data: bytes) -> Image.Image:
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"picture claims {width} x {height} pixels")
        if max(width, height) > MOST_OBLONG * min(width, height):
            raise ImageError(
                f"picture of {width} x {height} pixels is too narrow; at most {MOST_OBLONG} to 1"
            )
        if picture.format not in STILL_OF_MANY and getattr(picture, "is_animated", False):
            raise ImageError(f"picture moves: {getattr(picture, 'n_frames', 2)} frames")
        picture.load()
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        names = [READ[name] for name in _formats()]
        raise ImageError(f"image does not decode: {what_it_is(data, names)}") from None
    except Exception as error:  # what a broken file makes Pillow's decoders raise is not documented
        raise ImageError(f"image does not decode: {_without_addresses(error)}") from None
    return picture


@cache
def _formats() -> tuple[str, ...]:
    """The formats of `READ` that this Pillow has."""
    Image.init()
    there = [name for name in READ if name in Image.OPEN]
    return tuple(name for name in there if name not in ("WEBP", "AVIF") or features.check(name.lower()))


def _without_addresses(error: Exception) -> str:
    """An error's text, the same in every run."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(error))


def _bare(data: bytes) -> tuple[bytes, bytes]:
    """A PNG without texts and colour profile, and that profile's chunk; anything else as it is."""
    if not data.startswith(PNG_START):
        return data, b""
    kept_parts, profile, at = [PNG_START], b"", len(PNG_START)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if kind == PNG_PROFILE:
            profile = data[at + 8 : end - 4]
        elif kind not in PNG_TEXT:
            kept_parts.append(data[at:end])
        at = end
    return b"".join(kept_parts), profile


def _unpacked_profile(chunk: bytes) -> bytes:
    """The colour profile of a PNG's chunk: a name, a zero, the method, and the packed bytes."""
    unpacking = zlib.decompressobj()
    try:
        profile = unpacking.decompress(chunk.partition(b"\0")[2][1:], MAX_PROFILE)
    except zlib.error as error:
        raise ImageError(f"image does not decode: its colour profile is broken: {error}") from None
    if unpacking.unconsumed_tail:
        raise ImageError(f"image has a colour profile of more than {MAX_PROFILE:,} bytes; save it without")
    return profile


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What makes a picture upright; None where it is."""
    try:
        return TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # broken EXIF of whatever kind says nothing
        return None


def _to_srgb(picture: Image.Image) -> Any:
    """What makes sRGB of a picture's colours; None where they are, or where no sound profile says otherwise."""
    profile = picture.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return None
    mode = picture.mode
    grey = mode.startswith("I") or mode in ("L", "LA", "1")
    return _transform(
        profile, "L" if grey and not picture.has_transparency_data else "CMYK" if mode == "CMYK" else "RGB"
    )


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> Any:
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == "CMYK":
        return transform
    steps = np.arange(0, 256, 51, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    plain = Image.fromarray(grid if mode == "RGB" else grid[..., 0])
    seen = ImageCms.applyTransform(plain, transform) or plain
    difference = np.asarray(seen).astype(int) - np.asarray(plain.convert("RGB"))
    return None if np.abs(difference).max() <= SAME_COLOUR else transform


def _converted(picture: Image.Image, transform: Any) -> Image.Image:
    if picture.mode != "RGBA":
        return ImageCms.applyTransform(picture, transform) or picture
    seen = ImageCms.applyTransform(picture.convert("RGB"), transform) or picture.convert("RGB")
    seen.putalpha(picture.getchannel("A"))
    return seen


def _shrunk(picture: Image.Image, max_side: int) -> Image.Image:
    longer = max(picture.size)
    if longer <= max_side:
        return picture
    width, height = (max(1, round(side * max_side / longer)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
