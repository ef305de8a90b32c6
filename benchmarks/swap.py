"""The caption-swap test: does a projector look at the picture or copy the caption that stands in the VL input."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from quality import Bench, trained
from torch import Tensor

from projector.evaluation.distances import retrieval
from projector.options import Arch, TrainOptions
from shards.format.sample import KIND_CAPTION, KIND_IMAGE

# Text mode and VL tokens at training, and the tokens used at inference.
CASES = (
    ("none", "image", "image"),
    ("none", "image", "all"),
    ("caption", "all", "all"),
    ("caption", "all", "image"),
    ("caption", "text", "text"),
    ("caption", "image", "image"),
)
ARCHES: tuple[Arch, ...] = ("ridge", "linear", "mlp", "attention")


def caption_swap(bench: Bench, options_of: Callable[[Arch], TrainOptions]) -> dict[str, Any]:
    """Recall@1 of the picture's own caption, with its caption in the input and with another sample's.

    Args:
        bench: the world.
        options_of: training options by architecture.

    Returns:
        by architecture and case: recall of the picture's own caption untouched (`own`), of the picture's own
        with another caption in the input (`swapped_own`), and of that other caption (`swapped_copy`).
    """
    pairs = list(bench.world.source(bench.test, first=bench.count, text_mode="caption", tokens="all"))
    mean, std = bench.reference.targets.mean, bench.reference.target_std
    texts = np.array([(pair.text.double().mean(0).numpy() - mean) / std for pair in pairs])
    names = [pair.group for pair in pairs]
    other = np.roll(np.arange(len(pairs)), 1)

    def tokens_of(index: int, caption: int, kept: str) -> Tensor:
        parts = []
        if kept != "text":
            parts.append(pairs[index].vl[pairs[index].vl_kind == KIND_IMAGE])
        if kept != "image":
            parts.append(pairs[caption].vl[pairs[caption].vl_kind == KIND_CAPTION])
        return torch.cat(parts).float()

    found: dict[str, Any] = {}
    for arch in ARCHES:
        for case in dict.fromkeys((mode, tokens) for mode, tokens, _ in CASES):
            projector, _, _ = trained(bench, options_of(arch), text_mode=case[0], tokens=case[1])
            for kept in (used for mode, tokens, used in CASES if (mode, tokens) == case):
                own, swapped = (
                    np.array(
                        [
                            (projector(tokens_of(i, captions[i], kept)).double().mean(0).numpy() - mean) / std
                            for i in range(len(pairs))
                        ]
                    )
                    for captions in (np.arange(len(pairs)), other)
                )
                found[f"{arch}: trained on {case[1]} ({case[0]}), used with {kept}"] = {
                    "own": float(retrieval(own, texts, names)[0].mean()),
                    "swapped_own": float(retrieval(swapped, texts, names)[0].mean()),
                    "swapped_copy": float(retrieval(swapped, texts[other], names)[0].mean()),
                }
    return found
