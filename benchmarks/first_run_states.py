"""Hidden states as they are: sinks, constant tokens, and the dimensions that stand out.

T text rows, V vision-language tokens, D hidden.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from first_run_bench import LAYERS, TEXT_LAYER, Bench
from torch import Tensor

from projector.data.template import token_rms
from projector.evaluation.metrics import COLLAPSED_RATIO, OUTLIER_RATIO
from projector.network.architectures import safe_std

ENDS = 8  # positions shown from either end
LARGEST = 6  # dimensions
GUIDE = {
    4: 617,
    396: 42,
}  # the guide's outlier dimensions and its ratios of standard deviations, VL over text


def state_figures(bench: Bench) -> dict[str, Any]:
    """Of the text side, of the VL side by layer, and of the graft, which has the text side's layer.

    Returns:
        by side: `rms` by position from either end (medians over samples), `constant` leading tokens, `sinks`, `std` of
        all numbers, and the `largest` dimensions; and by VL layer how its own tokens spread beside the prompts'.
    """
    texts = [text.embeddings for text in bench.texts()]
    grafted = [
        item.states["none"][TEXT_LAYER]
        for item in bench.read_by_graft(range(bench.count), [""] * bench.count)
    ]
    sides = {"text": side_figures(texts), "graft": side_figures(grafted)}
    for layer in LAYERS:
        sides[f"vl {layer}"] = side_figures([item.states["none"][layer] for item in bench.states])
    return {
        "sides": sides,
        "template": {layer: bench.templates[layer].as_json() for layer in LAYERS},
        "beside_text": {layer: beside_text(bench, layer) for layer in LAYERS},
    }


def side_figures(samples: Sequence[Tensor]) -> dict[str, Any]:
    """Figures of (T, D) states, one tensor a sample, sinks included."""
    rms = [token_rms(tokens) for tokens in samples]
    shown = min(ENDS, *map(len, rms))
    every = torch.cat(list(samples))
    spread = every.std(0)
    largest = spread.topk(min(LARGEST, len(spread))).indices
    return {
        "rms_first": _rounded(torch.stack([row[:shown] for row in rms]).median(0).values),
        "rms_last": _rounded(torch.stack([row[-shown:] for row in rms]).median(0).values),
        "rms_median": float(torch.cat(rms).median()),
        "rms_most": float(torch.cat(rms).max()),
        "std": float(every.std()),
        "largest": {int(dimension): float(spread[dimension]) for dimension in largest},
    }


def beside_text(bench: Bench, layer: int) -> dict[str, Any]:
    """How VL tokens spread beside the prompts' own rows, sinks left out, and the guide's two dimensions with them."""
    statistics = bench.statistics(layer)
    vl, text = (
        safe_std(torch.from_numpy(side.std())).numpy() for side in (statistics.inputs, statistics.targets)
    )
    ratio = vl / text
    strongest = np.argsort(-ratio)[:LARGEST]
    with_sinks = torch.cat([text.embeddings for text in bench.texts()]).std(0)
    all_vl = torch.cat([item.states["none"][layer] for item in bench.states]).std(0)
    return {
        "outlier_dims": int((ratio > OUTLIER_RATIO).sum()),
        "collapsed_dims": int((ratio < COLLAPSED_RATIO).sum()),
        "median_ratio": float(np.median(ratio)),
        "largest_ratios": {int(dimension): float(ratio[dimension]) for dimension in strongest},
        "guide": {
            dimension: {
                "said": said,
                "vl over text": float(ratio[dimension]),
                "text's sinks over its other rows": float(with_sinks[dimension] / text[dimension]),
                "vl over text, sinks included": float(
                    all_vl[dimension] / with_sinks[dimension].clamp(min=1e-9)
                ),
            }
            for dimension, said in GUIDE.items()
            if dimension < len(ratio)
        },
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 3) for value in values]
