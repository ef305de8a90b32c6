"""How alike pictures are, without a further model: by what the VL model reads in them, and by thumbnails.

N pictures, D hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from projector.comparison.scores import interval

THUMBNAIL = 16  # pixels of a side, for likeness of layout and colour


@dataclass(frozen=True)
class Looks:
    """Some pictures as they are compared: (N, D) means of VL tokens, and (N, pixels) thumbnails; float32."""

    vl: Tensor
    pixels: Tensor

    @classmethod
    def of(cls, vl: Tensor, pictures: Sequence[Image.Image]) -> "Looks":
        """Of pictures whose VL tokens have these means."""
        size = (THUMBNAIL, THUMBNAIL)
        small = [np.asarray(picture.resize(size, Image.Resampling.BOX)) for picture in pictures]
        return cls(vl, torch.from_numpy(np.stack(small)).float().flatten(1))

    def of_these(self, numbers: Sequence[int]) -> "Looks":
        """Of some of them."""
        return Looks(self.vl[list(numbers)], self.pixels[list(numbers)])


def likeness(drawn: Looks, wanted: Looks, references: Looks, numbers: Sequence[int]) -> dict[str, Any]:
    """How alike drawn pictures and what they should look like are.

    All are standardised by the references, so that what these share does not count; then 1 is the same picture, and
    about 0 another one.

    Args:
        drawn: of n pictures.
        wanted: of n pictures.
        references: of all N.
        numbers: of the n pictures' own references.

    Returns:
        `vl` and `pixels`: cosines, as means with an interval; `recognised`: share whose most similar reference is
        their own, a tie counted as a half; `each`: the cosines by picture.
    """
    each = {
        kind: F.cosine_similarity(_standardised(a, by), _standardised(b, by)).tolist()
        for kind, a, b, by in (
            ("vl", drawn.vl, wanted.vl, references.vl),
            ("pixels", drawn.pixels, wanted.pixels, references.pixels),
        )
    }
    return {
        **{kind: interval(values) for kind, values in each.items()},
        "recognised": _recognised(drawn.vl, references.vl, numbers),
        "each": {kind: [round(value, 4) for value in values] for kind, values in each.items()},
    }


def _recognised(drawn: Tensor, references: Tensor, numbers: Sequence[int]) -> float:
    by = _standardised(references, references)
    alike = F.cosine_similarity(_standardised(drawn, references)[:, None], by[None], dim=-1)
    places = torch.tensor(list(numbers))[:, None]
    own = alike.gather(1, places)
    others = torch.ones_like(alike).scatter_(1, places, 0.0).bool()
    beaten = ((alike > own) & others).any(1)
    tied = ((alike == own) & others).any(1) & ~beaten
    return float((1.0 - beaten.float() - 0.5 * tied.float()).mean())


def _standardised(values: Tensor, by: Tensor) -> Tensor:
    spread = by.std(0, correction=0)
    return (values - by.mean(0)) / spread.clamp(min=1e-6 * float(spread.mean()) or 1e-6)
