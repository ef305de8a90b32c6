"""What training through the image model costs: how often its transformer is run, and in how much memory."""

from collections.abc import Mapping
from typing import Any

import torch

from projector.inference.frozen_transformer import FrozenTransformer
from projector.options import TrainOptions
from projector.teaching.trajectories import JUDGED_AT

JUDGED_PAIRS = 256  # held-out pairs at most
STARTS = 1  # judgements before the first step: of the network where it starts
# With gradients for conditionings alone: forward, forward again for what was not kept, and backward without weights.
WITH_GRADIENTS = 3

PATCH = 16  # pixels along an edge of what is one token of the transformer
TEXT_ROWS = 128  # of a conditioning with a prompt and a reference, about
# Hidden states of a token that one block keeps for its backward pass, in multiples of the width: norms, queries, keys
# and values, attention, residuals, and three times the feed-forward's 8 / 3 (an estimate, not measured on weights).
KEPT_IN_A_BLOCK = 20
USED = 0.8  # of free memory: the rest is for the projector's optimizer and for what the estimate leaves out


def forward_passes(options: TrainOptions, train: int, val: int, steps: int) -> int:
    """Forward passes of the image model, each for one picture, that a training takes, those with gradients as three.

    Args:
        options: of the training.
        train: its pairs.
        val: held-out pairs.
        steps: of sampling a picture.

    Returns:
        their number at most: captions that cannot be edited, and an early end, save some. 0 where the objective is not
        `response`.
    """
    if options.objective != "response":
        return 0
    judged, kinds = min(val, JUDGED_PAIRS), 2 if options.compose > 0 else 1
    sampled = (train + judged) * steps
    sampling = sampled * (kinds - (options.response == "flow"))
    judging = judged * len(JUDGED_AT) * kinds * (options.epochs + STARTS)
    return sampling + judging + WITH_GRADIENTS * options.epochs * train


def picture_bytes(transformer: Mapping[str, Any], height: int, width: int, number: int) -> int:
    """Device memory that one picture takes in a step: what is kept between blocks, and one block computed again.

    Args:
        transformer: its config.json.
        height, width: of the picture in pixels.
        number: bytes of one, 2 in bfloat16.
    """
    tokens = height // PATCH * (width // PATCH) + TEXT_ROWS
    blocks = transformer["n_layers"] + 2 * transformer["n_refiner_layers"]
    return int(tokens * transformer["dim"] * (blocks + KEPT_IN_A_BLOCK) * number)


def pictures_that_fit(model: FrozenTransformer) -> int | None:
    """Pictures of a step that a GPU's free memory has room for, one at least; None on a CPU, whose is not counted.

    Args:
        model: loaded.
    """
    if model.device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(1, int(USED * free / picture_bytes(model.config, *model.size, model.dtype.itemsize)))
