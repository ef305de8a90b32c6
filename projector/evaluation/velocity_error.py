"""How far the image model's velocities are off under what a method makes of a picture.

Among lengths of training through the image model this ranks as their pictures do (Spearman 0.93 over 13 runs); among
projectors fitted to embeddings it does not, and across kinds of start it can mislead (docs/training.md), so pictures
stay the judges.

V vision-language tokens, R rows of a conditioning, D hidden.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from projector.data.pairs import PairSource
from projector.evaluation.baselines import Method
from projector.evaluation.intervals import GroupSums
from projector.inference.frozen_transformer import FrozenTransformer
from projector.network.projector import Projector
from projector.options import GRAFT
from projector.teaching.passes import pictures_that_fit
from projector.teaching.trajectories import Trajectories, judged_steps

PAIRS = 64
TOGETHER = 32  # pairs

Conditioned = Callable[[Tensor], Tensor]


def conditioned_by(
    methods: Mapping[str, Method], projectors: Mapping[str, Projector], pairs: PairSource
) -> dict[str, Conditioned]:
    """What gives each method's whole conditioning (R, D) of VL tokens (V, D).

    Rows of methods that do not predict the template's end stand before its mean.

    Args:
        methods: baselines and projectors by name.
        projectors: those of them that are projectors.
        pairs: with a template.
    """
    found: dict[str, Conditioned] = {
        name: lambda vl, method=method: _between(pairs, method.apply(vl))  # type: ignore[misc]
        for name, method in methods.items()
    }
    for name, projector in projectors.items():
        if projector.network.shape.suffix:
            found[name] = projector.conditioning
    return found


@torch.no_grad()
def conditionings(
    conditioned: Mapping[str, Conditioned], pairs: PairSource, *, grafted: PairSource | None = None
) -> dict[str, list[Tensor]]:
    """What each method makes of the first PAIRS pairs: by method a whole conditioning (R, D) for each.

    Args:
        conditioned: of `conditioned_by`.
        pairs: held out.
        grafted: the same pairs as the graft read them, which makes it a method.
    """
    count = min(PAIRS, len(pairs))
    judged = list(pairs.read(0, count))
    wholes = {
        name: [condition(pair.vl.float()).float() for pair in judged]
        for name, condition in conditioned.items()
    }
    if grafted is not None:
        wholes[GRAFT] = [_between(pairs, pair.vl) for pair in grafted.read(0, count)]
    return wholes


@torch.no_grad()
def velocity_errors(
    wholes: Mapping[str, Sequence[Tensor]], pairs: PairSource, model: FrozenTransformer
) -> dict[str, GroupSums]:
    """Squared velocity error and squared velocity of each group, by method, on the first PAIRS pairs.

    Args:
        wholes: of `conditionings`.
        pairs: held out, with conditionings.
        model: that made their pictures.

    Returns:
        their ratio is 0 where the model answers as to the text, about 1 and more where it answers to nothing of it.
    """
    assert pairs.conditionings is not None
    count = min(PAIRS, len(pairs))
    paths = Trajectories(model, pairs.conditionings(0, count), count, together=pictures_that_fit(model))
    groups = [pair.group for pair in pairs.read(0, count)]
    found = {}
    for name, of_method in wholes.items():
        by_group: dict[str, Tensor] = {}
        for group, sum_of in zip(groups, velocity_sums(of_method, paths, model), strict=True):
            by_group[group] = by_group.get(group, 0.0) + sum_of
        found[name] = GroupSums.of({group: both.tolist() for group, both in by_group.items()})
    return found


def _between(pairs: PairSource, rows: Tensor) -> Tensor:
    """Rows between the template's begin and its mean end."""
    assert pairs.template is not None
    return torch.cat([pairs.template.prefix, rows.float().cpu(), pairs.template.suffix])


def velocity_error(wholes: Sequence[Tensor], paths: Trajectories, model: FrozenTransformer) -> float:
    """Squared velocity error over squared velocity of some pairs together; arguments as of `velocity_sums`."""
    error, power = velocity_sums(wholes, paths, model).sum(0).tolist()
    return float(error / power)


@torch.no_grad()
def velocity_sums(wholes: Sequence[Tensor], paths: Trajectories, model: FrozenTransformer) -> Tensor:
    """(pairs, 2) float64: squared velocity error and squared velocity of each pair.

    Args:
        wholes: a conditioning (R, D) for each pair.
        paths: what the model did under the pairs' own text.
        model: the same.
    """
    sums = torch.zeros(len(wholes), 2, dtype=torch.float64)
    together = min(TOGETHER, pictures_that_fit(model) or TOGETHER)
    for part in torch.split(torch.arange(len(wholes)), together):
        some = [wholes[place] for place in part.tolist()]
        rows = torch.nn.utils.rnn.pad_sequence(some, batch_first=True).to(model.device)
        lengths = torch.tensor([len(whole) for whole in some], device=model.device)
        exists = torch.arange(rows.shape[1], device=model.device) < lengths[:, None]
        for step in judged_steps(model.sigmas):
            steps = torch.full_like(part, step)
            states, wanted = paths.at(part, steps)
            found = model.velocities(states, model.sigmas[steps], rows, exists)
            both = [x.square().flatten(1).sum(1) for x in (found - wanted, wanted)]
            sums[part] += torch.stack(both, dim=1).double().cpu()
    return sums
