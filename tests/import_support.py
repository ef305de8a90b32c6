"""Small sets of the shapes that an import takes, made by the tests that read them."""

import hashlib
import io
import json
import tarfile
import zipfile
from collections import Counter
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from shards.sources.catalogue import open_source
from shards.sources.filters import Rules, filters_of
from shards.sources.item import Item
from shards.sources.picture_bytes import open_originals
from shards.sources.selection import taken
from shards.sources.source import SourceSpec

SIZES = ((48, 32), (32, 48), (40, 40))


def encoded(number, *, format="JPEG", size=None, mode="RGB", **options):
    """An encoded picture whose every pixel follows from its number."""
    width, height = size or SIZES[number % len(SIZES)]
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(
        buffer, format=format, **options
    )
    return buffer.getvalue()


def coco_content(count=6, captions=3):
    """Annotations of `count` pictures with so many captions each, and the pictures by name."""
    images, annotations, files = [], [], {}
    for number in range(count):
        name = f"{number:012d}.jpg"
        files[name] = encoded(number)
        width, height = SIZES[number % len(SIZES)]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        annotations += [
            {"id": 100 * number + turn, "image_id": number, "caption": f"picture {number}, told {turn}"}
            for turn in range(captions)
        ]
    # As in COCO, the captions of a picture do not stand together.
    annotations.sort(key=lambda annotation: annotation["id"] % 100)
    return {"images": images, "annotations": annotations}, files


def write_coco(folder, content, files, *, zipped=False):
    """Write them; gives the options `source` and `images`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "captions.json").write_text(json.dumps(content))
    if zipped:
        with zipfile.ZipFile(folder / "val2017.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(f"val2017/{name}", data)
        return {"source": str(folder / "captions.json"), "images": str(folder / "val2017.zip")}
    (folder / "val2017").mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / "val2017" / name).write_bytes(data)
    return {"source": str(folder / "captions.json"), "images": str(folder / "val2017")}


def laion_samples(numbers, **facts):
    """Members of img2dataset samples, in order: (name, bytes)."""
    for number in numbers:
        key, picture = f"{number:09d}", encoded(number)
        width, height = SIZES[number % len(SIZES)]
        told = {
            "key": key,
            "caption": f"picture {number}",
            "width": width,
            "height": height,
            "sha256": hashlib.sha256(picture).hexdigest(),
            "similarity": 0.2 + 0.01 * number,
            "AESTHETIC_SCORE": 4 + 0.1 * number,
            "LANGUAGE": "en" if number % 2 else "de",
        } | facts
        yield f"{key}.jpg", picture
        yield f"{key}.json", json.dumps(told).encode()
        yield f"{key}.txt", f"picture {number}".encode()


def tar_of(members):
    """Members as the bytes of a tar; a TarInfo stands for itself."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            header = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def write_laion(folder, per_tar=4, tars=2):
    """Write tars 00000.tar and on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(tars):
        data = tar_of(laion_samples(range(number * per_tar, (number + 1) * per_tar)))
        (folder / f"{number:05d}.tar").write_bytes(data)
    return folder


def items_of(spec, **rules):
    """What is taken of a source, and why the rest is not."""
    opened, rules = open_source(spec), Rules(**{"val_fraction": 0.3} | rules)
    filters, left_out = filters_of(rules, opened.columns()), Counter()
    columns = {column for each in filters for column in each.columns}
    return list(taken(opened.found(columns), rules, filters, left_out)), dict(left_out)


def read_all(spec, items):
    with closing(open_originals(spec)) as originals:
        return [originals.read(item.place) for item in items]


def read(spec, *places):
    """What a source's places hold, or the error of each that cannot be read."""
    return read_all(spec, [Item("", "", place) for place in places])


def write_parquet(folder, column, values, *, per_group=3, **columns):
    """Write a parquet source with these values in the column of pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    captions = {"TEXT": [f"picture {number}" for number in range(len(values))]}
    table = pa.table({column: values} | captions | columns)
    pq.write_table(table, folder / "00000.parquet", row_group_size=per_group)
    return SourceSpec("parquet", str(folder))
