"""Other people's pictures as this format keeps them: the original bytes where they do, a PNG of what they show else."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from shards.format.sample import MAX_PIXELS, ImageFormat, as_png

FORMATS: dict[str, ImageFormat] = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
MAX_BYTES = 256 << 20  # of an encoded picture; 8192² pixels of noise as PNG have 200 MB
MOST_OBLONG = 100  # long side over short side; Qwen3-VL's processor refuses 200, which shrinking could reach
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


class ImageError(ValueError):
    """A picture that no further try will make usable."""


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

    An RGB picture in one of this format's encodings that stands upright and is not too large stays as it is. Any
    other is turned upright, laid over white where it is transparent, made RGB, shrunk and encoded without loss: a
    second lossy encoding would show the vision-language model artefacts that the original has not.

    Args:
        data: as it came, from anywhere.
        max_side: pixels of the longer side.

    Returns:
        what is stored, and what it shows.

    Raises:
        ImageError: it is empty, no picture, cut off, moving, too large to be true, too narrow, or of one colour.
    """
    picture = _opened(data)
    size = picture.size
    verbatim = (
        picture.mode == "RGB"
        and picture.format in FORMATS
        and "transparency" not in picture.info
        and _turn(picture) is None
        and max(size) <= max_side
    )
    if verbatim:
        pixels = picture.copy()  # decoded, and free of the file
        image_format = FORMATS[str(picture.format)]
    else:
        pixels = _shrunk(_rgb(_upright(picture)), max_side)
        pixels.info.clear()  # what described the original does not describe this one
        data, image_format = as_png(pixels), "png"
    if colours := pixels.getcolors(maxcolors=1):
        raise ImageError(f"picture is one colour, RGB {colours[0][1]}")
    return Kept(data, image_format, pixels, size, verbatim)


def _opened(data: bytes) -> Image.Image:
    """Decoded whole, its claims judged first."""
    if not data:
        raise ImageError("picture is empty, 0 bytes")
    if len(data) > MAX_BYTES:
        raise ImageError(f"picture has {len(data):,} bytes; at most {MAX_BYTES:,}")
    try:
        picture = Image.open(io.BytesIO(data), formats=tuple(FORMATS))
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"picture claims {width} x {height} pixels")
        if max(width, height) > MOST_OBLONG * min(width, height):
            raise ImageError(
                f"picture of {width} x {height} pixels is too narrow; at most {MOST_OBLONG} to 1"
            )
        # A camera's MPO is a JPEG with a preview behind it, not a film.
        if picture.format != "MPO" and getattr(picture, "is_animated", False):
            raise ImageError(f"picture moves: {getattr(picture, 'n_frames', 2)} frames")
        picture.load()
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # what a broken file makes Pillow's decoders raise is not documented
        raise ImageError(f"picture does not decode: {error}") from None
    return picture


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What makes a picture upright; None where it is."""
    try:
        return TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # broken EXIF of whatever kind says nothing
        return None


def _upright(picture: Image.Image) -> Image.Image:
    turn = _turn(picture)
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: Image.Image) -> Image.Image:
    """Any mode as RGB; transparent parts show white."""
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion would clip at 255
        grey = np.asarray(picture).astype(np.uint32).clip(0, 65535)
        picture = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        paper = Image.new("RGBA", seen.size, "white")
        return Image.alpha_composite(paper, seen).convert("RGB")
    return picture.convert("RGB")


def _shrunk(picture: Image.Image, max_side: int) -> Image.Image:
    longer = max(picture.size)
    if longer <= max_side:
        return picture
    width, height = (max(1, round(side * max_side / longer)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
