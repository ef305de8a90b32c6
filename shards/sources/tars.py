"""WebDataset tars as img2dataset, LAION and other tools have them: KEY.jpg, KEY.txt and KEY.json."""

import tarfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO

from shards.errors import OptionError
from shards.prompts.text_tables import caption_text
from shards.sources.item import Place, storable
from shards.sources.picture import NOT_READ, SUFFIXES
from shards.sources.source import (
    BROKEN_JSON,
    CAPTION_COLUMNS,
    HASH_COLUMNS,
    Found,
    SourceSpec,
    each_caption,
    files_of,
    is_hidden,
    json_facts,
    named,
    picture_hash,
    tag_of,
)
from shards.stores.random_access import open_seekable
from shards.stores.store import Entry

PICTURES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
KNOWN = (*PICTURES, *(suffix.removeprefix(".") for suffix in NOT_READ), "txt", "caption", "json")
MAX_TEXT = 1 << 20  # bytes of a .txt or .json; more is no caption
LOOKED_AT = 100  # samples whose .json is looked at for its columns
PADDING = 1 << 20  # bytes read at a time behind the end of a tar
COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"PK\x03\x04", "zip", "unzip"),
)


@dataclass
class _Group:
    """The members of one key, as they come by; `begin` is where its tar begins in the file."""

    key: str
    begin: int = 0
    place: Place | None = None
    texts: Mapping[str, str] = field(default_factory=dict)  # by suffix
    facts: Mapping[str, Any] = field(default_factory=dict)
    unread: str = ""  # suffix of a picture in a format that is not read
    broken: bool = False  # whether its .json could not be read
    further: int = 0  # pictures beside the one that counts

    @property
    def text(self) -> str | None:
        return self.texts.get("txt", self.texts.get("caption"))

    def problem(self, caption: Any) -> str:
        if self.unread and self.place is None:
            return f"a format that is not read ({self.unread})"
        if self.broken and caption is None:
            return BROKEN_JSON
        return "" if self.is_known else "no member that is read"

    @property
    def is_known(self) -> bool:
        return bool(self.place or self.texts or self.facts or self.unread or self.broken)

    @property
    def is_whole(self) -> bool:
        return self.place is not None and (self.text is not None or bool(self.facts))


class TarSource:
    """Tars of samples.

    Args:
        spec: where they are.

    Raises:
        UsageError: there are none, or their samples lack a column that is named.
    """

    def __init__(self, spec: SourceSpec) -> None:
        if spec.image_column is not None:
            raise OptionError(
                f"image_column = {spec.image_column!r}: pictures in tars are known by their suffix "
                f"({', '.join(PICTURES)}); leave it out"
            )
        self._storage, self._tars = files_of(spec)
        self._columns = self._look()
        self._own_column = named(spec.caption_column, (), self._columns, "caption_column")

    def columns(self) -> Sequence[str]:
        """See `Source.columns`: what the .json members of the first samples say."""
        return self._columns

    def tag(self) -> str:
        """See `Source.tag`."""
        return tag_of(self._tars)

    def found(self, columns: Iterable[str]) -> Iterator[Found]:
        """See `Source.found`: tars in the order of their names, samples as they stand in them."""
        wanted = set(columns)
        usual = named(None, CAPTION_COLUMNS, self._columns, "caption_column")
        hashes = [name for name in HASH_COLUMNS if name in self._columns]
        for tar in self._tars:
            for group in self._groups(tar):
                picture = picture_hash(group.facts, hashes) or storable(
                    f"{tar.key}:{group.key}" if not group.begin else f"{tar.key}@{group.begin}:{group.key}"
                )
                if self._own_column is not None:
                    caption = group.facts.get(self._own_column)
                else:
                    caption = group.facts.get(usual or "") if group.text is None else group.text
                facts = {name: value for name, value in group.facts.items() if name in wanted}
                for one in each_caption(caption):
                    yield Found(picture, one, group.place, facts, group.problem(one))
                for _ in range(group.further):
                    yield Found(picture, None, group.place, facts, "further picture of one key")

    def _look(self) -> Sequence[str]:
        names: dict[str, None] = {}
        with closing(self._groups(self._tars[0])) as groups:
            for group in islice(groups, LOOKED_AT):
                names |= dict.fromkeys(group.facts)
        return list(names)

    def _groups(self, entry: Entry) -> Generator[_Group]:
        """The samples of a file. Members are read under their names, never unpacked.

        A whole sample comes when it has gone by; what lacks a picture or a caption waits to the end of its tar for
        further members, since some tools sort them by type.
        """
        begin = 0
        while True:
            waiting: dict[str, _Group] = {}
            end = [entry.size]
            for group in self._neighbours(entry, begin, end):
                if group.key in waiting:
                    waiting[group.key] = _joined(waiting[group.key], group)
                elif group.is_whole:
                    yield group
                else:
                    waiting[group.key] = group
            yield from waiting.values()
            begin = self._next(entry, end[0])
            if begin >= entry.size:
                return

    def _neighbours(self, entry: Entry, begin: int, end: list[int]) -> Generator[_Group]:
        """What stands next to each other under one key, in the tar that begins somewhere; notes where it ends."""
        group: _Group | None = None
        with self._opened(entry.key, begin) as file:
            # A stream is read through; a file is sought through, so that its pictures are not read.
            try:
                with tarfile.open(fileobj=file, mode="r:" if file.seekable() else "r|") as tar:
                    for member in tar:
                        if not is_hidden(member.name):
                            key, suffix = _split(member.name, group)
                            if group is None or key != group.key:
                                if group is not None:
                                    yield group
                                group = _Group(key, begin)
                            if member.isreg() and not member.issparse():
                                _note(group, tar, member, entry.key, suffix)
                        tar.members = []  # type: ignore[attr-defined]  # or it keeps them all
                    # Behind the first member tarfile takes a header that is none for the end.
                    if begin and tar.offset == begin:
                        raise tarfile.ReadError("bad header")
                    # Cut off between two members it would look like a shorter one: tarfile does not mind.
                    if entry.size < tar.offset + tarfile.BLOCKSIZE:
                        raise tarfile.ReadError(f"{entry.size:,} bytes and no end mark")
                    end[0] = tar.offset
            except (tarfile.TarError, EOFError) as error:
                raise OptionError(
                    f"source: {self._storage.url(entry.key)} is no whole tar: "
                    f"{self._reason(entry, begin, error)}"
                ) from None
        if group is not None:
            yield group

    @contextmanager
    def _opened(self, key: str, begin: int) -> Generator[BinaryIO]:
        with open_seekable(self._storage, key) if begin else self._storage.open(key) as file:
            if begin:
                file.seek(begin)
            yield file

    def _next(self, entry: Entry, end: int) -> int:
        """Where another tar begins behind the end of one, as `cat a.tar b.tar` has it; the file's end if none does."""
        while end < entry.size:
            data = self._storage.get_range(entry.key, end, min(PADDING, entry.size - end))
            zeros = len(data) - len(data.lstrip(b"\0"))
            if zeros < len(data):
                return end + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            end += len(data)
        return entry.size

    def _reason(self, entry: Entry, begin: int, error: Exception) -> str:
        if begin:
            return f"what follows its end, from byte {begin:,} on, is no other tar: {error}; pack it again"
        begins = self._storage.get_range(entry.key, 0, min(entry.size, 6))
        for mark, name, tool in COMPRESSED:
            if begins.startswith(mark):
                return f"it is compressed ({name}); pictures are read where they lie: unpack it with {tool} first"
        return f"{error}; download it again, or name the others only"


def _split(name: str, group: _Group | None) -> tuple[str, str]:
    """Key and suffix as WebDataset has it, at the first dot behind the last slash.

    Where that gives no suffix that is known, as in `v1.0.jpg`, at the last dot; but what follows a sample's own known
    members, as `0.left.jpg` does `0.jpg`, stays with it until it has picture and caption: behind `a.jpg a.txt`,
    `a.v2.jpg` is a sample of its own. `v1.0.cls` before `v1.0.jpg` is no such member.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    key = f"{folder}{slash}{stem}"
    longer, _, last = base.rpartition(".")
    if suffix.lower() in KNOWN:
        return key, suffix.lower()
    if last.lower() not in KNOWN:  # it stays with the sample that it follows, `v1.0.npy` with `v1.0.jpg`
        follows = group is not None and group.is_known and name.startswith(f"{group.key}.")
        return (group.key if group is not None and follows else key), suffix.lower()
    if group is not None and group.key == key and group.is_known and not (group.place and group.texts):
        return key, suffix.lower()
    return f"{folder}{slash}{longer}", last.lower()


def _joined(earlier: _Group, later: _Group) -> _Group:
    """The members of one key that came at two places; of two alike the first counts, of pictures that with a text."""
    first, second = (later, earlier) if later.texts and not earlier.texts else (earlier, later)
    return _Group(
        later.key,
        later.begin,
        first.place or second.place,
        {**later.texts, **earlier.texts},
        earlier.facts or later.facts,
        earlier.unread or later.unread,
        earlier.broken or later.broken,
        earlier.further + later.further + bool(earlier.place and later.place),
    )


def _note(group: _Group, tar: tarfile.TarFile, member: tarfile.TarInfo, file: str, suffix: str) -> None:
    """Add a member to its group; of two alike the first counts."""
    if suffix in PICTURES:
        group.further += group.place is not None
        group.place = group.place or Place(file=file, offset=member.offset_data, size=member.size)
    elif f".{suffix}" in NOT_READ:
        group.unread = f".{suffix}"
    elif suffix in ("txt", "caption"):
        group.texts = {suffix: _text(tar, member), **group.texts}
    elif suffix == "json" and not group.facts:
        facts = json_facts(_text(tar, member))
        group.facts, group.broken = facts or {}, facts is None


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """A member as text; see `caption_text`."""
    file = tar.extractfile(member)
    assert file is not None, "only plain files are read"
    return caption_text(file.read(MAX_TEXT))
