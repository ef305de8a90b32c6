"""What an import found in its source, written down once in the dataset: which item lies where, in plan order.

Items lie in numbered parquet pieces under `source/`; the record, put last and create-only, makes the catalogue exist.
It can always be made again from the source, and must then be the same.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from shards.dataset.dataset import setting_differences
from shards.errors import (
    AlreadyExistsError,
    CorruptShardError,
    DatasetMismatchError,
    NotFoundError,
    OptionError,
)
from shards.format.side_files import read_table, write_table
from shards.sources.filters import Rules, filters_of
from shards.sources.item import Item
from shards.sources.selection import FURTHER, MOST_EXAMPLES, NO_PICTURE, taken
from shards.sources.source import Source, SourceSpec, column_list
from shards.stores.local import open_storage
from shards.stores.store import Storage, json_object, read_json_object

FOLDER = "source/"
RECORD = f"{FOLDER}catalogue.json"
PIECE = 1000  # items; with the longest captions a piece stays under what a side file may have


@dataclass(frozen=True)
class SourceRecord:
    """What a catalogue says of itself.

    Attributes:
        kind: of the source.
        rules: by which items were taken.
        tag: of the source's files when they were read.
        items: how many.
        sha256: over all items, in order; the same wherever the source lies.
        pieces: SHA-256 of each piece.
        left_out: how many captions were not taken, by reason.
        examples: the first pictures of those, by reason.
    """

    kind: str
    rules: Mapping[str, Any]
    tag: str
    items: int
    sha256: str
    pieces: tuple[str, ...]
    left_out: Mapping[str, int]
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Catalogue:
    """A catalogue and the store it lies in; small and picklable while none of it has been read.

    Args:
        storage: root of the dataset, or of the folder it was made in.
        record: what it says of itself.
    """

    def __init__(self, storage: Storage, record: SourceRecord) -> None:
        self.storage, self.record = storage, record
        self._read: tuple[int, list[Item]] = (-1, [])

    @classmethod
    def open(cls, storage: Storage) -> "Catalogue | None":
        """The one of a dataset; None where there is none yet.

        Raises:
            CorruptShardError: it is corrupt.
        """
        try:
            content = read_json_object(storage, RECORD)
        except NotFoundError:
            return None
        except CorruptShardError as error:
            raise _broken(storage, RECORD, error) from None
        try:
            record = SourceRecord(**{**content, "pieces": tuple(content["pieces"])})
            if record.items < 0 or len(record.pieces) != -(-record.items // PIECE):
                raise ValueError(f"{record.items} items in {len(record.pieces)} pieces")
        except (KeyError, TypeError, ValueError) as error:
            raise _broken(storage, RECORD, error) from None
        return cls(storage, record)

    def __len__(self) -> int:
        return self.record.items

    def item(self, index: int) -> Item:
        """One item by its place in the plan; reads the piece it lies in.

        Raises:
            CorruptShardError: the piece is not what the record says.
        """
        number, place = divmod(index, PIECE)
        if self._read[0] != number:
            self._read = number, self._piece(number)
        return self._read[1][place]

    def items(self, count: int) -> tuple[Item, ...]:
        """The first items; CorruptShardError as for one."""
        pieces = (self._piece(number) for number in range(-(-count // PIECE)))
        return tuple(islice((item for piece in pieces for item in piece), count))

    def _piece(self, number: int) -> list[Item]:
        key = piece_key(number)
        try:
            rows = read_table(self.storage, key, sha256=self.record.pieces[number]).rows
            items = [Item.from_row(row) for row in rows]
        except (KeyError, IndexError, CorruptShardError) as error:
            raise _broken(self.storage, key, error) from None
        return items

    def put(self, storage: Storage) -> None:
        """Put it under a dataset's root, unless one is there; the record last."""
        if storage.stat(RECORD) is not None:
            return
        for number in range(len(self.record.pieces)):
            storage.put_bytes(piece_key(number), self.storage.get_bytes(piece_key(number)))
        with suppress(AlreadyExistsError):
            storage.put_bytes(RECORD, json_object(asdict(self.record)), create_only=True)

    def keys(self) -> set[str]:
        """Everything that it has under its root."""
        return {RECORD, *(piece_key(number) for number in range(len(self.record.pieces)))}

    def problems(self) -> Iterator[tuple[str, str]]:
        """Keys of its pieces that are not what the record says, and what is wrong."""
        for number in range(len(self.record.pieces)):
            try:
                self._piece(number)
            except CorruptShardError as error:
                yield piece_key(number), str(error)


def piece_key(number: int) -> str:
    """Where a piece lies."""
    return f"{FOLDER}catalogue-{number:06d}.parquet"


def catalogued(storage: Storage, spec: SourceSpec, rules: Rules, folder: Path) -> Catalogue:
    """The catalogue of a source, as the dataset has it, or made now.

    Args:
        storage: the dataset's root; it is only read.
        spec: the source.
        rules: what is taken of it.
        folder: empty and local, for a catalogue under construction.

    Returns:
        the dataset's own where the source is still the same, else one in the folder.

    Raises:
        DatasetMismatchError: the dataset's was made by other rules; names each with both values.
        UsageError: the source has changed, lacks a column, or holds nothing to take.
    """
    there, source = Catalogue.open(storage), open_source(spec)
    as_stored = json.loads(json.dumps(asdict(rules)))
    if there is not None:
        theirs = {**there.record.rules, "kind": there.record.kind}
        if differences := list(setting_differences(theirs, {**as_stored, "kind": spec.kind})):
            raise DatasetMismatchError(
                f"{storage.root} was made with other settings: {'; '.join(differences)}. Use those, or another root"
            )
        if there.record.tag == source.tag():
            return there
    made = _made(source, spec.kind, rules, folder)
    if there is not None:
        # Other times of modification, as a copy has, do not matter where the same is found.
        if made.record.sha256 != there.record.sha256 and not _completes(made, there):
            raise OptionError(
                f"source: has changed since {storage.root} was begun: it then held {len(there)} items to take, "
                f"now {len(made)}, or others; give the source as it was, or another "
                "output (a training learns from both with also)"
            )
        return there
    return made


def _completes(made: Catalogue, there: Catalogue) -> bool:
    """Whether a source differs from its catalogue only in that files are there which were missing."""
    if len(made) != len(there):
        return False
    pairs = zip(there.items(len(there)), made.items(len(made)), strict=True)
    return all(old.is_completed_by(new) for old, new in pairs)


def open_source(spec: SourceSpec) -> Source:
    """The source behind a specification.

    Raises:
        UsageError: it is not there, not of its kind, or lacks what is named.
    """
    # Each kind's own libraries are imported with it.
    if spec.kind == "coco":
        from shards.sources.coco import CocoSource

        return CocoSource(spec)
    if spec.kind == "folder":
        from shards.sources.folder import FolderSource

        return FolderSource(spec)
    if spec.images and spec.kind == "webdataset":
        raise OptionError(f"images = {spec.images!r}: tars hold their pictures themselves; leave it out")
    if spec.kind == "webdataset":
        from shards.sources.tars import TarSource

        return TarSource(spec)
    from shards.sources.parquet import ParquetSource

    return ParquetSource(spec)


def _made(source: Source, kind: str, rules: Rules, folder: Path) -> Catalogue:
    """Read a source through and write its catalogue to a local folder."""
    filters = filters_of(rules, source.columns())
    columns = {column for each in filters for column in each.columns}
    left_out: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    items = taken(source.found(columns), rules, filters, left_out, examples)
    storage = open_storage(str(folder))
    digest, count = hashlib.sha256(), 0
    pieces: list[str] = []
    for piece in _pieces(items):
        rows = [item.to_row() for item in piece]
        for row in rows:
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        path = folder / piece_key(len(pieces))
        path.parent.mkdir(exist_ok=True)
        write_table(path, rows)
        pieces.append(hashlib.sha256(path.read_bytes()).hexdigest())
        count += len(rows)
    if not count:
        raise OptionError(
            "source: nothing to take; left out: "
            f"{told_left_out(left_out, examples) or 'nothing, it is empty'}{_remedy(left_out, source.columns())}"
        )
    record = SourceRecord(
        kind=kind,
        rules=asdict(rules),
        tag=source.tag(),
        items=count,
        sha256=digest.hexdigest(),
        pieces=tuple(pieces),
        left_out=dict(sorted(left_out.items())),
        examples=dict(sorted(examples.items())),
    )
    return Catalogue(storage, record)


def _pieces(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while piece := list(islice(rest, PIECE)):
        yield piece


def told_left_out(left_out: Mapping[str, int], examples: Mapping[str, Sequence[str]]) -> str:
    """What was not taken, as words: the commonest reason first, each with its first pictures."""
    told = []
    for reason, count in sorted(left_out.items(), key=lambda each: (-each[1], each[0])):
        names = "" if reason == FURTHER else ", ".join(examples.get(reason, ()))
        more = ", …" if count > len(examples.get(reason, ())) >= MOST_EXAMPLES else ""
        told.append(f"{count:,} {reason}" + (f" ({' '.join(names.split())}{more})" if names else ""))
    return ", ".join(told)


def _remedy(left_out: Counter[str], columns: Sequence[str]) -> str:
    """What to do where nothing could be taken, by its commonest reason."""
    commonest = max(left_out, key=lambda reason: left_out[reason], default="")
    if commonest == "caption missing":
        return (
            "; captions are NAME.txt or NAME.caption for NAME.jpg, or a column: name it with caption_column "
            f"(there: {column_list(columns)})"
        )
    if commonest == NO_PICTURE:
        return "; a picture and its caption have one name: NAME.jpg, NAME.txt"
    if "not text" in commonest:
        return f"; name a column of text with caption_column (there: {column_list(columns)})"
    return "; convert the text to UTF-8" if commonest == "caption not UTF-8" else ""


def _broken(storage: Storage, key: str, error: object) -> CorruptShardError:
    told = str(error).removesuffix("; run repair, then build")
    return CorruptShardError(
        f"{storage.root}/{key} is corrupt: {told}; remove {FOLDER} there and run the import again"
    )
