"""A second thing to learn for the transformer: say from picture tokens halfway what the caption wants there.

A picture of noise tells nothing, so the attributes can only come from the caption: attention learns to fetch them
long before the error of the velocities, most of which is noise, would teach it to. The heads are not kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.scenes.draw import SIDE, centre_of
from shards.scenes.scene import ATTRIBUTES, Scene

OF_THINGS = ("shape", "colour", "size", "pattern")
THINGS = 2
GRID = 4  # picture tokens along a side
REACH = 10.0  # pixels: how far from a thing's middle tokens count, as a standard deviation
NOTHING = -100  # what cross_entropy leaves out


def labels_of(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """(N, 1 + 2 * 4) int64 values, background first, and (N, 1 + 2, 16) shares of tokens to read them from."""
    labels = torch.full((len(scenes), 1 + THINGS * len(OF_THINGS)), NOTHING)
    shares = torch.full((len(scenes), 1 + THINGS, GRID * GRID), 1 / GRID**2)
    middles = (torch.arange(GRID) + 0.5) * SIDE / GRID
    for row, scene in enumerate(scenes):
        labels[row, 0] = ATTRIBUTES["background"].index(scene.background)
        for number, thing in enumerate(scene.things):
            x, y = centre_of(thing.place, len(scene.things))
            distance = (middles[:, None] - y) ** 2 + (middles[None] - x) ** 2
            shares[row, 1 + number] = torch.softmax(-distance.flatten() / (2 * REACH**2), 0)
            for place, name in enumerate(OF_THINGS):
                labels[row, 1 + number * len(OF_THINGS) + place] = ATTRIBUTES[name].index(
                    getattr(thing, name)
                )
    return labels, shares


class AttributeHeads(nn.Module):
    """Linear heads on the picture tokens that a block of the transformer puts out."""

    def __init__(self, block: nn.Module, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(ATTRIBUTES[name])) for name in ("background", *OF_THINGS)}
        )
        self._tokens: list[Tensor] = []
        block.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self._tokens[:] = [output]

    def forward(self, labels: Tensor, shares: Tensor) -> Tensor:
        """Mean cross-entropy of what the block's last call put out.

        Args:
            labels: (B, 9) of `labels_of`, NOTHING where the caption does not say.
            shares: (B, 3, 16) of `labels_of`.
        """
        tokens = self._tokens.pop()[:, : GRID * GRID].float()
        pooled = shares @ F.rms_norm(tokens, tokens.shape[-1:])
        losses = [F.cross_entropy(self.heads["background"](pooled[:, 0]), labels[:, 0])]
        for place, name in enumerate(OF_THINGS, 1):
            found = self.heads[name](pooled[:, 1:]).flatten(0, 1)
            losses.append(F.cross_entropy(found, labels[:, place :: len(OF_THINGS)].flatten()))
        return torch.stack(losses).mean()
