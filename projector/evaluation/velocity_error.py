"""How far the image model's velocities are off under what a method makes of a picture.

Over many projectors this ranks as their pictures do, where errors of embeddings hardly say anything
(docs/steering.md); across ways of training it can mislead, so pictures stay the judges.

V vision-language tokens, R rows of a conditioning, D hidden.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from projector.data.pairs import PairSource
from projector.evaluation.baselines import Method
from projector.models.frozen_transformer import FrozenTransformer
from projector.network.projector import Projector
from projector.options import GRAFT
from projector.training.trajectories import Trajectories, judged_steps

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
def velocity_errors(
    conditioned: Mapping[str, Conditioned],
    pairs: PairSource,
    model: FrozenTransformer,
    *,
    grafted: PairSource | None = None,
) -> dict[str, float]:
    """Squared velocity error over squared velocity, by method, on the first PAIRS pairs.

    Args:
        conditioned: of `conditioned_by`.
        pairs: held out, with conditionings.
        model: that made their pictures.
        grafted: the same pairs as the graft read them.

    Returns:
        0 where the model answers as to the text, about 1 and more where it answers to nothing of it.
    """
    assert pairs.conditionings is not None
    count = min(PAIRS, len(pairs))
    paths = Trajectories(model, pairs.conditionings(0, count), count)
    tokens = [pair.vl.float() for pair in pairs.read(0, count)]
    wholes = {name: [condition(vl).float() for vl in tokens] for name, condition in conditioned.items()}
    if grafted is not None:
        wholes[GRAFT] = [_between(pairs, pair.vl) for pair in grafted.read(0, count)]
    return {name: velocity_error(of_method, paths, model) for name, of_method in wholes.items()}


def _between(pairs: PairSource, rows: Tensor) -> Tensor:
    """Rows between the template's begin and its mean end."""
    assert pairs.template is not None
    return torch.cat([pairs.template.prefix, rows.float().cpu(), pairs.template.suffix])


@torch.no_grad()
def velocity_error(wholes: Sequence[Tensor], paths: Trajectories, model: FrozenTransformer) -> float:
    """Squared velocity error over squared velocity of some pairs together.

    Args:
        wholes: a conditioning (R, D) for each pair.
        paths: what the model did under the pairs' own text.
        model: the same.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    for part in torch.split(torch.arange(len(wholes)), TOGETHER):
        some = [wholes[place] for place in part.tolist()]
        rows = torch.nn.utils.rnn.pad_sequence(some, batch_first=True).to(model.device)
        lengths = torch.tensor([len(whole) for whole in some], device=model.device)
        exists = torch.arange(rows.shape[1], device=model.device) < lengths[:, None]
        for step in judged_steps(model.sigmas):
            steps = torch.full_like(part, step)
            states, wanted = paths.at(part, steps)
            found = model.velocities(states, model.sigmas[steps], rows, exists)
            sums += torch.stack([(found - wanted).square().sum(), wanted.square().sum()]).double().cpu()
    return float(sums[0] / sums[1])
