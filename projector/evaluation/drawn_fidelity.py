"""What pictures show of the references they are drawn from, by method: in the miniature world, where pixels tell."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from projector.data.pairs import PairSource
from projector.evaluation.attributes import attribute_scores
from projector.evaluation.intervals import GroupSums, against_best, resampled
from projector.models.image_generator import ImageGenerator
from shards.scenes.captions import scene_named
from shards.sources.picture import open_picture

FIDELITY = "fidelity"
PICTURES = 32  # of each method
TOGETHER = 8


def drawn_fidelity(
    wholes: Mapping[str, Sequence[Tensor]], pairs: PairSource, artist: ImageGenerator
) -> dict[str, GroupSums]:
    """Draw the first PICTURES pairs under what each method makes of them, from their own noise, and read what is shown.

    Args:
        wholes: by method a conditioning (R, D) for each pair; those of pairs after the first PICTURES are left out.
        pairs: of scenes, with pictures.
        artist: the model that made their pictures.

    Returns:
        by method and over groups, fidelity (`compare`'s) over pictures: 1 where each shows all of its reference.
    """
    assert pairs.pictures is not None
    assert pairs.conditionings is not None
    count = min(PICTURES, len(pairs))
    groups = [pair.group for pair in pairs.read(0, count)]
    things = [
        len(scene.things) if (scene := scene_named(item.caption)) else 1
        for item in pairs.conditionings(0, count)
    ]
    shown = list(pairs.pictures(0, count))
    references = [open_picture(item.data) for item in shown]
    found = {}
    for name, of_method in wholes.items():
        by_group: dict[str, list[float]] = {}
        for start in range(0, count, TOGETHER):
            part = range(start, min(start + TOGETHER, count))
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
        difference["difference"] *= -1
        if "interval" in difference:
            difference["interval"] = [-end for end in reversed(difference["interval"])]
        methods[name].setdefault("against", {})[FIDELITY] = difference
    for name, found in resampled(fidelity).items():
        methods[name].setdefault("intervals", {})[FIDELITY] = found.interval()
    for name, shown in fidelity.items():
        methods[name][FIDELITY] = shown.value
