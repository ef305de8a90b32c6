"""The caption-swap test: does a projector look at the picture, or copy the caption that stands in the VL input?

The VL input is given another picture's caption. A projector that looks at the picture still predicts the
picture's own caption; one that copies predicts the other. The picture stands before the caption and attention is
causal, so image tokens are the same with any caption: swapping the caption's tokens is swapping the caption.

N pairs, V vision-language tokens, D hidden.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from projector.data.pairs import KINDS, Pair
from projector.evaluation.distances import retrieval
from projector.evaluation.intervals import REPLICATES, percentiles
from projector.evaluation.metrics import KEPT_PAIRS, Standard
from projector.evaluation.moments import Float64, bootstrap_weights
from projector.network.projector import Projector
from projector.options import Tokens
from shards.format.sample import KIND_CAPTION


def caption_swap(
    projectors: Mapping[str, Projector], pairs: Iterable[Pair], standard: Standard
) -> dict[str, dict[str, Any]]:
    """Put the test to projectors, on the first thousand pairs.

    Args:
        projectors: by name.
        pairs: held-out, image and caption tokens on the VL side where the dataset has both.
        standard: units of the retrieval.

    Returns:
        by projector: `own`, recall@1 of the picture's own caption in an untouched input; with another picture's caption
        in the input, `image`, recall@1 of the picture's own caption, and `caption`, recall@1 of that other one;
        `takes_own` and `takes_other`, how much of either caption is in the output (its regression on both, 1: all of
        it); `chance`; `intervals`; `copies`, whether the output follows the caption rather than the picture; and a
        `sentence`. Empty with pairs of fewer than two pictures.
    """
    groups: list[tuple[str, str]] = []
    texts: list[tuple[Float64, Float64]] = []
    outputs: dict[str, list[tuple[Float64, Float64]]] = {name: [] for name in projectors}
    for pair, other in with_another(islice(pairs, KEPT_PAIRS)):
        groups.append((pair.group, other.group))
        mine, theirs = (standard.standardised(each.text.double().mean(0).numpy()) for each in (pair, other))
        texts.append((mine, theirs))
        for name, projector in projectors.items():
            own, mixed = (
                standard.standardised(_mean_output(projector, pair, caption)) for caption in (pair, other)
            )
            outputs[name].append((own, mixed))
    if not groups:
        return {}
    return {
        name: _judge(name, np.array(rows), np.array(texts), groups, reads=projectors[name].tokens != "image")
        for name, rows in outputs.items()
    }


def with_another(pairs: Iterable[Pair]) -> Iterator[tuple[Pair, Pair]]:
    """Each pair and the next one of another group, the last ones with the first; those without one are left out."""
    first: Pair | None = None
    waiting: list[Pair] = []
    for pair in pairs:
        first = first or pair
        if waiting and waiting[0].group != pair.group:
            yield from ((before, pair) for before in waiting)
            waiting = []
        waiting.append(pair)
    if first is not None:
        yield from ((before, first) for before in waiting if before.group != first.group)


def swapped(pair: Pair, other: Pair, tokens: Tokens) -> Tensor:
    """(V, D) the pair's VL tokens of the kinds wanted, its caption's replaced by another pair's."""
    parts = [(other if kind == KIND_CAPTION else pair) for kind in KINDS[tokens]]
    return torch.cat([part.vl[part.vl_kind == kind] for kind, part in zip(KINDS[tokens], parts, strict=True)])


def _mean_output(projector: Projector, pair: Pair, other: Pair) -> Float64:
    tokens = swapped(pair, other, cast(Tokens, projector.tokens)).float()
    mean: Float64 = projector(tokens).double().mean(0).cpu().numpy()
    return mean


def _judge(
    name: str, outputs: Float64, texts: Float64, groups: Sequence[tuple[str, str]], *, reads: bool
) -> dict[str, Any]:
    """What the test says.

    Args:
        name: of the projector.
        outputs: (N, 2, D) means, with the own caption and with the other one in the input.
        texts: (N, 2, D) the own caption and the other one.
        groups: (N,) of each pair, and of the one that gave the other caption.
        reads: whether a caption reaches the tokens that the projector reads.
    """
    mine, theirs = texts[:, 0], texts[:, 1]
    own_groups, other_groups = zip(*groups, strict=True)
    hits = {
        "own": retrieval(outputs[:, 0], mine, own_groups)[0],
        "image": retrieval(outputs[:, 1], mine, own_groups)[0],
        "caption": retrieval(outputs[:, 1], theirs, other_groups)[0],
    }
    weights = np.array([bootstrap_weights(group, REPLICATES) for group in own_groups]).T
    counting = weights[1:][weights[1:].any(1)]
    replicates = {kind: counting @ found / counting.sum(1) for kind, found in hits.items()}
    figures = {kind: float(found.mean()) for kind, found in hits.items()}
    sums = _sums(outputs[:, 1], mine, theirs)
    for kind, whole, seen in zip(
        ("takes_own", "takes_other"), _shares(sums.sum(0)), _shares(counting @ sums).T, strict=True
    ):
        figures[kind], replicates[kind] = float(whole), seen
    figures["chance"] = float(
        np.mean([1 / (len(groups) - count + 1) for count in map(own_groups.count, own_groups)])
    )
    ends = percentiles(len(set(own_groups)))
    copies = bool(np.percentile(replicates["caption"] - replicates["image"], ends[0]) > 0)
    sees = bool(np.percentile(replicates["image"], ends[0]) > figures["chance"])
    return {
        "pairs": len(groups),
        **figures,
        "intervals": {kind: np.percentile(seen, ends).tolist() for kind, seen in replicates.items()},
        "copies": copies,
        "sentence": _sentence(name, figures, copies=copies, sees=sees, reads=reads),
    }


def _sums(outputs: Float64, mine: Float64, theirs: Float64) -> Float64:
    """(N, 5) products of each pair's output and captions about their means: what a regression on both takes."""
    o, u, v = (rows - rows.mean(0) for rows in (outputs, mine, theirs))
    return np.stack([(a * b).sum(1) for a, b in ((u, u), (u, v), (v, v), (u, o), (v, o))], axis=1)


def _shares(sums: Float64) -> Float64:
    """(…, 2) coefficients of the regression on both captions, from summed products (…, 5)."""
    uu, uv, vv, uo, vo = np.moveaxis(sums, -1, 0)
    determinant = uu * vv - uv**2
    known = determinant > 1e-12 * uu * vv
    scale = np.divide(1.0, determinant, out=np.zeros_like(determinant), where=known)
    shares: Float64 = np.stack([(vv * uo - uv * vo) * scale, (uu * vo - uv * uo) * scale], axis=-1)
    return shares


def _sentence(name: str, figures: Mapping[str, float], *, copies: bool, sees: bool, reads: bool) -> str:
    finds = f"the picture's own caption in {figures['image']:.0%} of cases"
    if not reads:
        chance = f"chance {figures['chance']:.1%}"
        return f"{name} reads image tokens alone, which no caption reaches: it finds {finds}, {chance}"
    both = (
        f"with another picture's caption in the VL input it finds {finds} and the other one in "
        f"{figures['caption']:.0%}"
    )
    if copies:
        return f"{name} copies the caption instead of looking at the picture: {both}"
    if sees:
        return f"{name} follows the picture: {both}"
    return f"{name} follows neither picture nor caption beyond chance: {both}"
