"""Imported pictures against plain Pillow: kept byte for byte where the format keeps them, else what they show."""

import io
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, features

from import_support import encoded
from shards.format.sample import open_image
from shards.sources import picture
from shards.sources.picture import ImageError, as_rgb, kept, open_picture


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


@pytest.mark.parametrize(
    "data",
    [
        encoded(1, format="GIF", mode="P"),
        encoded(1, format="TIFF"),
        encoded(1, format="TIFF", mode="CMYK"),
        encoded(1, format="BMP"),
        pytest.param(
            encoded(1, format="AVIF") if features.check("avif") else b"",
            marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF"),
        ),
    ],
)
def test_other_formats_are_read_and_stored_without_loss(data):
    found = kept(data, 1024)
    assert (found.format, found.verbatim) == ("png", False)
    assert found.pixels.tobytes() == by_hand(data).tobytes()


def test_of_a_gif_that_moves_and_a_tiff_of_pages_the_first_is_taken():
    for format in ("GIF", "TIFF"):
        still = Image.open(io.BytesIO(moving(format))).convert("RGB")
        assert kept(moving(format), 1024).pixels.tobytes() == still.tobytes()


def test_long_texts_in_a_png_do_not_lose_it():
    for behind in (False, True):
        texts = PngImagePlugin.PngInfo()
        texts.add(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * (2 << 20)), after_idat=behind)
        data = encoded(1, format="PNG", pnginfo=texts)
        with pytest.raises(ValueError, match="too large"):
            Image.open(io.BytesIO(data)).load()
        found = kept(data, 1024)
        assert found.pixels.tobytes() == by_hand(encoded(1, format="PNG")).tobytes()
        # Stock readers do not take the bytes that came, so others are stored.
        assert not found.verbatim
        assert open_image(found.data).tobytes() == found.pixels.tobytes()
    short = PngImagePlugin.PngInfo()
    short.add_text("parameters", "a fox", zip=True)
    assert kept(encoded(1, format="PNG", pnginfo=short), 1024).verbatim


def test_an_error_says_the_same_in_every_run():
    for data in (b"<html>", b"\0" * 100, encoded(1, format="GIF", mode="P")[:9]):
        with pytest.raises(ImageError) as caught:
            kept(data, 1024)
        assert "0x" not in str(caught.value)
        assert "BytesIO" not in str(caught.value)


def profile(kind):
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()


def test_a_colour_profile_is_followed_and_srgb_s_own_changes_nothing():
    plain = encoded(1, quality=95)
    assert kept(encoded(1, quality=95, icc_profile=profile("sRGB")), 64).verbatim
    for broken in (profile("LAB"), profile("sRGB")[:200]):
        found = kept(encoded(1, quality=95, icc_profile=broken), 64)
        assert found.pixels.tobytes() == by_hand(plain).tobytes()
    other = swapped_primaries(profile("sRGB"))
    red = io.BytesIO()
    Image.new("RGB", (9, 8), (255, 0, 0)).save(red, format="PNG", icc_profile=other)
    found = open_picture(red.getvalue()).getpixel((0, 0))
    assert found[1] > 200 > 60 > found[0]  # what the profile calls red is sRGB's green
    clear = Image.new("RGBA", (9, 8), (255, 0, 0, 255))
    clear.putpixel((0, 0), (255, 0, 0, 0))
    seen = io.BytesIO()
    clear.save(seen, format="PNG", icc_profile=other)
    found = kept(seen.getvalue(), 64)
    assert (found.pixels.getpixel((0, 0)), found.pixels.getpixel((1, 0))[0] < 60) == ((255, 255, 255), True)
    assert "icc_profile" not in Image.open(io.BytesIO(found.data)).info


def swapped_primaries(data):
    """A profile whose red is green and the other way round."""
    return data.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")


def test_a_long_colour_profile_in_a_png_is_followed_and_one_without_end_is_not():
    """Pillow refuses a PNG with a profile of more than 1 MiB, as tables for print have."""
    swapped = profile("sRGB").replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")

    def with_profile(padding):
        data = (len(swapped) + padding).to_bytes(4, "big") + swapped[4:] + bytes(padding)
        return encoded(1, format="PNG", icc_profile=data)

    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(with_profile(2 << 20))).load()
    found = kept(with_profile(2 << 20), 1024)
    assert found.pixels.tobytes() == kept(with_profile(0), 1024).pixels.tobytes()
    assert found.pixels.tobytes() != by_hand(encoded(1, format="PNG")).tobytes()
    with pytest.raises(ImageError, match="colour profile of more than 16,777,216 bytes"):
        kept(with_profile(17 << 20), 1024)


def test_a_transparent_grey_of_16_bits_shows_white():
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG", transparency=0)
    pixels = np.asarray(kept(buffer.getvalue(), 1024).pixels)
    assert pixels[0, 0].tolist() == [255] * 3
    assert pixels[0, 1].tolist() == [4] * 3


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
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = encoded(1, format="PNG")
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty, 0 bytes"),
        (b"<html>404 Not Found</html>", "does not decode: is HTML; PNG, JPEG, WebP, GIF.* or BMP are read"),
        (encoded(1)[:-300], "does not decode"),
        (encoded(1, format="PNG")[:200], "does not decode"),
        (encoded(1, format="PPM"), "does not decode: is of no known format; PNG"),
        (encoded(1, format="PNG")[:20], "does not decode: "),
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "does not decode: is HEIC; PNG, JPEG"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"is a Git LFS pointer \(git lfs pull"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "does not decode: is SVG; "),
        (b"%PDF-1.7 x", "does not decode: is PDF; "),
        (encoded(1, format="TIFF", mode="F"), "pixels of mode F: .*; save it with 8 or 16 bits"),
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


SEEN = """
import resource, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shards.sources import picture

data = Path(sys.argv[1]).read_bytes()
picture.AT_ONCE = 3072 * 3072  # as 8192 * 8192 is to a picture of that size, and seven times as fast
picture.kept(Path(sys.argv[2]).read_bytes(), 512)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(8) as pool:
    sizes = {kept.pixels.size for kept in pool.map(lambda _: picture.kept(data, 512), range(8))}
assert sizes == {(512, 512)}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_eight_fetchers_of_a_huge_picture_take_the_memory_of_one(tmp_path):
    huge = Image.new("RGBA", (3072, 3072), (200, 30, 40, 90))
    huge.paste((10, 200, 40, 255), (0, 0, 1500, 750))
    huge.save(tmp_path / "huge.png")
    huge.resize((64, 64)).save(tmp_path / "small.png")
    paths = [str(tmp_path / name) for name in ("huge.png", "small.png")]
    run = subprocess.run([sys.executable, "-c", SEEN, *paths], capture_output=True, text=True, check=True)
    layer = 3072 * 3072 * 4 / 2**20
    # One as RGBA, as RGB, what shrinking takes: each alone would be some thirty layers.
    assert float(run.stdout) < 5 * layer


def test_pictures_wait_for_room_and_one_that_never_fits_goes_alone(monkeypatch):
    monkeypatch.setattr(picture, "AT_ONCE", 100)
    room, together, most = picture._Room(), [], []

    def go(pixels):
        with room.taken(pixels):
            together.append(pixels)
            most.append(sum(together))
            time.sleep(0.005)
            together.remove(pixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(go, [40, 60, 30, 70, 50, 50, 20, 90] * 3))
        assert max(most) <= 100
        list(pool.map(go, [150, 10, 150, 20, 30]))
    assert all(sum_ <= 100 or sum_ == 150 for sum_ in most)
    assert 150 in most


def test_strips_over_white_are_the_whole_over_white():
    rng = np.random.default_rng(0)
    layers = Image.fromarray(rng.integers(0, 256, (600, 50, 4), dtype=np.uint8), "RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    assert as_rgb(layers).tobytes() == whole.tobytes()


def test_sixteen_bits_of_a_tiff_in_which_zero_is_white(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0)
    for photometric in (1, 0):
        Image.fromarray(ramp).save(tmp_path / f"{photometric}.tiff", tiffinfo={262: photometric})
    plain, inverse = (
        np.asarray(open_picture((tmp_path / f"{photometric}.tiff").read_bytes()).convert("L")).astype(int)
        for photometric in (1, 0)
    )
    assert plain[0, 0] == 0
    assert (plain + inverse == 255).all()
