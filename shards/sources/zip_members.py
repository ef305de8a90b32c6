"""Names of a zip's members, as annotations name pictures: whole, or without the folders that they stand in."""

import zipfile
from collections.abc import Iterable, Sequence

from shards.sources.source import composed, is_hidden, is_safe


class ZipMembers:
    """The members of a zip that are files of people, by name.

    Args:
        members: all of the zip's.
    """

    def __init__(self, members: Iterable[zipfile.ZipInfo]) -> None:
        self._by_base: dict[str, list[zipfile.ZipInfo]] = {}
        for member in members:
            if not member.is_dir() and not is_hidden(member.filename) and is_safe(member.filename):
                base = composed(member.filename).rpartition("/")[2]
                self._by_base.setdefault(base, []).append(member)

    def of(self, name: str) -> Sequence[zipfile.ZipInfo]:
        """Those that a name may mean: the one of the whole name, else all that end in it."""
        name = composed(name)
        same = self._by_base.get(name.rpartition("/")[2], [])
        whole = [member for member in same if composed(member.filename) == name]
        return whole or [member for member in same if composed(member.filename).endswith(f"/{name}")]
