"""WebDataset tars as img2dataset and LAION have them: KEY.jpg, KEY.txt and KEY.json next to each other."""

import json
import tarfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from shards.errors import UsageError
from shards.sources.item import Place, storable
from shards.sources.source import (
    CAPTION_COLUMNS,
    HASH_COLUMNS,
    Found,
    SourceSpec,
    each_caption,
    files_of,
    named,
    picture_hash,
    tag_of,
)
from shards.stores.store import Entry

PICTURES = ("jpg", "jpeg", "png", "webp")
MAX_TEXT = 1 << 20  # bytes of a .txt or .json; more is no caption
LOOKED_AT = 100  # samples whose .json is looked at for its columns


@dataclass
class _Group:
    """The members of one key, as they come by."""

    key: str
    place: Place | None = None
    text: Any = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class TarSource:
    """Tars of samples.

    Args:
        spec: where they are.

    Raises:
        UsageError: there are none, or their samples lack a column that is named.
    """

    def __init__(self, spec: SourceSpec) -> None:
        if spec.image_column is not None:
            raise UsageError(
                f"import.image_column = {spec.image_column!r}: pictures in tars are known by their suffix "
                f"({', '.join(PICTURES)}); leave it out"
            )
        self._storage, self._tars = files_of(spec)
        self._columns = self._look()
        self._own_column = named(spec.caption_column, (), self._columns, "import.caption_column")

    def columns(self) -> Sequence[str]:
        """See `Source.columns`: what the .json members of the first samples say."""
        return self._columns

    def tag(self) -> str:
        """See `Source.tag`."""
        return tag_of(self._tars)

    def found(self, columns: Iterable[str]) -> Iterator[Found]:
        """See `Source.found`: tars in the order of their names, samples as they stand in them."""
        wanted = set(columns)
        usual = named(None, CAPTION_COLUMNS, self._columns, "import.caption_column")
        hashes = [name for name in HASH_COLUMNS if name in self._columns]
        for tar in self._tars:
            for group in self._groups(tar):
                picture = picture_hash(group.facts, hashes) or storable(f"{tar.key}:{group.key}")
                if self._own_column is not None:
                    caption = group.facts.get(self._own_column)
                else:
                    caption = group.facts.get(usual or "") if group.text is None else group.text
                facts = {name: value for name, value in group.facts.items() if name in wanted}
                for one in each_caption(caption):
                    yield Found(picture, one, group.place, facts)

    def _look(self) -> Sequence[str]:
        names: dict[str, None] = {}
        with closing(self._groups(self._tars[0])) as groups:
            for group in islice(groups, LOOKED_AT):
                names |= dict.fromkeys(group.facts)
        return list(names)

    def _groups(self, entry: Entry) -> Generator[_Group]:
        """What stands next to each other under one key. Members are read under their names, never unpacked."""
        group: _Group | None = None
        with self._storage.open(entry.key) as file:
            # A stream is read through; a file is sought through, so that its pictures are not read.
            try:
                with tarfile.open(fileobj=file, mode="r:" if file.seekable() else "r|") as tar:
                    for member in tar:
                        key, _, suffix = _split(member.name)
                        if group is None or key != group.key:
                            if group is not None:
                                yield group
                            group = _Group(key)
                        if member.isreg() and not member.issparse():
                            _note(group, tar, member, entry.key, suffix)
                        tar.members = []  # type: ignore[attr-defined]  # or it keeps them all
                    # Cut off between two members it would look like a shorter one: tarfile does not mind.
                    if entry.size < tar.offset + tarfile.BLOCKSIZE:
                        raise tarfile.ReadError(f"{entry.size:,} bytes and no end mark")
            except (tarfile.TarError, EOFError) as error:
                raise UsageError(
                    f"import.source: {self._storage.url(entry.key)} is no whole tar: {error}; "
                    "download it again, or name the others only"
                ) from None
        if group is not None:
            yield group


def _split(name: str) -> tuple[str, str, str]:
    """Key and suffix as WebDataset has it: at the first dot behind the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", dot, suffix.lower()


def _note(group: _Group, tar: tarfile.TarFile, member: tarfile.TarInfo, file: str, suffix: str) -> None:
    """Add a member to its group; of two alike the first counts."""
    if suffix in PICTURES and group.place is None:
        group.place = Place(file=file, offset=member.offset_data, size=member.size)
    elif suffix == "txt" and group.text is None:
        group.text = _text(tar, member)
    elif suffix == "json" and not group.facts:
        try:
            content = json.loads(_text(tar, member))
        except (ValueError, RecursionError):
            return  # what it would have told is not told
        group.facts = content if isinstance(content, dict) else {}


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """A member as text; what is no UTF-8 comes as lone surrogates, which no caption may hold."""
    file = tar.extractfile(member)
    assert file is not None, "only plain files are read"
    return file.read(MAX_TEXT).decode(errors="surrogateescape")
