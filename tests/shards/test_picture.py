"""Imported pictures against plain Pillow: kept byte for byte where the format keeps them, else what they show."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from import_support import encoded
from shards.format.sample import open_image
from shards.sources import picture
from shards.sources.picture import ImageError, kept


def by_hand(data, max_side=1024):
    """What a careful person would do to a picture."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        image = paper
    image = image.convert("RGB")
    if max(image.size) > max_side:
        scale = max_side / max(image.size)
        image = image.resize(
            tuple(max(1, round(side * scale)) for side in image.size), Image.Resampling.LANCZOS
        )
    return image


def turned(number, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(number, exif=exif, **options)


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (encoded(0), "jpg"),
        (encoded(1, format="PNG"), "png"),
        (encoded(2, format="WEBP", quality=60), "webp"),
        (encoded(3, format="JPEG", progressive=True), "jpg"),
        (turned(4, 1), "jpg"),
        (turned(5, 0), "jpg"),
        (turned(6, 9), "jpg"),  # no orientation there is: viewers show it as it stands
        (encoded(7, exif=b"Exif\0\0broken"), "jpg"),
    ],
)
def test_what_the_format_keeps_is_kept_byte_for_byte(data, suffix):
    found = kept(data, 1024)
    assert (found.data, found.format, found.verbatim) == (data, suffix, True)
    assert found.pixels.tobytes() == Image.open(io.BytesIO(data)).tobytes()
    assert found.original_size == found.pixels.size


@pytest.mark.parametrize(
    "data",
    [
        *[turned(number, number) for number in range(2, 9)],
        turned(3, 6, format="PNG"),
        turned(3, 8, format="WEBP"),
        encoded(10, mode="L"),
        encoded(11, mode="CMYK"),
        encoded(12, mode="L", format="PNG"),
        encoded(13, mode="P", format="PNG"),
        encoded(14, mode="1", format="PNG"),
        encoded(15, mode="LA", format="PNG"),
        encoded(16, format="PNG", transparency=(0, 0, 0)),
        encoded(17, format="MPO", save_all=True, append_images=[Image.new("RGB", (20, 20), "red")]),
    ],
)
def test_any_other_is_what_it_shows_without_loss(data):
    found = kept(data, 1024)
    assert (found.format, found.verbatim) == ("png", False)
    assert found.pixels.mode == "RGB"
    assert found.pixels.size == by_hand(data).size
    assert found.pixels.tobytes() == by_hand(data).tobytes()


def test_transparent_parts_show_white():
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 255))
    image.paste((200, 0, 0, 0), (0, 0, 4, 8))
    image.putpixel((7, 7), (0, 0, 0, 128))
    for format in ("PNG", "WEBP"):
        buffer = io.BytesIO()
        image.save(buffer, format=format, lossless=True)
        found = kept(buffer.getvalue(), 1024).pixels
        assert [found.getpixel(place) for place in ((0, 0), (5, 5))] == [(255, 255, 255), (10, 20, 30)]
        assert found.getpixel((7, 7)) == (127, 127, 127)


def test_sixteen_bits_of_grey_are_scaled_not_clipped():
    grey = np.array([[0, 256, 32896, 65535]], dtype=np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="PNG")
    assert [value[0] for value in np.asarray(kept(buffer.getvalue(), 64).pixels)[0].tolist()] == [
        0,
        1,
        128,
        255,
    ]


@given(
    width=st.integers(2, 90), height=st.integers(2, 90), max_side=st.integers(32, 90), turn=st.integers(1, 8)
)
def test_large_ones_are_shrunk_and_the_stored_bytes_are_what_is_seen(width, height, max_side, turn):
    data = turned(1, turn, size=(width, height))
    found = kept(data, max_side)
    assert max(found.pixels.size) <= max_side
    assert found.pixels.tobytes() == by_hand(data, max_side).tobytes()
    assert open_image(found.data).convert("RGB").tobytes() == found.pixels.tobytes()
    assert found.original_size == (width, height)
    assert found.verbatim == (turn == 1 and max(width, height) <= max_side)


def test_nothing_of_the_original_but_its_pixels_is_left_in_a_new_one():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera with a serial number"
    data = encoded(1, exif=exif, icc_profile=b"profile" * 20)
    assert Image.open(io.BytesIO(kept(data, 1024).data)).info == {}


def moving(format):
    frames = [
        Image.open(io.BytesIO(encoded(number, format="PNG", size=(16, 16)))).convert("RGB")
        for number in range(3)
    ]
    buffer = io.BytesIO()
    frames[0].save(buffer, format=format, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def claiming(width, height):
    """A PNG whose header claims a size, and whose checksum believes it."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = encoded(1, format="PNG")
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty, 0 bytes"),
        (b"<html>404 Not Found</html>", "does not decode"),
        (encoded(1)[:-300], "does not decode"),
        (encoded(1, format="PNG")[:200], "does not decode"),
        (encoded(1, format="GIF", mode="P"), "does not decode"),
        (encoded(1, format="TIFF"), "does not decode"),
        (moving("WEBP"), "moves: 3 frames"),
        (moving("PNG"), "moves: 3 frames"),
        (claiming(60_000, 60_000), "bomb"),
        (claiming(9000, 9000), "claims 9000 x 9000 pixels"),
        (claiming(2_000_000_000, 2_000_000_000), "bomb"),
        (encoded(1, size=(404, 4)), "404 x 4 pixels is too narrow; at most 100 to 1"),
        (encoded(1, mode="L", size=(1, 1)), "one colour"),
    ],
)
def test_what_can_never_be_used(data, message):
    with pytest.raises(ImageError, match=message):
        kept(data, 1024)


@given(
    data=st.sampled_from(
        [
            turned(1, 6),
            encoded(2, format="PNG", mode="P"),
            encoded(3, format="WEBP"),
            turned(4, 3, format="PNG"),
        ]
    ),
    places=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
    length=st.integers(0, 3000),
)
def test_whatever_is_broken_is_a_failure_or_a_picture(data, places, length):
    broken = bytearray(data[:length] if length < len(data) else data)
    for place, value in places:
        if place < len(broken):
            broken[place] = value
    try:
        found = kept(bytes(broken), 64)
    except ImageError:
        return
    assert open_image(found.data).convert("RGB").tobytes() == found.pixels.tobytes()


def test_too_many_bytes(monkeypatch):
    monkeypatch.setattr(picture, "MAX_BYTES", 100)
    with pytest.raises(ImageError, match="at most 100"):
        kept(encoded(1), 1024)
