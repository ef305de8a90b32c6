"""What an import is planned from: one caption of one picture, and where in its source the picture lies."""

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

from shards.format.side_files import Row


@dataclass(frozen=True)
class Place:
    """Where a picture's bytes lie in a source.

    Attributes:
        file: key of the file under the source's root, or under the pictures' root: of a picture itself, of a tar, or
            of a parquet file.
        member: name in a zip; empty elsewhere.
        offset: of the first byte in a tar; 0 elsewhere.
        size: in bytes; -1 where the source has no such picture, or does not say.
        row: in a parquet file that holds the bytes; -1 elsewhere.
    """

    file: str
    member: str = ""
    offset: int = 0
    size: int = -1
    row: int = -1

    def __str__(self) -> str:
        inner = f", member {self.member}" if self.member else ""
        inner += f", row {self.row}" if self.row >= 0 else ""
        return f"{self.file}{inner}" if self.file else self.member


@dataclass(frozen=True)
class Item:
    """One caption of one picture.

    Attributes:
        picture: what names the picture: all its captions stand in one split.
        caption: exactly as the source has it.
        place: where the picture lies.
    """

    picture: str
    caption: str
    place: Place

    content = style = subject = ""  # a source says nothing about the prompt space

    @property
    def identity(self) -> str:
        """The sample's id."""
        return imported_id(self.picture, self.caption)

    @property
    def group(self) -> str:
        """What shares its split."""
        return self.picture

    def is_completed_by(self, later: "Item") -> bool:
        """Whether another reading of the source found the same, or what was a missing file at this one."""
        if self == later:
            return True
        was_missing = self.place.size < 0 and self.place.row < 0
        # A zip's member that was missing has the name that the annotations give it, without folders.
        as_then = replace(later.place, size=-1, member=self.place.member)
        return was_missing and self == replace(later, place=as_then)

    def to_row(self) -> Row:
        """As it stands in the catalogue."""
        return {"picture": self.picture, "caption": self.caption, **asdict(self.place)}

    @classmethod
    def from_row(cls, row: Row) -> "Item":
        """From the catalogue; KeyError where a column is missing."""
        place = {name: row[name] for name in ("file", "member", "offset", "size", "row")}
        return cls(row["picture"], row["caption"], Place(**place))


def imported_id(picture: str, caption: str) -> str:
    """First 16 hex digits of SHA-256 over what names the picture, a zero byte, and the caption."""
    return hashlib.sha256(f"{picture}\0{caption}".encode()).hexdigest()[:16]


def storable(text: Any) -> str:
    """A name from outside as UTF-8 can hold it: lone surrogates, as of names that are no UTF-8, are written out."""
    return str(text).encode(errors="backslashreplace").decode()
