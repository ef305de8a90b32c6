"""Pairs to train on, and what a training left."""

import json
from pathlib import Path

import safetensors.torch
from synthetic import Synthetic

WORLD = Synthetic(width=32, image_tokens=12, text_tokens=(3, 9), latent=4)
TRAIN, VAL = WORLD.source(50), WORLD.source(20, first=1000)


def curve(output):
    """Epoch, training loss and validation loss of each epoch."""
    lines = [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]
    return [(line["epoch"], line["train_loss"] or 0.0, line["val_loss"]) for line in lines]


def weights(output):
    """Tensors of the kept projector by name."""
    return safetensors.torch.load_file(Path(output) / "model.safetensors")
