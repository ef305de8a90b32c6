"""The report's pictures: samples of the datasets, and what `compare` made, scaled down into the page itself."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from ray_jobs.report.run_files import UNREADABLE, join, reason
from ray_jobs.report.run_schema import ComparedPicture, Comparison, Reference
from shards.dataset.dataset import Dataset
from shards.dataset.read import read_samples
from shards.format.sample import open_image
from shards.stores.store import Storage

SAMPLES = 24  # on the contact sheet: a screenful
SAMPLE_SIDE = 256  # pixels; shown at about half of it, so that it stays sharp on phones
REFERENCES = 8  # of a comparison: each brings a dozen pictures
PICTURE_SIDE = 512  # pixels
QUALITY = 80  # of WebP
LARGEST_FILE = 64 << 20  # bytes; a PNG of 4096 x 4096 has 50 MB
WITH = "projector"  # what compare.json calls the method in question
WITHOUT = ("text", "identity")  # the methods to hold it against, the first one first


@dataclass(frozen=True)
class Picture:
    """A picture in the page: its data URI, and the caption it was made from."""

    uri: str
    caption: str


@dataclass(frozen=True)
class Grid:
    """The pictures made of one reference.

    Attributes:
        name: of the reference.
        prompt: that it was combined with.
        reference: data URI of the reference picture; empty where it cannot be read.
        alphas: strengths, ascending: the columns.
        rows: by method, a data URI for each strength; empty where there is none.
        without: methods that the slider can show on its left side.
        strengths: at which the slider can show the projector; empty: no slider.
    """

    name: str
    prompt: str
    reference: str
    alphas: tuple[float, ...]
    rows: Mapping[str, Sequence[str]]
    without: tuple[str, ...]
    strengths: tuple[float, ...]


def data_uri(data: bytes, side: int) -> str:
    """A picture as a WebP data URI.

    Args:
        data: PNG, WebP or JPEG, from anywhere.
        side: pixels that its longer side gets at most.

    Raises:
        ValueError: it does not decode, or claims an absurd size.
    """
    picture = open_image(data).convert("RGB")
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def contact_sheet(datasets: Iterable[Dataset], notes: list[str]) -> dict[str, list[Picture]]:
    """The first samples of the first dataset that has any.

    Args:
        datasets: of the run.
        notes: gets a sentence for each dataset that cannot be read.

    Returns:
        pictures by content type.
    """
    for dataset in datasets:
        groups: dict[str, list[Picture]] = {}
        try:
            for sample in islice(read_samples(dataset, tensors=()), SAMPLES):
                content = str(sample.metadata["categories"]["content"])
                picture = Picture(data_uri(sample.image, SAMPLE_SIDE), sample.caption)
                groups.setdefault(content, []).append(picture)
        except (ValueError, KeyError, TypeError, *UNREADABLE) as error:
            notes.append(f"pictures of {dataset.storage.root} could not be read: {reason(error)}")
        if groups:
            return dict(sorted(groups.items()))
    return {}


def grids(storage: Storage, folder: str, comparison: Comparison, notes: list[str]) -> list[Grid]:
    """What a comparison made, reference by reference.

    Args:
        storage: root of the run.
        folder: that the comparison's file and pictures lie in, below the root.
        comparison: its file.
        notes: gets a sentence for each picture that cannot be read.

    Returns:
        the first `REFERENCES` ones.
    """
    if len(comparison.references) > REFERENCES:
        total = len(comparison.references)
        notes.append(f"{join(folder, 'pictures')}: {REFERENCES} of {total} references are shown")
    return [_grid(storage, folder, reference, notes) for reference in comparison.references[:REFERENCES]]


def _grid(storage: Storage, folder: str, reference: Reference, notes: list[str]) -> Grid:
    by_method: dict[str, dict[float, ComparedPicture]] = {}
    for picture in reference.pictures:
        by_method.setdefault(picture.method, {})[picture.alpha] = picture
    methods = sorted(by_method, key=_place_in_grid)
    alphas = tuple(sorted({picture.alpha for picture in reference.pictures}))
    rows = {
        method: [
            _read(storage, folder, by_method[method][alpha].file, notes) if alpha in by_method[method] else ""
            for alpha in alphas
        ]
        for method in methods
    }
    shown = {
        method: tuple(alpha for alpha, uri in zip(alphas, uris, strict=True) if uri)
        for method, uris in rows.items()
    }
    without = tuple(method for method in methods if method != WITH and shown[method])
    return Grid(
        name=reference.name,
        prompt=reference.prompt,
        reference=_read(storage, folder, reference.reference, notes) if reference.reference else "",
        alphas=alphas,
        rows=rows,
        without=without,
        strengths=shown.get(WITH, ()) if without else (),
    )


def _place_in_grid(method: str) -> tuple[int, str]:
    """Text alone first, then what it is held against, the projector last."""
    if method == WITH:
        return len(WITHOUT) + 1, method
    return (WITHOUT.index(method) if method in WITHOUT else len(WITHOUT)), method


def _read(storage: Storage, folder: str, file: str, notes: list[str]) -> str:
    """A picture named by a file that may be foreign; empty and a note where it cannot be shown."""
    try:
        return data_uri(storage.get_bytes(join(folder, file), LARGEST_FILE), PICTURE_SIDE)
    except (ValueError, *UNREADABLE) as error:
        notes.append(f"picture {file!r} could not be read: {reason(error)}")
        return ""
