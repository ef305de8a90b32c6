"""The caption-swap test: does a projector look at the picture, or copy the caption that stands in the VL input?

The VL input is given another sample's caption. A projector that looks at the picture still predicts the
picture's own caption; one that copies predicts the other. The picture stands before the caption and attention is
causal, so image tokens are the same with any caption: swapping the caption's tokens is swapping the caption.

N pairs, V vision-language tokens, D hidden.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from projector.data.pairs import KINDS, Pair
from projector.evaluation.distances import retrieval
from projector.evaluation.metrics import INTERVAL, KEPT_PAIRS, Standard
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
        by projector: `own`, recall@1 of the picture's own caption in an untouched input; with another caption in
        the input, `image`, recall@1 of the picture's own caption, and `caption`, recall@1 of that other one;
        `chance`; `intervals`; `copies`, whether the output follows the caption rather than the picture; and a
        `sentence`. Empty with fewer than two pairs.
    """
    keys: list[str] = []
    texts: list[Float64] = []
    outputs: dict[str, list[tuple[Float64, Float64]]] = {name: [] for name in projectors}
    for pair, other in with_next(islice(pairs, KEPT_PAIRS)):
        keys.append(pair.key)
        texts.append(standard.standardised(pair.text.double().mean(0).numpy()))
        for name, projector in projectors.items():
            outputs[name].append(
                tuple(  # type: ignore[arg-type]
                    standard.standardised(_mean_output(projector, pair, caption)) for caption in (pair, other)
                )
            )
    if len(keys) < 2:
        return {}
    weights = np.array([bootstrap_weights(key) for key in keys]).T
    return {name: _judge(np.array(rows), np.array(texts), weights, name) for name, rows in outputs.items()}


def with_next(pairs: Iterable[Pair]) -> Iterator[tuple[Pair, Pair]]:
    """Each pair and the one after it, the last with the first."""
    stream = iter(pairs)
    first = before = next(stream, None)
    for pair in stream:
        assert before is not None
        yield before, pair
        before = pair
    if first is not None and before is not None:
        yield before, first


def swapped(pair: Pair, other: Pair, tokens: Tokens) -> Tensor:
    """(V, D) the pair's VL tokens of the kinds wanted, its caption's replaced by another pair's."""
    parts = [(other if kind == KIND_CAPTION else pair) for kind in KINDS[tokens]]
    return torch.cat([part.vl[part.vl_kind == kind] for kind, part in zip(KINDS[tokens], parts, strict=True)])


def _mean_output(projector: Projector, pair: Pair, other: Pair) -> Float64:
    tokens = swapped(pair, other, cast(Tokens, projector.tokens)).float()
    mean: Float64 = projector(tokens).double().mean(0).cpu().numpy()
    return mean


def _judge(outputs: Float64, texts: Float64, weights: Float64, name: str) -> dict[str, Any]:
    """Recalls of outputs (N, 2, D), untouched and swapped, and what they say."""
    others = np.roll(texts, -1, axis=0)
    hits = {
        "own": retrieval(outputs[:, 0], texts)[0],
        "image": retrieval(outputs[:, 1], texts)[0],
        "caption": retrieval(outputs[:, 1], others)[0],
    }
    counting = weights[1:][weights[1:].any(1)]
    replicates = {kind: counting @ found / counting.sum(1) for kind, found in hits.items()}
    recall = {kind: float(found.mean()) for kind, found in hits.items()}
    chance = 1 / len(texts)
    copies = bool(np.percentile(replicates["caption"] - replicates["image"], INTERVAL[0]) > 0)
    sees = bool(np.percentile(replicates["image"], INTERVAL[0]) > chance)
    return {
        "pairs": len(texts),
        **recall,
        "chance": chance,
        "intervals": {kind: np.percentile(seen, INTERVAL).tolist() for kind, seen in replicates.items()},
        "copies": copies,
        "sentence": _sentence(name, recall, copies=copies, sees=sees),
    }


def _sentence(name: str, recall: Mapping[str, float], *, copies: bool, sees: bool) -> str:
    with_other = "with another sample's caption in the VL input it finds"
    both = f"the picture's own caption in {recall['image']:.0%} and the other one in {recall['caption']:.0%} of cases"
    if copies:
        return f"{name} copies the caption instead of looking at the picture: {with_other} {both}"
    if sees:
        return f"{name} follows the picture: {with_other} {both}"
    return f"{name} follows neither picture nor caption beyond chance: {with_other} {both}"
