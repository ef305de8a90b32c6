"""The network that a training begins with: made anew from a seed, or that of an earlier projector."""

import torch

from projector.data.pairs import PairSource
from projector.network.architectures import ProjectorNetwork, Shape
from projector.network.checkpoint import CONFIG, get_json, get_network
from projector.network.whole_map import MOST_POSITIONS
from projector.options import TrainOptions
from shards.errors import OptionError
from shards.stores.local import open_storage


def seeded_network(options: TrainOptions, pairs: PairSource) -> ProjectorNetwork:
    """The untrained network of these options, the same everywhere; the global generator stays untouched."""
    width = pairs.width
    suffix = len(pairs.template.suffix) if pairs.template and options.objective == "response" else 0
    whole = suffix > 0 and options.start == "ridge"
    shape = Shape(
        options.arch,
        width,
        options.hidden_size(width),
        options.length,
        residual=options.start == "ridge" and options.arch in ("mlp", "attention") and not whole,
        prefix=0 if pairs.template is None else len(pairs.template.prefix),
        suffix=suffix,
        positions=min(MOST_POSITIONS, len(next(pairs.read(0, 1)).vl)) if whole else 0,
    )
    if options.start_folder is not None:
        return _network_of(options.start_folder, shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return ProjectorNetwork(shape, random_start=options.start == "random")


def _network_of(folder: str, wanted: Shape) -> ProjectorNetwork:
    """The network of a trained projector, to go on from."""
    storage = open_storage(folder)
    network = get_network(storage, get_json(storage, CONFIG))
    base = {"residual": network.shape.residual, "positions": network.shape.positions}
    found, needed = network.shape.as_json(), wanted.as_json() | base
    if different := [name for name in needed if found[name] != needed[name]]:
        name = different[0]
        raise OptionError(
            f"start = {folder!r}: its {name} is {found[name]!r}, this training's is {needed[name]!r}; start at a "
            "projector of the same arch, sizes and objective, or at ridge"
        )
    return network
