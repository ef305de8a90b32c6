"""The report's pictures: samples of the datasets, and what `compare` made, scaled down into the page itself."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from projector.comparison.cases import TEXT
from projector.comparison.outcome import JUDGED
from projector.steering.modes import DIALLED
from ray_jobs.report.run_files import UNREADABLE, join, reason
from ray_jobs.report.run_schema import ComparedCase, Comparison
from shards.dataset.dataset import Dataset
from shards.dataset.read import read_samples
from shards.format.sample import open_image
from shards.stores.store import Storage

SAMPLES = 12  # on the contact sheet: two rows
SAMPLE_SIDE = 256  # pixels; shown at about half of it, so that it stays sharp on phones
CASES = 6  # of a comparison: a reference without a prompt has few pictures, one with a prompt dozens
PICTURE_SIDE = 384  # pixels
QUALITY = 80  # of WebP
LARGEST_FILE = 64 << 20  # bytes; a PNG of 4096 x 4096 has 50 MB
WITH = "projector"  # what compare.json calls the method in question
ALONE = "alone"
LABELS = {"identity": "doing nothing"}
WITHOUT = (TEXT, "identity")  # the methods to hold it against, the first one first


@dataclass(frozen=True)
class Picture:
    """A picture in the page: its data URI, and the caption it was made from."""

    uri: str
    caption: str


@dataclass(frozen=True)
class Grid:
    """The pictures of one case.

    Attributes:
        name: of the case, for people.
        prompt: that the reference was combined with; empty for none.
        glance: what is seen first, a label and a data URI each: the reference, without, with, and with each method.
        columns: mode and value as one label: the columns.
        rows: by method, a data URI for each column; empty where there is none.
        without: methods that the slider can show on its left side.
        ways: columns in which the slider can show the projector; empty: no slider.
    """

    name: str
    prompt: str
    glance: Sequence[tuple[str, str]]
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


def contact_sheet(datasets: Iterable[Dataset], notes: list[str]) -> list[Picture]:
    """The first samples of the first dataset that has any.

    Args:
        datasets: of the run.
        notes: gets a sentence for each dataset that cannot be read.

    Returns:
        pictures with their captions.
    """
    for dataset in datasets:
        sheet: list[Picture] = []
        try:
            sheet.extend(
                Picture(data_uri(sample.image, SAMPLE_SIDE), sample.caption)
                for sample in islice(read_samples(dataset, tensors=()), SAMPLES)
            )
        except (ValueError, KeyError, TypeError, *UNREADABLE) as error:
            notes.append(f"pictures of {dataset.storage.root} could not be read: {reason(error)}")
        if sheet:
            return sheet
    return []


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
    return [
        _grid(storage, folder, f"case {number}", case, best_way(comparison, alone=not case.prompt), notes)
        for number, case in enumerate(comparison.cases[:CASES], start=1)
    ]


def best_way(comparison: Comparison, *, alone: bool) -> str:
    """The mode and value in which the projector's scores are highest together, with a prompt or alone."""
    means = {
        way_of(mode, value): [scores[name].mean for name in JUDGED if name in scores]
        for mode, by_value in comparison.methods.get(WITH, {}).items()
        for value, scores in by_value.items()
        if (mode == ALONE) == alone
    }
    known = {way: [mean for mean in found if mean is not None] for way, found in means.items()}
    return max(known, key=lambda way: sum(known[way]), default="")


def _grid(storage: Storage, folder: str, name: str, case: ComparedCase, way: str, notes: list[str]) -> Grid:
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
        method: {way: uri for way, uri in zip(columns, uris, strict=True) if uri}
        for method, uris in rows.items()
    }
    without = tuple(method for method in methods if method != WITH and shown[method])
    reference = _read(storage, folder, case.reference, notes) if case.reference else ""
    return Grid(
        name=name,
        prompt=case.prompt,
        glance=[(label, uri) for label, uri in (("reference", reference), *_glance(shown, way)) if uri],
        columns=columns,
        rows=rows,
        without=without,
        ways=tuple(shown.get(WITH, ())) if without else (),
    )


def _glance(shown: Mapping[str, Mapping[str, str]], way: str) -> list[tuple[str, str]]:
    """Without, with, and what other methods make in the same way."""
    with_it = shown.get(WITH, {})
    way = way if way in with_it else next(iter(with_it), way)
    found = [("without: the text alone", uri) for uri in list(shown.get(TEXT, {}).values())[:1]]
    found += [(f"with: projector, {way}", with_it[way])] if way in with_it else []
    return found + [
        (f"{LABELS.get(method, method)}, {way}", pictures[way])
        for method, pictures in shown.items()
        if method not in (TEXT, WITH) and way in pictures
    ]


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
