"""What pictures show of the references they are drawn from, by method: in the miniature world, where pixels tell."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from projector.data.pairs import PairSource
from projector.evaluation.attributes import attribute_scores
from projector.evaluation.intervals import GroupSums, against_best, resampled
from projector.inference.image_generator import ImageGenerator
from shards.scenes.captions import scene_named
from shards.sources.picture import open_picture

FIDELITY = "fidelity"
PICTURES = 32  # of each method
TOGETHER = 8


def drawn_fidelity(
    wholes: Mapping[str, Sequence[Tensor]], pairs: PairSource, artist: ImageGenerator
) -> dict[str, GroupSums]:
    """Draw PICTURES pairs under what each method makes of them, from their own noise, and read what is shown.

    Args:
        wholes: by method a conditioning (R, D) for each pair, of as many as may be drawn; the first of them whose
            captions are of scenes are.
        pairs: with pictures.
        artist: the model that made their pictures.

    Returns:
        by method and over groups, fidelity (`compare`'s) over pictures: 1 where each shows all of its reference. Empty
        where no caption is of a scene.
    """
    assert pairs.pictures is not None
    assert pairs.conditionings is not None
    count = min(len(pairs), *map(len, wholes.values()))
    things = {
        place: len(scene.things)
        for place, item in enumerate(pairs.conditionings(0, count))
        if (scene := scene_named(item.caption)) is not None
    }
    places = list(things)[:PICTURES]
    if not places:
        return {}
    groups = [pair.group for pair in pairs.read(0, count)]
    shown = list(pairs.pictures(0, count))
    references = {place: open_picture(shown[place].data) for place in places}
    found = {}
    for name, of_method in wholes.items():
        by_group: dict[str, list[float]] = {}
        for start in range(0, len(places), TOGETHER):
            part = places[start : start + TOGETHER]
            pictures = artist.generate(
                [of_method[place] for place in part], [shown[place].seed for place in part]
            )
            for place, picture in zip(part, pictures, strict=True):
                (score,) = attribute_scores([picture], "", references[place], things[place])
                sums = by_group.setdefault(groups[place], [0.0, 0.0])
                sums[0], sums[1] = sums[0] + score["fidelity"], sums[1] + 1
        found[name] = GroupSums.of(by_group)
    return found


def put_fidelity(
    methods: Mapping[str, dict[str, Any]], fidelity: Mapping[str, GroupSums], projectors: Collection[str]
) -> None:
    """Write each method's fidelity, its interval and its difference to the best baseline beside its other figures.

    Args:
        methods: figures by method, as in eval.json.
        fidelity: of `drawn_fidelity`.
        projectors: the methods that may be called better than the others.
    """
    wrong = {name: GroupSums(shown.under - shown.over, shown.under) for name, shown in fidelity.items()}
    for name, difference in against_best(wrong, projectors).items():
        # Less of it wrong is more of it shown.
        difference["difference"] = 0.0 - difference["difference"]  # and not -0.0
        if "interval" in difference:
            difference["interval"] = [0.0 - end for end in reversed(difference["interval"])]
        methods[name].setdefault("against", {})[FIDELITY] = difference
    for name, found in resampled(fidelity).items():
        methods[name].setdefault("intervals", {})[FIDELITY] = found.interval()
    for name, shown in fidelity.items():
        methods[name][FIDELITY] = shown.value
