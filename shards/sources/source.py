"""Where an import takes pictures and captions from: what every kind of source is asked, and how its files are found."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from shards.errors import OptionError
from shards.sources.item import Place, storable
from shards.stores.local import open_storage
from shards.stores.store import Entry, Storage, check_key

Kind = Literal["coco", "webdataset", "parquet", "folder"]
SUFFIXES: Mapping[Kind, str] = {"webdataset": ".tar", "parquet": ".parquet"}
CAPTION_COLUMNS = ("caption", "text", "prompt")
# What img2dataset writes of the bytes it downloaded (--compute_hash); equal ones are one picture.
HASH_COLUMNS = ("sha256", "md5")
HASH = re.compile(r"[0-9a-f]{32,64}")
COMPRESSED = re.compile(r"\.(tar|parquet)\.(gz|bz2|xz|zst|lz4|br|z)$|\.t(gz|bz2?|xz|zst)$")
MAGIC = re.compile(r"[*?\[{]")
MOST_PATTERNS = 1_000_000
BROKEN_JSON = "a .json that is no JSON object"


@dataclass(frozen=True)
class SourceSpec:
    """What a user says of a source; small and picklable.

    Attributes:
        kind: of the source.
        source: annotations file (coco), folder of pictures (folder), or folder, file or pattern of tars or parquet
            files; local or s3://.
        images: folder or zip with the pictures; empty where the source holds them.
        caption_column, image_column: where a user says which; None to find them by their usual names.
    """

    kind: Kind
    source: str
    images: str = ""
    caption_column: str | None = None
    image_column: str | None = None

    @property
    def root(self) -> str:
        """Under which the files lie that hold pictures; a zip is one itself."""
        if self.kind in ("coco", "folder"):
            return self.images or self.source
        return _root_and_pattern(self.source, SUFFIXES[self.kind])[0]


@dataclass(frozen=True)
class Found:
    """One caption of one picture, as a source has it.

    Attributes:
        picture: what names the picture.
        caption: whatever stands where the caption should, None where nothing does.
        place: where the picture lies; None where there is none.
        facts: what the source says of it, by column.
        problem: why it cannot be taken, where the source knows better than its parts show.
    """

    picture: str
    caption: Any
    place: Place | None
    facts: Mapping[str, Any]
    problem: str = ""


class Source(Protocol):
    """A source that can be read through any number of times."""

    def columns(self) -> Sequence[str]:
        """Names of what it says of a picture, as far as its beginning shows."""

    def tag(self) -> str:
        """Changes when one of its files does."""

    def found(self, columns: Iterable[str]) -> Iterator[Found]:
        """Every caption of every picture in the source's order, those of one picture next to each other.

        Args:
            columns: the facts that are needed.
        """


def files_of(spec: SourceSpec) -> tuple[Storage, tuple[Entry, ...]]:
    """The files that a source names, in the order of their names.

    Args:
        spec: names a folder, one file, or a pattern with `{000..123}`, `*` or `?`; local or s3://.

    Returns:
        the store they lie in, and at least one entry.

    Raises:
        UsageError: there are none.
    """
    place, suffix = spec.source, SUFFIXES[spec.kind]
    root, pattern = _root_and_pattern(place, suffix)
    storage = open_storage(root)
    literal = (MAGIC.split(pattern, maxsplit=1)[0]) if pattern else ""
    there = [entry for entry in storage.list(literal) if not is_hidden(entry.key)]
    found = [entry for entry in there if entry.key.endswith(suffix)]
    if pattern:
        wanted = _expanded(pattern)
        exact, globs = {name for name in wanted if not MAGIC.search(name)}, [*filter(MAGIC.search, wanted)]
        found = [
            entry
            for entry in found
            if entry.key in exact or any(fnmatchcase(entry.key, glob) for glob in globs)
        ]
        absent = sorted(exact - {entry.key for entry in found})
        if absent:
            raise OptionError(f"source = {place!r}: {absent[0]} ({len(absent)} files) is not there")
    if not found:
        raise OptionError(f"source = {place!r}: {_instead(there, spec.kind)}")
    return storage, tuple(found)


def _instead(there: Sequence[Entry], kind: Kind) -> str:
    """What there is instead of files of a kind, and what to do."""
    suffix = SUFFIXES[kind]
    compressed = next((entry.key for entry in there if COMPRESSED.search(entry.key.lower())), "")
    if compressed:
        return f"{compressed} is compressed, and pictures are read where they lie; unpack it to a {suffix} file first"
    for other, option in (("tar", "tars"), ("parquet", "parquet"), ("jpg", "folder"), ("png", "folder")):
        count = sum(entry.key.lower().endswith(f".{other}") for entry in there)
        if count and f".{other}" != suffix:
            return f"no {suffix} file there, but {count:,} .{other} files; give kind {option}"
    if zips := [entry.key for entry in there if entry.key.lower().endswith(".zip")]:
        return f"no {suffix} file there, but {len(zips):,} .zip files, the first {zips[0]!r}; unpack them (unzip)"
    return (
        f"no {suffix} file there (symbolic links that lead out of it are not followed); "
        f"give a folder, a file or a pattern such as folder/{{000..123}}{suffix}"
    )


def _root_and_pattern(place: str, suffix: str) -> tuple[str, str]:
    """A place as a root and what is wanted under it; an empty pattern wants everything."""
    if not place.startswith("s3://") and Path(place).expanduser().is_dir():
        return place, ""
    magic = MAGIC.search(place)
    if not magic and not place.endswith(suffix):
        return place, ""
    root = place[: magic.start() if magic else None].rpartition("/")[0]
    return root or ("/" if place.startswith("/") else "."), place[len(root) :].removeprefix("/")


def _expanded(pattern: str) -> list[str]:
    from braceexpand import braceexpand

    try:
        names = list(islice(braceexpand(pattern, escape=False), MOST_PATTERNS + 1))
    except ValueError as error:
        raise OptionError(f"source: {error}; close each brace") from None
    if len(names) > MOST_PATTERNS:
        raise OptionError(f"source: {pattern!r} names more than {MOST_PATTERNS:,} files; use fewer")
    return names


def tag_of(entries: Iterable[Entry]) -> str:
    """One value for names, sizes and tags of files: modification times locally, ETags on S3."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.key}\0{entry.size}\0{entry.tag}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()


def named(wanted: str | None, usual: Sequence[str], columns: Sequence[str], option: str) -> str | None:
    """A column by the name that a user gave it, or by one of its usual names, in whatever case.

    Args:
        wanted: what the user says.
        usual: names to look for otherwise.
        columns: that are there.
        option: that names it, for errors.

    Returns:
        the column; None where nothing was named and no usual name is there.

    Raises:
        UsageError: the named one is not there.
    """
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise OptionError(
            f"{option} = {wanted!r}: the source has no such column; it has {column_list(columns)}"
        )
    by_case = {column.casefold(): column for column in reversed(columns)}
    return next((by_case[name] for name in usual if name in by_case), None)


def column_list(columns: Sequence[str]) -> str:
    """Columns in an error; their names are the source's."""
    return ", ".join(repr(storable(column)[:60])[1:-1] for column in columns[:40]) or "none"


def picture_hash(facts: Mapping[str, Any], columns: Iterable[str]) -> str:
    """The hash of a picture's bytes that a source tells; empty where it tells none."""
    for column in columns:
        value = facts.get(column)
        if isinstance(value, str) and HASH.fullmatch(value):
            return value
    return ""


def each_caption(value: Any) -> Sequence[Any]:
    """The captions that stand in one field: itself, or those of a list; one that is None where it is empty.

    Bytes are read as UTF-8; what is none comes as lone surrogates, which no caption may hold. A mark of the byte order
    is no part of a caption.
    """
    found = (value or [None]) if isinstance(value, list) else [value]
    texts = [one.decode(errors="surrogateescape") if isinstance(one, bytes) else one for one in found]
    return [text.removeprefix("\ufeff") if isinstance(text, str) else text for text in texts]


def json_facts(text: str) -> Mapping[str, Any] | None:
    """What a .json beside a picture says; None where it is no JSON object."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


class PictureFiles:
    """Pictures that are files under a root, by the names that a source gives them.

    Args:
        storage: the root. No name or link leads out of it.
    """

    def __init__(self, storage: Storage) -> None:
        entries = tuple(storage.list())
        self._sizes = {entry.key: entry.size for entry in entries}
        self._spelled = {composed(key): key for key in self._sizes if not key.isascii()}
        self.tag = tag_of(entries)

    def place(self, name: Any) -> Place | None:
        """Where a picture lies; None for a name that is none, or that leads elsewhere."""
        path = relative_path(name)
        if not path:
            return None
        if path not in self._sizes:
            path = self._spelled.get(composed(path), path)
        return Place(file=path, size=self._sizes.get(path, -1))


def is_hidden(name: str) -> bool:
    """Whether a path is of what systems leave beside people's files: `._0.jpg`, `.DS_Store`, `__MACOSX/…`."""
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith(".") or part in ("__MACOSX", "@eaDir") for part in parts)


def composed(name: str) -> str:
    """A name as most systems spell it: a Mac has an accent as a sign of its own."""
    return unicodedata.normalize("NFC", name)


def relative_path(name: Any) -> str:
    """The path under its root that a picture's name from outside means, as Windows writes it too; empty if none."""
    path = name.replace("\\", "/").removeprefix("./") if isinstance(name, str) else ""
    return path if is_safe(path) else ""


def name_problem(name: Any) -> str:
    """Why a picture's name from outside leads to none; empty where it may lead to one."""
    if not isinstance(name, str) or not name.strip():
        return "no picture named"
    return "" if relative_path(name) else "a name that leads out of the source or is no path"


def is_safe(name: Any) -> bool:
    """Whether a name from outside stays under the root it is taken from, and is text that can be stored."""
    try:
        return isinstance(name, str) and bool(check_key(name)) and bool(name.encode())
    except ValueError:
        return False
