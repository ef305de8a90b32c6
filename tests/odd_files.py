"""A hundred small odd picture files as people bring them, each with what must become of it.

`python tests/odd_files.py FOLDER` writes them, each with a caption beside it, and prints the table that is
docs/odd-files.md.
"""

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, features

KEPT, REDONE = "kept byte for byte", "stored as a PNG of what it shows"
ORIENTATION = 0x0112


def picture(number, size=(24, 16), mode="RGB"):
    """A picture of many colours."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def frames(format):
    first, *more = [picture(number) for number in range(3)]
    return encoded(first, format, save_all=True, append_images=more)


def png_of(width, height, depth=8, colour=2, body=b"\0" * 60):
    """A PNG put together by hand, whatever its header claims."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def long_text(kind, data):
    texts = PngImagePlugin.PngInfo()
    texts.add(kind, data)
    return encoded(picture(1), "PNG", pnginfo=texts)


def profile(space):
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()


def other_profile(padding=0):
    """One whose red is another's green; with so many bytes behind it that do not pack."""
    data = profile("sRGB")
    data = data.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")
    return struct.pack(">I", len(data) + padding) + data[4:] + bytes(padding)


def odd_files():
    """Name, bytes and what must become of each: `KEPT`, `REDONE`, or words of the reason why not."""
    yield from plain_files()
    yield from turned_files()
    yield from files_of_modes()
    yield from transparent_files()
    yield from coloured_files()
    yield from commented_files()
    yield from moving_files()
    yield from files_by_wrong_names()
    yield from broken_files()
    yield from files_of_other_formats()
    yield from files_of_odd_shapes()


def plain_files():
    """What most people have."""
    jpeg, png, webp = (encoded(picture(1), format) for format in ("JPEG", "PNG", "WEBP"))
    yield "plain.jpg", jpeg, KEPT
    yield "plain.png", png, KEPT
    yield "plain.webp", webp, KEPT
    yield "lossless.webp", encoded(picture(1), "WEBP", lossless=True), KEPT
    yield "progressive.jpg", encoded(picture(1), "JPEG", progressive=True), KEPT
    yield "interlaced.png", encoded(picture(1), "PNG", interlace=1), KEPT
    for sampling in (0, 1, 2):
        yield f"sampling {sampling}.jpg", encoded(picture(1), "JPEG", subsampling=sampling), KEPT


def turned_files():
    """With an orientation to be heeded, or one that is none."""
    for number in range(1, 9):
        for format in ("JPEG", "PNG", "WEBP"):
            data = encoded(picture(number), format, exif=turned(number))
            yield f"turned {number}.{format.lower()}", data, KEPT if number == 1 else REDONE
    yield "turned 6.tiff", encoded(picture(1), "TIFF", exif=turned(6)), REDONE
    yield "orientation 0.jpg", encoded(picture(1), "JPEG", exif=turned(0)), KEPT
    yield "orientation 42.jpg", encoded(picture(1), "JPEG", exif=turned(42)), KEPT
    yield "broken exif.jpg", encoded(picture(1), "JPEG", exif=b"Exif\0\0broken"), KEPT


def files_of_modes():
    """Whose pixels are something else than eight bits of red, green and blue."""
    grey16 = Image.fromarray(np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) * 170)
    for mode in ("L", "CMYK"):
        yield f"mode {mode}.jpg", encoded(picture(3, mode=mode), "JPEG"), REDONE
    for mode in ("1", "L", "LA", "P", "RGBA"):
        yield f"mode {mode}.png", encoded(picture(3, mode=mode), "PNG"), REDONE
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"):
        yield f"mode {mode}.tif", encoded(picture(3, mode=mode), "TIFF"), REDONE
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"mode {mode}.bmp", encoded(picture(3, mode=mode), "BMP"), REDONE
    for mode in ("L", "P", "RGB"):
        yield f"mode {mode}.gif", encoded(picture(3, mode=mode), "GIF"), REDONE
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield f"{compression}.tiff", encoded(picture(3), "TIFF", compression=compression), REDONE
    yield "16 bits.png", encoded(grey16, "PNG"), REDONE
    yield "16 bits.tiff", encoded(grey16, "TIFF"), REDONE
    yield (
        "32 bits.tiff",
        encoded(Image.fromarray(np.arange(384, dtype=np.int32).reshape(16, 24) * 170), "TIFF"),
        REDONE,
    )
    yield "float.tiff", encoded(picture(3, mode="F"), "TIFF"), "pixels of mode F"
    yield "16 bits of RGB.png", png_of(8, 8, depth=16, body=(b"\0" + bytes(range(48))) * 8), KEPT


def transparent_files():
    """To be put on white."""
    rgba = picture(2, mode="RGBA")
    rgba.putpixel((0, 0), (1, 2, 3, 0))
    grey16 = Image.fromarray(np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) * 170)
    yield "transparent.png", encoded(rgba, "PNG"), REDONE
    yield "transparent.webp", encoded(rgba, "WEBP", lossless=True), REDONE
    yield "transparent.gif", encoded(rgba, "GIF"), REDONE
    yield "transparent colour.png", encoded(picture(4), "PNG", transparency=(0, 0, 0)), REDONE
    yield "transparent grey of 16 bits.png", encoded(grey16, "PNG", transparency=0), REDONE
    yield "transparent palette.png", encoded(picture(4, mode="P"), "PNG", transparency=0), REDONE


def coloured_files():
    """With colour profiles."""
    yield "sRGB.jpg", encoded(picture(5), "JPEG", icc_profile=profile("sRGB")), KEPT
    yield "sRGB.png", encoded(picture(5), "PNG", icc_profile=profile("sRGB")), KEPT
    yield "other colours.jpg", encoded(picture(5), "JPEG", icc_profile=other_profile()), REDONE
    yield "other colours.png", encoded(picture(5), "PNG", icc_profile=other_profile()), REDONE
    yield "large profile.png", encoded(picture(5), "PNG", icc_profile=other_profile(2 << 20)), REDONE
    yield (
        "huge profile.png",
        encoded(picture(5), "PNG", icc_profile=other_profile(17 << 20)),
        "colour profile",
    )
    yield "no profile.jpg", encoded(picture(5), "JPEG", icc_profile=b"profile" * 9), KEPT


def commented_files():
    """With much text beside the picture."""
    yield "large text.png", long_text(b"tEXt", b"workflow\0" + b"x" * (2 << 20)), KEPT
    yield (
        "large packed text.png",
        long_text(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * (2 << 20))),
        REDONE,
    )
    yield (
        "large international text.png",
        long_text(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"x" * (2 << 20))),
        REDONE,
    )
    yield "comment.jpg", encoded(picture(6), "JPEG", comment=b"x" * 60_000), KEPT


def moving_files():
    """Of several pictures."""
    yield "moving.gif", frames("GIF"), REDONE
    yield "pages.tiff", frames("TIFF"), REDONE
    yield "camera.jpg", frames("MPO"), REDONE
    yield "moving.webp", frames("WEBP"), "moves: 3 frames"
    yield "moving.png", frames("PNG"), "moves: 3 frames"
    if features.check("avif"):
        yield "plain.avif", encoded(picture(1), "AVIF"), REDONE
        yield "avif.jpg", encoded(picture(1), "AVIF"), REDONE
        yield "turned 6.avif", encoded(picture(1), "AVIF", exif=turned(6)), REDONE
        yield "moving.avif", frames("AVIF"), "moves: 3 frames"


def files_by_wrong_names():
    """Sound pictures whose names say something else."""
    jpeg, png, webp = (encoded(picture(1), format) for format in ("JPEG", "PNG", "WEBP"))
    yield "gif.jpg", encoded(picture(1), "GIF"), REDONE
    yield "png.jpg", png, KEPT
    yield "jpeg.png", jpeg, KEPT
    yield "webp.jpeg", webp, KEPT
    yield "ÜPPER name.JPG", jpeg, KEPT
    yield "a.b.c.jpg", jpeg, KEPT
    yield "trailing.jpg", jpeg + b"trailing bytes", KEPT


def broken_files():
    """Cut off somewhere."""
    jpeg, png, webp = (encoded(picture(1), format) for format in ("JPEG", "PNG", "WEBP"))
    yield "empty.jpg", b"", "empty, 0 bytes"
    yield "cut.jpg", jpeg[: len(jpeg) // 2], "does not decode"
    yield "cut.png", png[: len(png) // 2], "does not decode"
    yield "cut.webp", webp[: len(webp) // 2], "does not decode"
    yield "header alone.png", png[:20], "does not decode"
    yield "header alone.jpg", jpeg[:12], "does not decode"


def files_of_other_formats():
    """No pictures, or pictures of formats that are not read."""
    yield "page.jpg", b"<!DOCTYPE html>\n<html><body>404</body></html>", "is HTML; PNG, JPEG"
    yield "page without a type.jpg", b"  <html>moved</html>", "is HTML; PNG, JPEG"
    yield "page with a mark.jpg", b"\xef\xbb\xbf<html>moved</html>", "is HTML; PNG, JPEG"
    yield "drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is SVG; PNG, JPEG"
    yield "feed.png", b'<?xml version="1.0"?><rss/>', "is XML; PNG, JPEG"
    yield "answer.jpg", b'{"error": "forbidden"}', "is JSON or other text; PNG"
    yield "words.jpg", b"Forbidden\n", "is text; PNG, JPEG"
    yield "pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"
    yield "phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC; PNG, JPEG"
    yield "film.jpg", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "is a video; PNG, JPEG"
    yield "new.jpg", b"\0\0\0\x0cJXL \r\n\x87\n", "is JPEG XL; PNG, JPEG"
    yield "film archive.jpg", encoded(picture(1), "JPEG2000"), "is JPEG 2000; PNG, JPEG"
    yield "document.jpg", b"%PDF-1.7\n", "is PDF; PNG, JPEG"
    yield "print.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n", "is PostScript; PNG, JPEG"
    yield "archive.jpg", b"PK\3\4\x14\0", "is a zip; PNG, JPEG"
    yield "packed.jpg", b"\x1f\x8b\x08\0", "is gzip; PNG, JPEG"
    yield "layers.jpg", b"8BPS\0\1", "is Photoshop; PNG, JPEG"
    yield "mac.jpg", b"\0\5\x16\7\0\2\0\0Mac OS X", "is of no known format; PNG"
    yield "zeros.jpg", bytes(512), "is of no known format; PNG"
    yield "noise.png", np.random.default_rng(1).bytes(200), "is of no known format; PNG"
    yield "icon.png", encoded(picture(1), "ICO"), "is an icon; PNG, JPEG"
    yield "web film.jpg", b"\x1aE\xdf\xa3\1\0\0\0", "is a video; PNG, JPEG"
    yield "archive of another kind.jpg", b"7z\xbc\xaf\x27\x1c", "is an archive; PNG, JPEG"
    yield "plain map.png", encoded(picture(1), "PPM"), "does not decode"


def files_of_odd_shapes():
    """Too large, too narrow, or of one colour."""
    yield "bomb.png", png_of(60_000, 60_000), "does not decode"
    yield "large.png", png_of(9000, 9000), "claims 9000 x 9000 pixels"
    yield "short body.png", png_of(400, 400), "does not decode"
    yield "narrow.png", encoded(picture(1, (404, 4)), "PNG"), "too narrow; at most 100 to 1"
    yield "one pixel.png", encoded(picture(1, (1, 1)), "PNG"), "one colour"
    yield "white.jpg", encoded(Image.new("RGB", (8, 8), "white"), "JPEG"), "one colour"
    yield "clear.png", encoded(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "PNG"), "one colour"


HOSTILE_NAMES = (
    "\x1b[31mred\x07\x1b]0;title\x07.jpg",
    "new\nline.jpg",
    "right to left \u202egpj.jpg",
    "\U0001f98a \u56fe\u7247.jpg",
    "$(touch owned) `touch owned` ; touch owned.jpg",
    "<img src=x onerror=alert(1)>.jpg",
    "%2e%2e%2fup.jpg",
    "-rf.jpg",
    "~.jpg",
    f"{'long' * 40}.jpg",
)
NOT_FOLLOWED = "left out: caption without a picture"
PASSED_OVER = "passed over"


def hostile_entries():
    """Name, what it is, how it is made, and what must become of it: what no reader may follow or wait for."""
    yield "link.jpg", "a link out of the folder", lambda path: path.symlink_to("/etc/passwd"), NOT_FOLLOWED
    yield "loop.jpg", "a link to itself", lambda path: path.symlink_to(path.name), NOT_FOLLOWED
    yield "pipe.jpg", "a pipe that nobody writes to", os.mkfifo, NOT_FOLLOWED
    yield "folder.jpg", "a folder", Path.mkdir, NOT_FOLLOWED
    yield "._mac.jpg", "what a Mac writes beside a file", lambda path: path.write_bytes(b"mac"), PASSED_OVER
    yield ".hidden.jpg", "a hidden picture", lambda path: path.write_bytes(b"hidden"), PASSED_OVER


def odd_names():
    """Names that no terminal, shell or page may take for orders, each of a sound picture."""
    for number, name in enumerate(HOSTILE_NAMES):
        yield name, encoded(picture(number), "JPEG"), KEPT


def table():
    """Every file and what becomes of it, as the rows of docs/odd-files.md."""
    files = [(name, becomes) for name, _, becomes in [*odd_files(), *odd_names()]]
    entries = [(f"{name}, {what}", becomes) for name, what, _, becomes in hostile_entries()]
    for name, becomes in [*files, *entries]:
        told = (
            becomes
            if becomes in (KEPT, REDONE, PASSED_OVER, NOT_FOLLOWED)
            else f"not used: {becomes.partition(';')[0]}"
        )
        yield f"| {as_code(name)} | {told} |"


def as_code(name):
    """A name in a page, where signs that are not seen are written out."""
    return "`" + ascii(name)[1:-1].replace("`", "'").replace("|", "\\|") + "`"


def caption_of(name):
    return f"caption of {name!a}"


def write(folder):
    """Write them, each with its name as a caption beside it; returns bytes and fate of the files by name."""
    files = {}
    for name, data, becomes in [*odd_files(), *odd_names()]:
        (folder / name).write_bytes(data)
        (folder / f"{name}.txt").write_text(f"{caption_of(name)}\n")
        files[name] = (data, becomes)
    for name, _, make, _ in hostile_entries():
        make(folder / name)
        (folder / f"{name}.txt").write_text(f"{caption_of(name)}\n")
    return files


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    write(Path(sys.argv[1]))
    print("\n".join(table()))
