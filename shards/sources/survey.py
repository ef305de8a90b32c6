"""What can be known of an import's pictures before a model loads: those that are missing, and a look at a few."""

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import PurePosixPath

from shards.errors import OptionError
from shards.sources.item import Item, Place
from shards.sources.picture import MAX_BYTES, NOT_READ, ImageError, kept, open_picture
from shards.sources.picture_bytes import MISSING, Originals, open_originals
from shards.sources.selection import LONGEST_NAME, MOST_EXAMPLES
from shards.sources.source import SourceSpec

LOOKED_AT = 16  # pictures that are opened
ASKED_FOR = 100  # missing pictures that are looked for once more
FEW = 20  # samples below which a share says little; as in a run


def survey(spec: SourceSpec, items: Sequence[Item], max_side: int, most: float) -> str:
    """Look at the pictures of a plan.

    Args:
        spec: the source.
        items: of the plan.
        max_side: as for `kept`.
        most: share of them that may fail.

    Returns:
        a line for people about those that will fail; empty where none is known to.

    Raises:
        UsageError: so many will fail that the run would be stopped; names the commonest reason and three pictures.
    """
    known: dict[str, list[Item]] = {}
    with closing(open_originals(spec)) as originals:
        sound = []
        absent = _still_absent(originals, items)
        unread = _unread(originals, [item for item in items if item.place not in absent])
        for item in items:
            reason = _known_problem(item, absent) or unread.get(_suffix(item.place), "")
            if reason:
                known.setdefault(reason, []).append(item)
            else:
                sound.append(item)
        bad = len(items) - len(sound)
        if bad > (most * len(items) if len(items) >= FEW else len(items) // 2):
            raise OptionError(
                f"{_option(spec)}: {bad:,} of {len(items):,} pictures cannot be used: {_told(known)}; "
                f"{_remedy(spec, known)}"
            )
        looked_at: dict[str, list[Item]] = {}
        few = _spread(sound)
        for item in few:
            try:
                kept(originals.read(item.place), max_side)
            except ImageError as error:
                reason = str(error).removeprefix(f"{item.place}: ")
                looked_at.setdefault(reason, []).append(item)
    failed = sum(map(len, looked_at.values()))
    if failed and failed == len(few):
        raise OptionError(
            f"{_option(spec)}: none of the {failed} pictures looked at can be used: {_told(looked_at)}; "
            "give others, or convert them"
        )
    lines = [f"{bad:,} of {len(items):,} pictures cannot be used: {_told(known)}"] if known else []
    if failed:
        lines.append(f"of {len(few)} pictures looked at {failed} cannot be used: {_told(looked_at)}")
    return "; ".join(lines)


def _still_absent(originals: Originals, items: Sequence[Item]) -> Collection[Place]:
    """Places of the pictures that were missing when the source was read and are by now.

    Where none of the first hundred has come, none of the others is asked for: a store takes a request for each.
    """
    missing = [item.place for item in items if item.place.row < 0 and item.place.size < 0]
    first = [place for place in missing[:ASKED_FOR] if originals.size(place) < 0]
    if len(first) == len(missing[:ASKED_FOR]):
        return frozenset(missing)
    return frozenset([*first, *(place for place in missing[ASKED_FOR:] if originals.size(place) < 0)])


def _unread(originals: Originals, items: Sequence[Item]) -> dict[str, str]:
    """Suffixes of formats that are not read and why, where a few pictures of that name are what it says."""
    named: dict[str, list[Item]] = {}
    for item in items:
        if (suffix := _suffix(item.place)) in NOT_READ:
            named.setdefault(suffix, []).append(item)
    return {
        suffix: f"a format that is not read ({suffix})"
        for suffix, those in named.items()
        if not any(_is_picture(originals, item) for item in _spread(those))
    }


def _is_picture(originals: Originals, item: Item) -> bool:
    try:
        open_picture(originals.read(item.place))
    except ImageError:
        return False
    return True


def _suffix(place: Place) -> str:
    return PurePosixPath(place.member or place.file).suffix.lower()


def _known_problem(item: Item, absent: Collection[Place]) -> str:
    """What the catalogue knows against a picture."""
    place = item.place
    if place in absent:
        return MISSING
    if place.size == 0 and place.row < 0:
        return "empty"
    return f"larger than {MAX_BYTES:,} bytes" if place.size > MAX_BYTES else ""


def _spread(items: Sequence[Item]) -> Sequence[Item]:
    """A few items of all over a source; of parquet, whose rows are read in a stream, the first ones."""
    if len(items) <= LOOKED_AT or items[0].place.row >= 0:
        return items[:LOOKED_AT]
    return [items[number * len(items) // LOOKED_AT] for number in range(LOOKED_AT)]


def _told(reasons: dict[str, list[Item]]) -> str:
    """The commonest reason first, with its first three pictures."""
    counts = Counter({reason: len(items) for reason, items in reasons.items()})
    told = []
    for reason, count in counts.most_common(MOST_EXAMPLES):
        names = [" ".join(item.picture.split())[:LONGEST_NAME] for item in reasons[reason][:MOST_EXAMPLES]]
        told.append(f"{reason} ({', '.join(names)}{', …' if count > len(names) else ''})")
    return ", ".join(told)


def _option(spec: SourceSpec) -> str:
    name, value = ("images", spec.images) if spec.images else ("source", spec.source)
    return f"{name} = {value!r}"


def _remedy(spec: SourceSpec, known: dict[str, list[Item]]) -> str:
    if any("not read" in reason for reason in known):
        return "convert them"
    if MISSING not in known:
        return "download them again"
    option = "images" if spec.images else "source"
    return f"correct {option}, or download them and run this again"
