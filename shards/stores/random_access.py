"""Random access to an object, for formats whose directory stands at their end: zip, parquet."""

import io
import os
from typing import TYPE_CHECKING, BinaryIO, cast

from shards.errors import NotFoundError
from shards.stores.local import LocalStorage
from shards.stores.store import Storage

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK = 1 << 20  # bytes a request: a directory comes in few of them


class _Ranges(io.RawIOBase):
    """An object of a store that answers ranges, as a file.

    Args:
        storage: where it lies.
        key: of the object.
        size: in bytes.
    """

    def __init__(self, storage: Storage, key: str, size: int) -> None:
        super().__init__()
        self._storage, self._key, self._size = storage, key, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"{self._key}: no position {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._size - self._position))
        view[:length] = self._storage.get_range(self._key, self._position, length)
        self._position += length
        return length


def open_seekable(storage: Storage, key: str) -> BinaryIO:
    """An object as a file that can be read anywhere.

    Raises:
        NotFoundError: there is none.
    """
    if isinstance(storage, LocalStorage):
        return storage.open(key)
    entry = storage.stat(key)
    if entry is None:
        raise NotFoundError(f"{storage.url(key)} does not exist")
    return cast(BinaryIO, io.BufferedReader(_Ranges(storage, key, entry.size), BLOCK))
