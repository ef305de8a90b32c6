"""The bytes of a picture from the place in its source where the catalogue says that it lies."""

import errno
import zipfile
import zlib
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from shards.errors import NotFoundError, StorageError
from shards.sources.item import Place
from shards.sources.picture import MAX_BYTES, ImageError, MissingPictureError
from shards.sources.source import SourceSpec
from shards.sources.zip_members import ZipMembers
from shards.stores.local import open_storage
from shards.stores.random_access import open_seekable
from shards.stores.store import Storage

if TYPE_CHECKING:
    from shards.sources.parquet_rows import ParquetRows

MISSING = "the source has no such picture"


class Originals(Protocol):
    """Where pictures are read from; several threads may ask at once. A file is kept open for the next picture."""

    def read(self, place: Place) -> bytes:
        """The bytes of a picture.

        Raises:
            ImageError: there are none, or they are broken where they lie.
            StorageError: they cannot be had now.
        """

    def size(self, place: Place) -> int:
        """How many bytes a picture has by now that was missing when the source was read; -1 where it still is."""

    def close(self) -> None:
        """Close what is open."""


def open_originals(spec: SourceSpec) -> Originals:
    """The pictures of a source; none of its files is opened before the first picture is read."""
    if spec.images.lower().endswith(".zip"):
        root, _, key = spec.images.rpartition("/")
        return _Zip(open_storage(root or "."), key)
    storage = open_storage(spec.root)
    if spec.kind != "parquet":
        return _Files(storage)
    from shards.sources.parquet_rows import ParquetRows

    images = open_storage(spec.images) if spec.images else storage
    return _RowsOrFiles(ParquetRows(storage, spec.image_column), _Files(images))


class _Files:
    """Pictures that are files, or lie in tars.

    Args:
        storage: under whose root the files lie.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def size(self, place: Place) -> int:
        if place.size >= 0 or not place.file:
            return place.size
        try:
            entry = self._storage.stat(place.file)
        except StorageError:  # a link on the way: what is behind it is not the source's
            return -1
        return entry.size if entry else -1

    def read(self, place: Place) -> bytes:
        place = replace(place, size=self.size(place))
        check(place)
        try:
            return self._storage.get_range(place.file, place.offset, place.size)
        except NotFoundError:
            if place.offset:
                raise  # a tar that is gone is no fault of the picture
            raise MissingPictureError(f"{place}: is not there any more") from None

    def close(self) -> None:
        """Nothing is kept open."""


class _RowsOrFiles:
    """Pictures in parquet files, or files beside them.

    Args:
        rows: for places with a row.
        files: for the others.
    """

    def __init__(self, rows: "ParquetRows", files: _Files) -> None:
        self._rows, self._files = rows, files

    def read(self, place: Place) -> bytes:
        return (self._rows if place.row >= 0 else self._files).read(place)

    def size(self, place: Place) -> int:
        return self._files.size(place)

    def close(self) -> None:
        self._rows.close()


class _Zip:
    """Pictures in a zip; members are read by name, never unpacked.

    Args:
        storage, key: the zip.
    """

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage, self._key = storage, key
        self._open = ExitStack()

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._open.enter_context(open_seekable(self._storage, self._key)))
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError) as error:
            raise StorageError(f"{self._storage.url(self._key)} is no whole zip any more: {error}") from None

    @cached_property
    def _members(self) -> ZipMembers:
        return ZipMembers(self._archive.infolist())

    def _came_since(self, place: Place) -> Place:
        """Where a picture lies by now that the zip had not when the source was read."""
        found = self._members.of(place.member) if place.size < 0 else ()
        if len(found) != 1:
            return place
        return replace(place, member=found[0].filename, size=found[0].file_size)

    def read(self, place: Place) -> bytes:
        place = self._came_since(place)
        check(place)
        try:
            with self._archive.open(place.member) as member:
                data = member.read(place.size + 1)  # a bomb's claim is not believed
        except (
            KeyError,
            zipfile.BadZipFile,
            zlib.error,
            RuntimeError,
            NotImplementedError,
            EOFError,
        ) as error:
            raise ImageError(f"{place}: cannot be read: {error}") from None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise ImageError(f"{place}: cannot be read: the zip says that it is where no file is") from None
        if len(data) != place.size:
            raise ImageError(f"{place}: is not of the {place.size:,} bytes that the zip's directory tells")
        return data

    def size(self, place: Place) -> int:
        return self._came_since(place).size

    def close(self) -> None:
        self._open.close()


def check(place: Place) -> None:
    """Refuse what is not there, or claims an absurd size."""
    if place.size < 0:
        raise MissingPictureError(f"{place}: {MISSING} (links that lead out of it are not followed)")
    if place.size > MAX_BYTES:
        raise ImageError(f"{place}: {place.size:,} bytes; a picture has at most {MAX_BYTES:,}")
