"""What training through the image model costs: how often its transformer is run."""

from projector.options import TrainOptions
from projector.training.trajectories import JUDGED_AT

JUDGED_PAIRS = 256  # held-out pairs at most
STARTS = 1  # judgements before the first step: of the network where it starts
# With gradients for conditionings alone: forward, forward again for what was not kept, and backward without weights.
WITH_GRADIENTS = 3


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
