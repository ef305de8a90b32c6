"""What a file that is no picture is instead, by how it begins."""

import codecs
import re
from collections.abc import Sequence

# How files begin, for an error that says what came instead of a picture.
BEGINNINGS = (
    (rb"\x89PNG", "PNG"),
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"RIFF.{4}WEBP", "WebP"),
    (rb"GIF8", "GIF"),
    (rb".{4}ftypavi[fs]", "AVIF"),
    (rb"II\*\0|MM\0\*", "TIFF"),
    (rb"BM.{4}\0\0\0\0", "BMP"),
    (rb".{4}ftyp(?:hei|hev|mif1|msf1)", "HEIC"),
    (rb".{4}ftyp|\x1aE\xdf\xa3", "a video"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "JPEG XL"),
    (rb"\0\0\0\x0cjP  ", "JPEG 2000"),
    (rb"8BPS", "Photoshop"),
    (rb"%PDF", "PDF"),
    (rb"%!PS", "PostScript"),
    (rb"PK\x03\x04", "a zip"),
    (rb"\x1f\x8b", "gzip"),
    (rb"Rar!|7z\xbc\xaf", "an archive"),
    (rb"\0\0\x01\0.\0", "an icon"),
    (rb"version https://git-lfs", "a Git LFS pointer (git lfs pull fetches the file)"),
    (rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<svg", "SVG"),
    (rb"\s*<(?:!doctype html|html|head|body)", "HTML"),
    (rb"\s*<\?xml", "XML"),
    (rb"\s*[{\[]", "JSON or other text"),
    (rb"[\t\n\r -~]+\Z", "text"),
)


def what_it_is(data: bytes, read: Sequence[str]) -> str:
    """What came instead of a picture, and what would be read: `is HTML; PNG, JPEG or WebP are read`.

    Args:
        data: the file, or its beginning.
        read: names of the formats that are read.
    """
    begins = data[:1024].removeprefix(codecs.BOM_UTF8)
    found = next(
        (name for start, name in BEGINNINGS if re.match(start, begins, re.DOTALL | re.IGNORECASE)), ""
    )
    *names, last = read
    if found in read:
        return f"is {found}, cut off or broken; save it again"
    return f"is {found or 'of no known format'}; {', '.join(names)} or {last} are read"
