"""COCO captions: one JSON file of annotations, and a folder or a zip of pictures."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from shards.errors import NotFoundError, OptionError, OversizeError
from shards.sources.item import Place, storable
from shards.sources.source import (
    Found,
    PictureFiles,
    SourceSpec,
    each_caption,
    name_problem,
    named,
    relative_path,
    tag_of,
)
from shards.sources.zip_members import ZipMembers
from shards.stores.local import open_storage
from shards.stores.random_access import open_seekable
from shards.stores.store import Storage


class _Pictures(Protocol):
    tag: str

    def place(self, name: Any) -> Place | None: ...


class CocoSource:
    """Annotations of the shape of https://cocodataset.org/#format-data, captions.

    Args:
        spec: where they are. The whole file is held in memory, about five times its size.

    Raises:
        UsageError: not there, or not of that shape.
    """

    def __init__(self, spec: SourceSpec) -> None:
        if not spec.images:
            raise OptionError(
                "images is needed: the folder or zip with the pictures that the annotations name"
            )
        if spec.image_column is not None:
            raise OptionError(
                f"image_column = {spec.image_column!r}: COCO's pictures are named by file_name; leave it out"
            )
        self._source = spec.source
        data = _read(spec.source)
        self._sha256 = hashlib.sha256(data).hexdigest()
        content = _parsed(spec.source, data)
        self._images, self._annotations = (
            _records(spec.source, content, part) for part in ("images", "annotations")
        )
        self._column = named(spec.caption_column, ("caption",), self.columns(), "caption_column")
        if self._column is None:
            raise OptionError(
                f"source = {spec.source!r}: its annotations have no caption (those of objects and keypoints "
                "have none); give captions_*.json"
            )
        self._pictures = _pictures(spec.images)

    def columns(self) -> Sequence[str]:
        """See `Source.columns`: what an image and an annotation say."""
        return list(dict.fromkeys([*_first_keys(self._images), *_first_keys(self._annotations)]))

    def tag(self) -> str:
        """See `Source.tag`."""
        return hashlib.sha256(f"{self._sha256} {self._pictures.tag}".encode()).hexdigest()

    def found(self, columns: Iterable[str]) -> Iterator[Found]:
        """See `Source.found`: pictures as they stand in `images`, captions as they stand in `annotations`."""
        wanted = set(columns)
        captions: dict[Any, list[Mapping[str, Any]]] = {}
        for annotation in self._annotations:
            captions.setdefault(_identity(annotation.get("image_id")), []).append(annotation)
        if captions and captions.keys().isdisjoint(_identity(image.get("id")) for image in self._images):
            told = self._annotations[0].get("image_id")
            raise OptionError(
                f"source = {self._source!r}: no annotation's image_id is the id of one of its "
                f"{len(self._images):,} images, the first {told!r}; give the file whole"
            )
        for image in self._images:
            name = image.get("file_name")
            # Taken out: of two images with one id only the first one has the captions.
            for annotation in captions.pop(_identity(image.get("id")), [{}]):
                facts = {key: value for key, value in {**annotation, **image}.items() if key in wanted}
                caption = annotation.get(self._column or "", image.get(self._column or ""))
                for one in each_caption(caption):
                    yield Found(storable(name), one, self._pictures.place(name), facts, name_problem(name))
        for annotations in captions.values():
            for annotation in annotations:
                name = f"image_id {annotation.get('image_id')!r}"
                yield Found(storable(name), None, None, {}, "caption of an image that is not listed")


class _ZippedPictures:
    """Pictures in a zip, by their whole name or, as COCO names them, without the folder that all stand in.

    Args:
        storage, key: the zip.
    """

    def __init__(self, storage: Storage, key: str) -> None:
        entry = storage.stat(key)
        try:
            with open_seekable(storage, key) as file, zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except NotFoundError:
            raise OptionError(f"images = {storage.url(key)!r}: is not there") from None
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError) as error:
            raise OptionError(
                f"images = {storage.url(key)!r}: is no whole zip: {error}; download it again"
            ) from None
        self._file, self._url = key, storage.url(key)
        self._members = ZipMembers(members)
        self.tag = tag_of([entry] if entry else [])

    def place(self, name: Any) -> Place | None:
        """Where a picture lies; None for a name that is none, or that leads elsewhere.

        Raises:
            UsageError: several members have the name.
        """
        path = relative_path(name)
        if not path:
            return None
        found = self._members.of(path)
        if not found:
            return Place(file=self._file, member=path)
        first = found[0]
        if len(found) > 1:
            names = " or ".join(repr(storable(member.filename))[1:-1] for member in found[:2])
            raise OptionError(
                f"images = {self._url!r}: {name!r} may be {names}; give a zip or folder with one of them, or "
                "annotations whose file_name tells the folder"
            )
        return Place(file=self._file, member=first.filename, size=first.file_size)


def _pictures(images: str) -> _Pictures:
    if images.lower().endswith(".zip"):
        root, _, key = images.rpartition("/")
        return _ZippedPictures(open_storage(root or "."), key)
    return PictureFiles(open_storage(images))


def _read(source: str) -> bytes:
    root, _, key = source.rpartition("/")
    try:
        return open_storage(root or ".").get_bytes(key)
    except (NotFoundError, ValueError):
        raise OptionError(
            f"source = {source!r}: no such file; give an annotations file such as captions_val2017.json"
        ) from None
    except OversizeError as error:
        raise OptionError(f"source = {source!r}: {error}; split it") from None


def _parsed(source: str, data: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"source = {source!r}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise OptionError(f"source = {source!r}: holds no JSON object; give COCO annotations")
    return content


def _records(source: str, content: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    records = content.get(part)
    if not isinstance(records, list):
        raise OptionError(f"source = {source!r}: has no list {part!r}; give COCO captions annotations")
    return [record for record in records if isinstance(record, dict)]


def _first_keys(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(records[0]) if records else []


def _identity(value: Any) -> Any:
    """An id that can be looked up, the same as a number and as its digits; one that cannot belongs to nothing."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | float | str) else object()
