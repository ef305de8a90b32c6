"""Ridge on means against ridge on softly matched tokens, by number of pairs: what each is better at.

    python benchmarks/alignments.py --output benchmarks/results/alignments-512.json

The error is that of a sample's mean token, in standard deviations of caption tokens. Content is read of that token
(`content_probe`, as in the other benchmarks) and token by token: how well each output token tells of the sample as a
whole (`token_global`) and of the concept that its image token shows (`token_concept`), as correlations with the truth.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np
from steps import ALONE
from synthetic import ContentProbe, Synthetic
from training import hardware, over_seeds

from projector.data.pairs import Pair, in_memory
from projector.network.architectures import ProjectorNetwork
from projector.options import Align, TrainOptions
from projector.training.worker import Trainer

VAL, TEST = 100, 300
FIRST_VAL, FIRST_TEST = 50_000, 80_000  # indices far from the training pairs'
ALIGNMENTS: tuple[Align, ...] = ("mean", "soft")


def main(words: list[str]) -> None:
    """Fit, measure, and print or write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, nargs="+", default=[200, 600, 3000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file; default: stdout")
    options = parser.parse_args(words)
    rows = []
    for pairs in options.pairs:
        found = [one(options.width, pairs, seed) for seed in range(options.seeds)]
        for align in ALIGNMENTS:
            of_align = [each[align] for each in found]
            figures = {name: over_seeds([run[name] for run in of_align]) for name in of_align[0]}
            rows.append({"pairs": pairs, "align": align, **figures})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    result = {"hardware": hardware(), "width": options.width, "seeds": options.seeds, "rows": rows}
    text = json.dumps(result, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    else:
        print(text, end="")


def one(width: int, pairs: int, seed: int) -> dict[str, dict[str, float]]:
    """Both alignments in one world."""
    world = Synthetic.realistic(width, seed)
    train, val = (
        in_memory(list(world.source(count, first=first))) for count, first in ((pairs, 0), (VAL, FIRST_VAL))
    )
    test = list(world.source(TEST, first=FIRST_TEST))
    probe = ContentProbe.fit(train, world.latents(range(pairs)))
    found = {}
    for align in ALIGNMENTS:
        run = Trainer(TrainOptions(arch="ridge", align=align), ALONE, train, val, None)
        run.fit_in_closed_form()
        found[align] = measured(world, probe, run.network, test)
    return found


def measured(
    world: Synthetic, probe: ContentProbe, network: ProjectorNetwork, test: list[Pair]
) -> dict[str, float]:
    """The error of the mean token, and how well outputs tell what their samples are about."""
    errors, means, readings, truths = [], [], [], []
    for index, pair in enumerate(test, start=FIRST_TEST):
        outputs = network.project(pair.vl[None].float())[0].detach()
        gap = (outputs.mean(0) - pair.text.float().mean(0)).numpy() / probe.std
        errors.append(float((gap**2).mean()))
        means.append(probe.read(outputs))
        readings.append(((outputs.double().numpy() - probe.mean) / probe.std) @ probe.weights)
        truths.append(world.shown(index))
    x, y = (rows - rows.mean(0) for rows in (np.concatenate(readings), np.concatenate(truths)))
    correlation = (x * y).sum(0) / np.sqrt((x**2).sum(0) * (y**2).sum(0))
    latents = world.latents(range(FIRST_TEST, FIRST_TEST + len(test)))
    return {
        "error_of_means": statistics.mean(errors),
        "content_probe": probe.score(np.array(means), latents),
        "token_global": float(correlation[: world.latent].mean()),
        "token_concept": float(correlation[world.latent :].mean()),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
