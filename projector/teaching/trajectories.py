"""What the frozen image model did for some pairs: the velocities of each step from their own noise.

B batch, N pairs, K steps of sampling, C latent channels, h and w latent pixels.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from projector.data.pairs import Conditioning
from projector.inference.frozen_transformer import FrozenTransformer, padded_length
from projector.teaching.keeper import Keeper

SAMPLED_TOGETHER = 32  # pictures; more keep no device busier
SORTED_TOGETHER = 512  # pairs looked at to find some of one length
JUDGED_AT = (0.9, 0.6)  # noise levels whose velocity error ranks projectors as their pictures do


class Trajectories:
    """What the frozen model did for some pairs.

    Args:
        model: the frozen model.
        conditionings: of the pairs, in their order.
        count: how many.
        together: pictures to sample at once, at most; None: as many as gain anything.
        label: what progress lines call them; "" for none.
        folder: local folder for what does not fit into memory.
    """

    def __init__(
        self,
        model: FrozenTransformer,
        conditionings: Iterator[Conditioning],
        count: int,
        *,
        together: int | None = None,
        label: str = "",
        folder: str | None = None,
    ) -> None:
        self._model = model
        self._together = min(SAMPLED_TOGETHER, together or SAMPLED_TOGETHER)
        self._kept = Keeper(count, model.steps, model.numbers, model.dtype, folder, label)
        self.seeds: list[int] = []
        while block := list(islice(conditionings, SORTED_TOGETHER)):
            for velocities in self._sampled(block):
                self._kept.append(velocities)
            self.seeds += [item.seed for item in block]
        self._rows = self._kept.closed()

    def at(self, pairs: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Where some pairs' pictures were before a step, and how they went on.

        Args:
            pairs: (B,) int64 places of pairs, on the CPU.
            steps: (B,) int64 steps, from 0, on the CPU.

        Returns:
            (B, C, h, w) float32 states, and (B, C, h, w) float32 velocities.
        """
        noise = self._model.noise([self.seeds[pair] for pair in pairs.tolist()])
        velocities, _ = self._rows.gather(pairs)
        velocities = velocities.float().view(len(pairs), self._model.steps, *noise.shape[1:]).to(noise.device)
        moved = steps.to(noise.device)
        states = self._model.states(noise, velocities, moved)
        return states, velocities[torch.arange(len(pairs), device=noise.device), moved]

    def _sampled(self, block: Sequence[Conditioning]) -> list[Tensor]:
        """(K, C * h * w) each; pictures of one padded length are sampled together."""
        found: dict[int, Tensor] = {}
        order = sorted(range(len(block)), key=lambda place: padded_length(len(block[place].text)))
        for start in range(0, len(order), self._together):
            part = order[start : start + self._together]
            velocities = self._model.trajectory(
                [block[place].text for place in part], [block[place].seed for place in part]
            )
            found |= {place: row.flatten(1) for place, row in zip(part, velocities, strict=True)}
            self._kept.report(len(self.seeds) + len(found))
        return [found[place] for place in range(len(block))]


def judged_steps(sigmas: Tensor) -> list[int]:
    """The steps of a sampling whose noise levels are nearest to JUDGED_AT.

    Args:
        sigmas: (K + 1,) noise levels, the last one 0.
    """
    return sorted({int((sigmas[:-1] - level).abs().argmin()) for level in JUDGED_AT})
