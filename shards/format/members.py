"""The members of a shard's tar, read by one set of limits whoever reads them, and whoever wrote them."""

import json
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import IO, Any

from shards.format.commit import Commit
from shards.format.sample import IMAGE_FORMATS, ImageFormat

MAX_MEMBER = 1 << 30  # bytes; a 2048² sample with six layers is under 200 MB, a larger claim is a bomb
MAX_TEXT = 1 << 20  # bytes of a .txt or .json member
MEMBER_SUFFIXES = ("json", "safetensors", "txt")
METADATA = {
    "id": str,
    "caption": str,
    "categories": dict,
    "seed": int,
    "tokens": dict,
    "layers": list,
    "text_modes": list,
}


@dataclass(frozen=True)
class Member:
    """A member of a tar.

    Attributes:
        key: of its sample.
        suffix: behind the key's dot.
        place: offset and size of its content in the tar, in bytes.
        content: its bytes; empty where they were not wanted or the header is wrong.
        problem: what is wrong with its header; empty when nothing is.
    """

    key: str
    suffix: str
    place: tuple[int, int]
    content: bytes
    problem: str


class _PlainHeader(tarfile.TarInfo):
    """A header that stands for itself: shards are ustar, so no other header may change what the next one says.

    tarfile would read extended headers whole and believe the sizes and sparse maps in them.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0:
            raise tarfile.ReadError("a member of negative size")
        header: tarfile.TarInfo = self._proc_builtin(archive)  # type: ignore[attr-defined]
        return header


def members(stream: IO[bytes], commit: Commit, skip: Collection[str] = ()) -> Iterator[Member]:
    """The members of a shard, one at a time; one that claims more than the tar can hold is the last.

    Args:
        stream: the tar, from its beginning.
        commit: of the shard.
        skip: suffixes whose content is not wanted.

    Raises:
        ValueError: the tar is broken.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=tarfile.RECORDSIZE, tarinfo=_PlainHeader) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                problem = _header_problem(member, commit)
                content = b""
                if not problem and suffix not in skip:
                    file = tar.extractfile(member)
                    assert file is not None, "headers were checked to be files"
                    content = file.read()
                yield Member(key, suffix, (member.offset_data, member.size), content, problem)
                if problem and member.size > commit.bytes:
                    return  # to skip what it claims to hold would take for ever
                tar.members = []  # type: ignore[attr-defined]  # or it keeps them all
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ValueError(f"the tar is broken: {error}") from None


def read_metadata(data: bytes) -> dict[str, Any]:
    """The content of a `.json` member; ValueError when it is not what every sample's holds."""
    try:
        metadata = json.loads(data, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(metadata, dict):
        raise ValueError("no JSON object")
    for name, kind in METADATA.items():
        if not isinstance(metadata.get(name), kind):
            raise ValueError(f"its {name!r} is {metadata.get(name)!r:.50}, expected {kind.__name__}")
    int(metadata["id"], 16)
    if "content" not in metadata["categories"]:
        raise ValueError("its categories lack 'content'")
    return metadata


def require_whole(suffixes: Collection[str]) -> ImageFormat:
    """The picture's suffix among those of a sample's members; ValueError when they are not a sample's four."""
    images: list[ImageFormat] = [suffix for suffix in IMAGE_FORMATS if suffix in suffixes]
    if len(images) != 1 or set(suffixes) != {*MEMBER_SUFFIXES, *images}:
        raise ValueError(
            f"has members {', '.join(sorted(suffixes))}; a sample has json, safetensors, txt and one image"
        )
    return images[0]


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _header_problem(member: tarfile.TarInfo, commit: Commit) -> str:
    """What is wrong with a member before its content is read; empty when nothing is."""
    stem, _, suffix = member.name.partition(".")
    prefix = f"{commit.name}-"
    if (
        "/" in member.name
        or "\\" in member.name
        or not stem.startswith(prefix)
        or not stem[len(prefix) :].isdigit()
    ):
        return f"member {member.name!r} does not belong here"
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return f"member {member.name!r} is no plain file (type {member.type!r})"
    if suffix not in (*MEMBER_SUFFIXES, *IMAGE_FORMATS):
        return f"member {member.name!r} is not one of a sample's four"
    if member.size > min(MAX_TEXT if suffix in ("json", "txt") else MAX_MEMBER, commit.bytes):
        return f"member {member.name!r} claims {member.size:,} bytes in a tar of {commit.bytes:,}"
    return ""
