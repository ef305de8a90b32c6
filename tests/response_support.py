"""Pairs to train through the tiny image model, and how to train on them."""

from dataclasses import replace

import torch

from projector.data.pairs import Conditioning, Pair, in_memory
from projector.data.template import WholeSample, find_template
from projector.inference.text_encoder import TextEncoder
from projector.models.resolve import resolve_models
from projector.options import TrainOptions
from shards.format.sample import KIND_CAPTION, KIND_IMAGE

CPU = torch.device("cpu")
SIDE, STEPS, TRAIN, VAL = 64, 4, 24, 8
WORDS = (
    "a red cat",
    "two dogs in the rain",
    "an old house beside a lake",
    "snow",
    "a paper lantern at night",
)


def encoded():
    """Captions as the tiny pipeline encodes them, of pairs to train on and then of held-out ones."""
    encoder = TextEncoder.from_pretrained(
        resolve_models("tiny").image.path, device="cpu", dtype=torch.float32
    )
    captions = [f"{WORDS[n % 5]} and {WORDS[(3 * n + 1) % 5]}, number {n}" for n in range(TRAIN + VAL)]
    return encoder.encode(captions)


def turned(encodings):
    """Pairs whose VL side is the caption's rows turned by a fixed rotation: a linear map can undo it."""
    generator = torch.Generator().manual_seed(0)
    width = encodings[0].embeddings.shape[1]
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    template = find_template(
        WholeSample(e.embeddings, e.kind, e.embeddings, torch.full_like(e.kind, KIND_IMAGE))
        for e in encodings
    )

    def source(part):
        chosen = encodings[part]
        pairs = [
            Pair(
                f"pair-{part.start}-{n}",
                e.embeddings[e.kind == KIND_CAPTION] @ turn,
                torch.full((int((e.kind == KIND_CAPTION).sum()),), KIND_IMAGE, dtype=torch.uint8),
                e.embeddings[e.kind == KIND_CAPTION],
            )
            for n, e in enumerate(chosen)
        ]
        made_from = [Conditioning(e.embeddings, part.start + n) for n, e in enumerate(chosen)]
        return replace(
            in_memory(pairs),
            template=template,
            conditionings=lambda start, stop: iter(made_from[start:stop]),
            provenance={
                "models": {"image": {"id": "tiny/image"}},
                "picture": {"height": SIDE, "width": SIDE},
                "steps": STEPS,
            },
        )

    return source(slice(0, TRAIN)), source(slice(TRAIN, TRAIN + VAL))


def options(output, **changes):
    """Of a short training through the image model."""
    given = {"objective": "response", "epochs": 3, "batch_size": 8, "output": str(output), "log": []}
    return TrainOptions(**given | changes)
