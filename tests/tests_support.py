"""Small sound datasets that tests of several rooms build; on the path through pytest's `pythonpath`."""

import io
from pathlib import Path

import ml_dtypes
import numpy as np
from PIL import Image

from shards.dataset.dataset import Dataset
from shards.dataset.publish import Circumstances, publish
from shards.format.plan import Plan, PlannedSample, PlannedShard, make_plan
from shards.format.sample import Expected, Failure, Sample, make_sample
from shards.format.shard_writer import ShardWriter
from shards.prompts.prompt import Prompt

HIDDEN = 8
SIZE = 32  # pixels
SETTINGS = {
    "layers": [-8, -6],
    "text_modes": ["caption", "none"],
    "width": SIZE,
    "height": SIZE,
    "models": {"image": {"id": "none"}},
}
EXPECTED = Expected(text_modes=("caption", "none"), layers=(-8, -6), width=SIZE, height=SIZE)


def a_plan(count: int = 20, per_shard: int = 4, segments: tuple[int, ...] | None = None) -> Plan:
    """A plan over captions that hold everything a caption may hold."""
    odd = [
        '<b>bold</b> & "quoted"',
        "emoji 🦊 and עברית",
        "two\nlines",
        "back\\slash; $(rm -rf) `x`",
        "../../etc/passwd",
    ]
    prompts = [
        Prompt(odd[i] if i < len(odd) else f"caption number {i}", content="photograph") for i in range(count)
    ]
    return make_plan(
        prompts,
        seed=7,
        val_fraction=0.3,
        test_fraction=0.2,
        samples_per_shard=per_shard,
        segments=segments or (count,),
    )


def a_sample(planned: PlannedSample, **changes: np.ndarray) -> Sample:
    """A sound sample whose every value follows from its id."""
    random = np.random.default_rng(int(planned.id, 16))

    def states(tokens: int) -> np.ndarray:
        return random.normal(size=(tokens, HIDDEN)).astype(ml_dtypes.bfloat16)

    text_kind = np.array([0, 2, 2, 2, 0], dtype=np.uint8)
    tensors = {"text": states(5), "text.kind": text_kind}
    for mode, kinds in (("caption", [0, 3, 1, 1, 1, 1, 3, 2, 2, 2, 0]), ("none", [0, 3, 1, 1, 1, 1, 3, 0])):
        tensors[f"vl.{mode}.kind"] = np.array(kinds, dtype=np.uint8)
        for layer in (-8, -6):
            tensors[f"vl.{mode}.{layer}"] = states(len(kinds))
    picture = Image.fromarray(random.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return make_sample(planned, image=buffer.getvalue(), image_format="png", tensors=tensors | changes)


def write_shard(dataset: Dataset, planned: PlannedShard, folder: Path, *, failing: tuple[int, ...] = ()):
    """Build a shard on local disk; positions in `failing` fail."""
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(planned, folder, dataset.fingerprint, EXPECTED) as writer:
        for sample in planned.samples:
            if sample.position in failing:
                writer.fail(Failure.from_exception("image", RuntimeError("no picture")))
            else:
                writer.add(a_sample(sample))
        return writer.close()


def commit_shard(dataset: Dataset, planned: PlannedShard, folder: Path, **options):
    """Build and commit a shard."""
    built = write_shard(dataset, planned, folder / f"{planned.name}-{len(list(folder.glob('*')))}", **options)
    return publish(dataset, built, Circumstances("test", 1.0, 0.5, "CPU"))


def keys(store, prefix=""):
    """Keys of a store in the order of its listing."""
    return [entry.key for entry in store.list(prefix)]
