"""A projector with the tiny models' own template around its rows, as training through the image model makes it."""

import numpy as np
import torch
from PIL import Image

from projector.inference.text_encoder import TextEncoder
from projector.network.architectures import ProjectorNetwork, Shape
from projector.network.projector import Projector
from shards.format.sample import KIND_TEMPLATE
from shards.format.statistics import RunningStatistics


def a_picture(seed=3):
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((128, 128))


def a_steering_projector(tiny, folder, layer=-8, reader="vl"):
    """Save one that makes 6 rows of any picture; returns the folder."""
    encoder = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32)
    (text,) = encoder.encode(["a red fox in the snow"])
    fixed = text.kind == KIND_TEMPLATE
    before = int((~fixed).nonzero()[0])
    behind = len(fixed) - int((~fixed).nonzero()[-1]) - 1
    torch.manual_seed(5)
    shape = Shape("attention", 64, 32, 6, prefix=before, suffix=behind)
    network = ProjectorNetwork(shape, random_start=True)
    statistics = RunningStatistics(64)
    statistics.update(text.embeddings[~fixed].numpy())
    network.set_statistics(statistics, statistics)
    network.text_prefix.copy_(text.embeddings[:before])
    network.text_suffix.copy_(text.embeddings[len(fixed) - behind :])
    config = {
        "format": 1,
        "arch": "attention",
        "width": 64,
        "layer": layer,
        "text_mode": "none",
        "tokens": "image",
        "reader": reader,
        "length": 6,
        "network": shape.as_json(),
        "template": {"vl_limit": 1e6, "prefix_tokens": before, "suffix_tokens": behind},
        "dataset": {"picture": {"height": 128, "width": 128}},
    }
    Projector(network, config).save_pretrained(folder)
    return folder
