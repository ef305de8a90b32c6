"""Builds without models: a stand-in shard maker, whose samples' bytes follow from their ids alone.

`ray_support.stand_in_command` runs it in a process of its own, for builds that are killed, stopped or beside others.
"""

import io
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import ml_dtypes
import numpy as np
from PIL import Image

from projector.making.steps import ShardMaker, Step
from shards.format.plan import PlannedSample
from shards.format.sample import Failure, Sample, make_sample

HIDDEN = 8
BATCH = 2
REFUSED = "<|im_end|>"  # in a caption: the sample fails, as it does at the real text encoder
TEXT_KIND = [0, 2, 2, 2, 0]
KINDS = {"caption": [0, 3, 1, 1, 1, 1, 3, 2, 2, 0], "none": [0, 3, 1, 1, 1, 1, 3, 0]}


class StandInMaker(ShardMaker):
    """Noise drawn by each sample's id in place of a picture and of hidden states.

    Args:
        height, width: of a picture in pixels.
        layers, text_modes, latents: what there is of each sample.
    """

    def __init__(self, *, height, width, layers, text_modes, latents) -> None:
        super().__init__()
        self.size, self.layers, self.text_modes, self.latents = (height, width), layers, text_modes, latents

    def steps(
        self, planned: Sequence[PlannedSample], apart: Collection[str], given_up: Mapping[str, Failure]
    ) -> Iterator[Step]:
        """A step per pair of samples; one that is to be made apart has a step of its own, and so has its mate."""
        for start in range(0, len(planned), BATCH):
            batch = planned[start : start + BATCH]
            alone = any(sample.id in apart or sample.id in given_up for sample in batch)
            for part in [[sample] for sample in batch] if alone else [batch]:
                wanted = [sample for sample in part if sample.id not in given_up]
                yield Step(wanted, partial(self._make, part, given_up))

    def _make(self, part, given_up) -> list[Sample | Failure]:
        return [given_up.get(sample.id) or self._sample(sample) for sample in part]

    def _sample(self, planned: PlannedSample) -> Sample | Failure:
        if REFUSED in planned.caption:
            return Failure.from_exception("text", ValueError(f"the caption holds {REFUSED}"))
        random = np.random.default_rng(int(planned.id, 16))

        def states(kinds):
            return random.normal(size=(len(kinds), HIDDEN)).astype(ml_dtypes.bfloat16)

        tensors = {"text": states(TEXT_KIND), "text.kind": np.array(TEXT_KIND, dtype=np.uint8)}
        for mode in self.text_modes:
            tensors[f"vl.{mode}.kind"] = np.array(KINDS[mode], dtype=np.uint8)
            tensors |= {f"vl.{mode}.{layer}": states(KINDS[mode]) for layer in self.layers}
        if self.latents:
            tensors["latents"] = random.normal(size=(2, 4, 4)).astype(ml_dtypes.bfloat16)
        noise = random.integers(256, size=(*self.size, 3), dtype=np.uint8)
        picture = io.BytesIO()
        Image.fromarray(noise).save(picture, format="PNG", compress_level=1)
        return make_sample(planned, image=picture.getvalue(), image_format="png", tensors=tensors)


def stand_in_of(_placement, _sources, settings):
    """In the place of `build.maker_of`; without the settings' own class, for which workers would import torch."""
    wanted = ("height", "width", "layers", "text_modes", "latents")
    return partial(StandInMaker, **{name: getattr(settings, name) for name in wanted})


@contextmanager
def standing_in() -> Iterator[None]:
    """Have every build of this process made by stand-ins for the time of a block."""
    from ray import cloudpickle

    from ray_jobs.jobs import build

    stand_in = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(stand_in)  # workers do not look into this folder
    before, build.maker_of = build.maker_of, stand_in_of
    try:
        yield
    finally:
        build.maker_of = before
        cloudpickle.unregister_pickle_by_value(stand_in)


def main(words: Sequence[str]) -> int:
    """`python -m ray_jobs` with stand-ins."""
    from ray_jobs.__main__ import main as run

    with standing_in():
        return run(words)
