"""The report's pictures: samples of the datasets, and what `compare` made, scaled down into the page itself."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from projector.steering.modes import DIALLED
from ray_jobs.report.run_files import UNREADABLE, join, reason
from ray_jobs.report.run_schema import ComparedCase, Comparison
from shards.dataset.dataset import Dataset
from shards.dataset.read import read_samples
from shards.format.sample import open_image
from shards.stores.store import Storage

SAMPLES = 24  # on the contact sheet: a screenful
SAMPLE_SIDE = 256  # pixels; shown at about half of it, so that it stays sharp on phones
CASES = 6  # of a comparison: a reference without a prompt has few pictures, one with a prompt dozens
PICTURE_SIDE = 384  # pixels
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
    """The pictures of one case.

    Attributes:
        name: of the case.
        prompt: that the reference was combined with; empty for none.
        reference: data URI of the reference picture; empty where it cannot be read.
        columns: mode and value as one label: the columns.
        rows: by method, a data URI for each column; empty where there is none.
        without: methods that the slider can show on its left side.
        ways: columns in which the slider can show the projector; empty: no slider.
    """

    name: str
    prompt: str
    reference: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[str]]
    without: tuple[str, ...]
    ways: tuple[str, ...]


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
    """What a comparison made, case by case.

    Args:
        storage: root of the run.
        folder: that the comparison's file and pictures lie in, below the root.
        comparison: its file.
        notes: gets a sentence for each picture that cannot be read.

    Returns:
        the first `CASES` ones.
    """
    if len(comparison.cases) > CASES:
        notes.append(f"{join(folder, 'pictures')}: {CASES} of {len(comparison.cases)} cases are shown")
    return [_grid(storage, folder, case, notes) for case in comparison.cases[:CASES]]


def _grid(storage: Storage, folder: str, case: ComparedCase, notes: list[str]) -> Grid:
    files = {(picture.method, way_of(picture.mode, picture.value)): picture.file for picture in case.pictures}
    methods = sorted({method for method, _ in files}, key=_place_in_grid)
    columns = tuple(dict.fromkeys(way for _, way in files))
    rows = {
        method: [
            _read(storage, folder, files[method, way], notes) if (method, way) in files else ""
            for way in columns
        ]
        for method in methods
    }
    shown = {
        method: tuple(way for way, uri in zip(columns, uris, strict=True) if uri)
        for method, uris in rows.items()
    }
    without = tuple(method for method in methods if method != WITH and shown[method])
    return Grid(
        name=case.case,
        prompt=case.prompt,
        reference=_read(storage, folder, case.reference, notes) if case.reference else "",
        columns=columns,
        rows=rows,
        without=without,
        ways=shown.get(WITH, ()) if without else (),
    )


def way_of(mode: str, value: float | str) -> str:
    """Mode and value as one label; the value of a mode without a dial is not told."""
    told = value if isinstance(value, str) else f"{value:g}"
    return f"{mode} {told}" if mode in DIALLED else mode


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
