"""Where a worker's pairs are held: in memory, on local disk, on the device."""

import torch

from projector.data.align import Alignment
from projector.data.packed import Held, room_in_memory
from projector.data.pairs import PairSource
from projector.data.world import World
from projector.options import TrainOptions

RESIDENT_SHARE = 0.7  # of the free memory, the device's or the machine's, that pairs may take


def load_part(
    pairs: PairSource,
    part: range,
    alignment: Alignment,
    options: TrainOptions,
    world: World,
    *,
    keeps_positions: bool,
) -> Held:
    """Read a worker's part of the pairs and hold it as `loader` says.

    Args:
        pairs: all of a split.
        part: those of this worker.
        alignment: of the two sides.
        options: loader and cache.
        world: the workers, which may share this machine's memory.
        keeps_positions: whether the network's output i belongs to input i.
    """

    def load(mine: range, *, on_disk: bool) -> Held:
        return Held.load(
            pairs.read(mine.start, mine.stop),
            alignment,
            keeps_positions=keeps_positions,
            width=pairs.width,
            on_disk=on_disk,
            folder=options.cache,
        )

    if options.loader != "auto":
        return load(part, on_disk=options.loader == "stream")
    of_one = load(part[:1], on_disk=False).bytes
    return load(part, on_disk=of_one * len(part) > room_in_memory() * RESIDENT_SHARE / world.size)


def placed(pairs: Held, world: World) -> Held:
    """Pairs on the worker's GPU when they fit there; otherwise batches travel one by one."""
    if world.device.type != "cuda":
        return pairs
    free, _ = torch.cuda.mem_get_info(world.device)
    return pairs.to(world.device) if pairs.bytes < RESIDENT_SHARE * free else pairs
