"""One conditioning of a prompt and several references, each with its own weight.

S vision-language tokens, T prompt rows, D hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from projector.data.align import area_pool
from projector.network.projector import Mode, Projector
from shards.errors import UsageError


def steered(
    projector: Projector,
    references: Sequence[Tensor],
    prompt: Tensor | None = None,
    kind: Tensor | None = None,
    *,
    weights: Sequence[float] | None = None,
    mode: Mode = "concat",
    alpha: float = 0.5,
) -> Tensor:
    """Make a conditioning of a prompt and all references; with one of weight 1 it is `Projector.conditioning`'s.

    Args:
        projector: reads the references.
        references: (S, D) each, raw, as `Projector.conditioning` takes them.
        prompt: (T, D) the text encoder's embeddings, template included; None: the references alone, one behind the
            other.
        kind: (T,) of each prompt row; None: the template is taken to be as long as in the training data.
        weights: of each reference; None: 1 each. Under `concat`, and without a prompt, the share of its rows that are
            kept, averaged by area: the image model does not see the size of a row, but how many there are. Under other
            modes its share in the mean of the conditionings that each reference gives.
        mode, alpha: see `Projector.conditioning`.

    Returns:
        (rows, D) in the references' dtype and on their device.

    Raises:
        UsageError: no reference, weights that do not fit, or what `Projector.conditioning` refuses.
    """
    shares = _checked(weights, len(references))
    if mode != "concat" and prompt is not None:
        single = [projector.conditioning(each, prompt, kind, mode=mode, alpha=alpha) for each in references]
        mean = sum(share / sum(shares) * each.float() for share, each in zip(shares, single, strict=True))
        assert isinstance(mean, Tensor)
        return single[0] if len(single) == 1 else mean.to(single[0])
    before, behind = projector.network.shape.prefix, projector.network.shape.suffix
    alone = [projector.conditioning(each) for each in references]
    rows = [
        _fewer(whole[before : len(whole) - behind], share) for whole, share in zip(alone, shares, strict=True)
    ]
    if prompt is None:
        return torch.cat([alone[0][:before], *rows, alone[0][len(alone[0]) - behind :]])
    _, last = projector.own_rows(prompt, kind)
    text = prompt.to(rows[0])
    return torch.cat([text[:last], *rows, text[last:]])


def _fewer(rows: Tensor, share: float) -> Tensor:
    count = max(1, round(share * len(rows)))
    return rows if count == len(rows) else area_pool(rows, count).to(rows)


def _checked(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights of so many references."""
    if not count:
        raise UsageError("no reference; give at least one picture")
    shares = [1.0] * count if weights is None else list(weights)
    if len(shares) != count:
        raise UsageError(f"{len(shares)} weights for {count} references; give one for each")
    if not all(0 < share <= 1 for share in shares):  # NaN fails this, too
        raise UsageError(
            f"weights = {shares}; each must be above 0 and at most 1: leave a reference out for 0"
        )
    return shares
