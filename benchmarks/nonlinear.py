"""Worlds that no linear map answers: which networks learn them, by the defaults of the embedding objective.

    python benchmarks/nonlinear.py --output benchmarks/results/nonlinear.json

Each sample has a hidden content. Its picture tokens show it in a way that differs by world, and its text tokens are a
function of it. Reported: R² of the mean of a network's output rows with what the text says, over that of an oracle
that knows the world and sees the same tokens. Mean and 95% t interval over seeds, on samples that chose nothing.

linear      every token shows the content, turned
rotations   one of two turns, told by a sign in every token
products    the text says products of what the tokens show
needle      one token of sixteen shows the content and is marked; the others show other contents
position    the fourth token shows the content; the others show other contents
tails       linear, with noise from a Student t distribution of 1.5 degrees of freedom
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from training import over_seeds

from projector import Projector
from projector.data.pairs import Pair, PairSource, in_memory
from projector.options import Arch, TrainOptions
from projector.training.loop import train
from shards.format.sample import KIND_IMAGE

WIDTH, CONTENT, TOKENS, ROWS = 64, 8, 16, 8
NOISE = 0.1  # on tokens and rows
MARK = 3.0  # in dimension 0, where a world marks something
PLACE = 3  # of the token that counts, where its place tells it
FREEDOM = 1.5  # degrees, of the noise with heavy tails
SPLITS = {"train": 2000, "val": 200, "test": 400}
ARCHS: tuple[Arch, ...] = ("linear", "mlp", "attention")


@dataclass(frozen=True)
class Drawn:
    """Samples of a world."""

    tokens: Tensor
    """(N, TOKENS, WIDTH)."""
    said: Tensor
    """(N, WIDTH) what the text rows say, without their noise."""
    oracle: Tensor
    """(N, WIDTH) the same, read from the tokens by who knows the world."""


@dataclass(frozen=True)
class World:
    """The fixed maps of a world: content to tokens, two turns of content, content to text."""

    show: Tensor
    turns: tuple[Tensor, Tensor]
    say: Tensor

    @classmethod
    def drawn(cls, seed: int) -> "World":
        """Maps at random; dimension 0 of tokens stays free for marks."""
        generator = torch.Generator().manual_seed(seed)

        def turn() -> Tensor:
            return torch.linalg.qr(torch.randn(CONTENT, CONTENT, generator=generator))[0]

        show = torch.randn(CONTENT, WIDTH, generator=generator) / CONTENT**0.5
        show[:, 0] = 0
        say = torch.randn(CONTENT, WIDTH, generator=generator) / CONTENT**0.5
        return cls(show, (turn(), turn()), say)

    def seen(self, tokens: Tensor) -> Tensor:
        """(…, CONTENT) content of tokens that show it unturned."""
        return tokens @ torch.linalg.pinv(self.show)


def linear(world: World, content: Tensor, generator: torch.Generator) -> Drawn:
    """See the top of the file."""
    tokens = noisy((content @ world.show)[:, None].expand(-1, TOKENS, -1), generator)
    return Drawn(tokens, content @ world.say, world.seen(tokens.mean(1)) @ world.say)


def rotations(world: World, content: Tensor, generator: torch.Generator) -> Drawn:
    """See the top of the file."""
    second = torch.rand(len(content), generator=generator) < 0.5
    turned = torch.where(second[:, None], content @ world.turns[1], content @ world.turns[0])
    shown = turned @ world.show
    shown[:, 0] = torch.where(second, MARK, -MARK)
    tokens = noisy(shown[:, None].expand(-1, TOKENS, -1), generator)
    mean = tokens.mean(1)
    seen = world.seen(mean)
    back = torch.where(mean[:, :1] > 0, seen @ world.turns[1].T, seen @ world.turns[0].T)
    return Drawn(tokens, content @ world.say, back @ world.say)


def products(world: World, content: Tensor, generator: torch.Generator) -> Drawn:
    """See the top of the file."""
    tokens = noisy((content @ world.show)[:, None].expand(-1, TOKENS, -1), generator)

    def multiplied(of: Tensor) -> Tensor:
        half = CONTENT // 2
        return (of[:, :half] * of[:, half:]) @ world.say[:half]

    return Drawn(tokens, multiplied(content), multiplied(world.seen(tokens.mean(1))))


def needle(world: World, content: Tensor, generator: torch.Generator) -> Drawn:
    """See the top of the file."""
    places = torch.randint(TOKENS, (len(content),), generator=generator)
    tokens = among_others(world, content, places, generator)
    tokens[torch.arange(len(content)), places, 0] += MARK
    found = tokens[torch.arange(len(content)), tokens[..., 0].argmax(1)]
    return Drawn(tokens, content @ world.say, world.seen(found) @ world.say)


def position(world: World, content: Tensor, generator: torch.Generator) -> Drawn:
    """See the top of the file."""
    tokens = among_others(world, content, torch.full((len(content),), PLACE), generator)
    return Drawn(tokens, content @ world.say, world.seen(tokens[:, PLACE]) @ world.say)


def tails(world: World, content: Tensor, generator: torch.Generator) -> Drawn:
    """See the top of the file."""
    clean = (content @ world.show)[:, None].expand(-1, TOKENS, -1)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    heavy = torch.from_numpy(np.random.default_rng(seed).standard_t(FREEDOM, clean.shape)).float()
    tokens = clean + NOISE * heavy
    return Drawn(tokens, content @ world.say, world.seen(tokens.median(1).values) @ world.say)


WORLDS: dict[str, Callable[[World, Tensor, torch.Generator], Drawn]] = {
    world.__name__: world for world in (linear, rotations, products, needle, position, tails)
}


def among_others(world: World, content: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
    """(N, TOKENS, WIDTH) tokens that each show a content of their own, those at the places the sample's."""
    shown = torch.randn(len(content), TOKENS, CONTENT, generator=generator)
    shown[torch.arange(len(content)), places] = content
    return noisy(shown @ world.show, generator)


def noisy(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Values with noise on each."""
    return clean + NOISE * torch.randn(clean.shape, generator=generator)


def pairs_of(drawn: Drawn, generator: torch.Generator) -> PairSource:
    """Samples as the product's loop takes them."""
    kinds = torch.full((TOKENS,), KIND_IMAGE, dtype=torch.uint8)
    texts = noisy(drawn.said[:, None].expand(-1, ROWS, -1), generator)
    pairs = [
        Pair(f"pair-{number}", tokens, kinds, text)
        for number, (tokens, text) in enumerate(zip(drawn.tokens, texts, strict=True))
    ]
    return in_memory(pairs, layer=-1, text_mode="none")


def r_squared(found: Tensor, wanted: Tensor) -> float:
    """Share of the variance over samples that is explained, all dimensions together."""
    error, spread = (found - wanted).square().sum(), (wanted - wanted.mean(0)).square().sum()
    return float(1 - error / spread)


def measured(name: str, seed: int, changes: dict[str, Any]) -> dict[str, float]:
    """R² of each network over the oracle's, and the oracle's own."""
    world, generator = World.drawn(seed), torch.Generator().manual_seed(1000 + seed)
    drawn = {
        split: WORLDS[name](world, torch.randn(count, CONTENT, generator=generator), generator)
        for split, count in SPLITS.items()
    }
    train_pairs, val_pairs = (pairs_of(drawn[split], generator) for split in ("train", "val"))
    test = drawn["test"]
    found = {"oracle": r_squared(test.oracle, test.said)}
    for arch in ARCHS:
        with tempfile.TemporaryDirectory() as folder:
            given = {"output": folder, "log": [], "layer": -1, "text_mode": "none", "length": ROWS}
            options = TrainOptions(**given | {"arch": arch, "seed": seed, "objective": "embedding"} | changes)
            train(options, train_pairs, val_pairs)
            with torch.no_grad():
                outputs = Projector.from_pretrained(folder).network.project(test.tokens)
        found[arch] = r_squared(outputs.mean(1), test.said) / found["oracle"]
    return found


def main() -> None:
    """Measure all, and print or write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file, rewritten after each world")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--changes", type=json.loads, default={}, help="options of train as a JSON object")
    options = parser.parse_args()
    table: dict[str, Any] = {}
    for name in options.worlds:
        begun = time.monotonic()
        rows = [measured(name, seed, options.changes) for seed in range(options.seeds)]
        table[name] = {method: over_seeds([row[method] for row in rows]) for method in rows[0]}
        print(name, json.dumps(table[name]), f"{time.monotonic() - begun:.0f} s", flush=True)
        options.output.write_text(json.dumps({"changes": options.changes, "worlds": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
