"""What the whole ridge is solved from: a picture's tokens, and the conditioning of a caption of it.

The wording of a caption cannot be seen in its picture, and is most of what differs between conditionings. Where a
caption can be put into one fixed wording, the target is the conditioning of that: it draws the same picture, and
follows from it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from projector.closed_form.whole_ridge import WholeRidge, fit_whole
from projector.data.align import area_pool
from projector.data.packed import Held
from projector.data.pairs import Conditioning, PairSource
from projector.data.world import World
from projector.inference.text_encoder import TextEncoder, TextEncoding
from projector.network.architectures import ProjectorNetwork
from projector.network.whole_map import RANK, spread_over
from shards.scenes.captions import canonical, scene_named

SOLVED_FROM = 2048  # pairs at most: the time goes with their third power, and it is a start
READ_TOGETHER = 64


def solve_start(
    network: ProjectorNetwork, pairs: PairSource, held: Held, mine: range, folder: str, world: World
) -> WholeRidge:
    """Solve ridge from all inputs of a picture to a whole conditioning, of pairs that stand evenly among all.

    Args:
        network: with its constants set.
        pairs: all of them, with conditionings.
        held: this worker's.
        mine: places of this worker's among all.
        folder: of the pipeline, for its text encoder.
        world: all workers; each calls this.
    """
    assert pairs.conditionings is not None
    count = min(len(pairs), SOLVED_FROM)
    if world.rank == 0:
        print(f"ridge from all tokens of {count} pictures", flush=True)
    chosen = torch.arange(count) * len(pairs) // count
    places = torch.nonzero((chosen >= mine.start) & (chosen < mine.stop))[:, 0]
    own = chosen[places] - mine.start
    wanted = set(own.tolist())
    kept = [item for place, item in enumerate(pairs.conditionings(mine.start, mine.stop)) if place in wanted]
    inputs = [torch.zeros(0, network.shape.positions, network.shape.width)]
    for batch in held.batches(torch.split(own, READ_TOGETHER) if len(own) else ()):
        there = batch.to(world.device)
        standardised = network.standardised(there.inputs, there.input_mask)
        inputs.append(spread_over(standardised, there.input_mask, network.shape.positions).cpu())
    targets = [_target(text, network) for text in fixed_wordings(kept, folder)]
    weights = torch.zeros(count, dtype=torch.float64)
    weights[places] = held.weights[own].double().cpu()
    shape = (0, network.shape.queries + network.shape.suffix, network.shape.width)
    return fit_whole(
        torch.cat(inputs),
        torch.stack(targets) if targets else torch.zeros(shape),
        places,
        world.add(weights),
        RANK,
        world,
    )


def fixed_wordings(items: Sequence[Conditioning], folder: str) -> list[Tensor]:
    """Conditionings of captions in a fixed wording; a caption for which there is none keeps its own.

    Args:
        items: what some pictures were made from.
        folder: of the pipeline; its text encoder is loaded where a caption has a fixed wording.

    Returns:
        (T, D) each.
    """
    scenes = [scene_named(item.caption) for item in items]
    captions = [canonical(scene) for scene in scenes if scene is not None]
    if not captions:
        return [item.text for item in items]
    encoder = TextEncoder.from_pretrained(folder, device="cpu", dtype=torch.float32)
    encoded = iter(encoder.encode(captions))
    found = []
    for item, scene in zip(items, scenes, strict=True):
        encoding = next(encoded) if scene is not None else None
        found.append(encoding.embeddings if isinstance(encoding, TextEncoding) else item.text)
    return found


def _target(text: Tensor, network: ProjectorNetwork) -> Tensor:
    """(R, D) standardised outputs for a conditioning (T, D), whose caption is spread over the queries."""
    shape, text = network.shape, text.float()
    stop = len(text) - shape.suffix
    mean, std, ends = (each.cpu() for each in (network.target_mean, network.target_std, network.text_suffix))
    rows = (area_pool(text[shape.prefix : stop], shape.queries) - mean) / std
    return torch.cat([rows, (text[stop:] - ends) / std])
