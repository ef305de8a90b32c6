"""One of the workers that fit a ridge together: processes of their own, which need not import any model library."""

import torch

from projector.closed_form.whole_ridge import WholeRidge, fit_whole
from projector.data.world import World


def fit_together(job) -> WholeRidge:
    """Fit with the other workers; `job` is rank, workers, meeting file, inputs, targets, weights and the map's rank."""
    rank, size, meeting, inputs, targets, weights, width = job
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    places = torch.arange(len(inputs))[rank::size]
    world = World(rank, size, torch.device("cpu"))
    found = fit_whole(inputs[places], targets[places], places, weights, width, world)
    torch.distributed.destroy_process_group()
    return found
