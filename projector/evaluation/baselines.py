"""What a projector has to beat: ways of making text-like tokens of VL tokens that need little or no training.

V vision-language tokens, P predicted tokens, D hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from projector.closed_form.ridge import fit_ridge
from projector.data.align import Alignment
from projector.data.packed import Held, statistics_of
from projector.data.pairs import PairSource
from projector.data.world import World
from projector.evaluation.metrics import OUTLIER_RATIO
from projector.evaluation.moments import Float64
from projector.network.architectures import ProjectorNetwork, Shape, safe_std
from shards.format.statistics import RunningStatistics

CLIP_SIGMA = 3.0  # where the guide's family clips before it scales


@dataclass(frozen=True)
class Method:
    """Something that makes text-like tokens of VL tokens."""

    apply: Callable[[Tensor], Tensor]
    """(V, D) raw to (P, D) raw."""
    keeps_positions: bool = True
    """Whether prediction i belongs to VL token i."""


@dataclass(frozen=True)
class TrainStatistics:
    """What the baselines know: statistics of the training split's tokens, template left out."""

    inputs: RunningStatistics
    """Of the VL tokens."""
    targets: RunningStatistics
    """Of the caption's tokens."""

    @classmethod
    def of(cls, pairs: PairSource) -> "TrainStatistics":
        """One pass over the training pairs."""
        reference = cls(RunningStatistics(pairs.width), RunningStatistics(pairs.width))
        for pair in pairs:
            reference.inputs.update(pair.vl.float().numpy())
            reference.targets.update(pair.text.float().numpy())
        return reference

    @property
    def target_std(self) -> Float64:
        """(D,) the target's standard deviation, 1 where it never moves."""
        return safe_std(torch.from_numpy(self.targets.std())).numpy()

    def baselines(self) -> dict[str, Method]:
        """The methods that need no training, by name.

        `no_input` is the mean caption token; `global_scale` and `per_dim_norm` bring the standard deviation, of
        all numbers together or of each dimension with its mean, to the target's; `per_dim_clip` limits each
        dimension to 3 sigma before. `mask_zero`, `mask_clamp` and `mask_scale` change only dimensions whose
        spread is more than twice the target's: to 0, limited to 3 sigma of the target, or scaled down to
        twice its spread.
        """
        mean_x, mean_y = (torch.from_numpy(side.mean) for side in (self.inputs, self.targets))
        std_x, std_y = (safe_std(torch.from_numpy(side.std())) for side in (self.inputs, self.targets))
        scale = overall_std(self.targets) / overall_std(self.inputs)
        ratio = std_x / std_y
        outlier = ratio > OUTLIER_RATIO
        reach = CLIP_SIGMA * std_y
        shrink = torch.where(outlier, OUTLIER_RATIO / ratio, 1.0)

        def units(vl: Tensor) -> Tensor:
            return (vl.double() - mean_x) / std_x

        def clamped(vl: Tensor) -> Tensor:
            return torch.where(outlier, vl.double().clamp(mean_y - reach, mean_y + reach), vl.double())

        return {
            "no_input": Method(lambda vl: mean_y.expand(len(vl), -1)),
            "identity": Method(lambda vl: vl),
            "global_scale": Method(lambda vl: vl.double() * scale),
            "per_dim_norm": Method(lambda vl: units(vl) * std_y + mean_y),
            "per_dim_clip": Method(lambda vl: units(vl).clamp(-CLIP_SIGMA, CLIP_SIGMA) * std_y + mean_y),
            "mask_zero": Method(lambda vl: torch.where(outlier, 0.0, vl.double())),
            "mask_clamp": Method(clamped),
            "mask_scale": Method(lambda vl: vl.double() * shrink),
        }


def ridge_baseline(train_pairs: PairSource, val_pairs: PairSource, alignment: Alignment) -> Method:
    """Closed-form ridge, as a training with arch `ridge` fits it.

    Args:
        train_pairs: it is fitted on.
        val_pairs: they choose the penalty.
        alignment: of the two sides.

    Returns:
        the fitted method.
    """
    width = train_pairs.width
    fitted, chosen = (
        Held.load(iter(pairs), alignment, keeps_positions=True, width=width)
        for pairs in (train_pairs, val_pairs)
    )
    network = ProjectorNetwork(Shape("ridge", width, hidden=0, queries=0))
    network.set_statistics(statistics_of(fitted.inputs, width), statistics_of(fitted.targets, width))
    fit_ridge(network, fitted, chosen, alignment, World(0, 1, torch.device("cpu")))

    def apply(vl: Tensor) -> Tensor:
        with torch.no_grad():
            return network.project(vl[None])[0]

    return Method(apply)


def overall_std(statistics: RunningStatistics) -> float:
    """Standard deviation over all numbers of all dimensions together, as the guide's 61.0 is one."""
    return float(np.sqrt(statistics.variance().mean() + statistics.mean.var()))
