"""The pairs of `Synthetic` as files: shards of a real dataset, and the folders of the training guide.

D hidden.
"""

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from PIL import Image
from synthetic import Floats, Synthetic
from torch import Tensor
from torch.nn import functional as F

from projector.options import TextMode
from shards.dataset.dataset import Dataset
from shards.dataset.publish import Circumstances, publish
from shards.format.plan import PlannedSample, make_plan
from shards.format.sample import KIND_NAMES, Array, Expected, Sample, make_sample
from shards.format.shard_writer import ShardWriter
from shards.prompts.prompt import Prompt
from shards.stores.local import open_storage

LAYER = -8
PICTURE_SIZE = 32  # pixels
GUIDE_LENGTH = 64
BOTH_MODES: tuple[TextMode, ...] = ("caption", "none")


def tensors_of(
    world: Synthetic, index: int, *, text_modes: Sequence[TextMode] = BOTH_MODES, vl_tokens: str = "all"
) -> dict[str, Array]:
    """A sample's tensors as FORMAT.md has them.

    Args:
        world: the samples.
        index: of the sample.
        text_modes: of the VL side.
        vl_tokens: `all`, or `pooled:N` to average each kind of VL token down to at most N, as a build does.
    """
    made: dict[str, Array] = {}
    for name, (rows, kinds) in world.encodings(index, text_modes).items():
        if name != "text" and vl_tokens != "all":
            rows, kinds = _pooled(rows, kinds, int(vl_tokens.removeprefix("pooled:")))
        made[name if name == "text" else f"{name}.{LAYER}"] = rows.astype(ml_dtypes.bfloat16)
        made[f"{name}.kind"] = kinds
    return made


def _pooled(rows: Floats, kinds: Array, length: int) -> tuple[Floats, Array]:
    """Each kind averaged down to at most `length` neighbours, kinds in the order of their number."""
    parts = [torch.from_numpy(rows[kinds == kind]) for kind in range(len(KIND_NAMES))]
    parts = [F.adaptive_avg_pool1d(part.T, length).T if len(part) > length else part for part in parts]
    numbers = [np.full(len(part), kind, dtype=np.uint8) for kind, part in enumerate(parts)]
    return torch.cat(parts).numpy(), np.concatenate(numbers)


def write_shards(
    root: str,
    world: Synthetic,
    count: int,
    *,
    val_fraction: float = 0.1,
    samples_per_shard: int = 250,
    text_modes: Sequence[TextMode] = BOTH_MODES,
    vl_tokens: str = "all",
) -> dict[str, int]:
    """Write a dataset of FORMAT.md.

    Args:
        root: local folder or s3://, empty or new.
        world: the samples.
        count: of samples, from index 0 on; the caption of each carries its index.
        val_fraction: share of captions held out, decided by their hash.
        samples_per_shard: in a full shard.
        text_modes: of the VL side.
        vl_tokens: `all` or `pooled:N`.

    Returns:
        the index in the world of each sample, by its key, in the order in which they are read.
    """
    settings = {
        "layers": [LAYER],
        "text_modes": sorted(text_modes),
        "width": PICTURE_SIZE,
        "height": PICTURE_SIZE,
        "vl_tokens": vl_tokens,
        "models": {"image": {"id": "synthetic"}, "vl": {"id": "synthetic"}},
        "synthetic": repr(world),
    }
    expected = Expected(tuple(sorted(text_modes)), (LAYER,), PICTURE_SIZE, PICTURE_SIZE)
    dataset = Dataset.create_or_open(open_storage(root), settings, {})
    plan = make_plan(
        [Prompt(f"synthetic pair {index:06d}") for index in range(count)],
        seed=world.seed,
        val_fraction=val_fraction,
        samples_per_shard=samples_per_shard,
        segments=dataset.grow(count, append=False),
    )
    for shard in plan.shards:
        with tempfile.TemporaryDirectory() as folder:
            with ShardWriter(shard, Path(folder), dataset.fingerprint, expected) as writer:
                for planned in shard.samples:
                    writer.add(_sample(planned, world, text_modes, vl_tokens))
                built = writer.close()
            publish(dataset, built, Circumstances("synthetic"))
    dataset.write_manifest()
    return {planned.key: planned.index for shard in plan.shards for planned in shard.samples}


def _sample(
    planned: PlannedSample, world: Synthetic, text_modes: Sequence[TextMode], vl_tokens: str
) -> Sample:
    random = np.random.default_rng([world.seed, 4, planned.index])
    pixels = random.integers(0, 255, (PICTURE_SIZE, PICTURE_SIZE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
    tensors = tensors_of(world, planned.index, text_modes=text_modes, vl_tokens=vl_tokens)
    return make_sample(planned, image=buffer.getvalue(), image_format="png", tensors=tensors)


def guide_pool(tokens: Tensor, length: int = GUIDE_LENGTH) -> Tensor:
    """The guide's `pool_to_length`: zeros after short sequences, linear interpolation of long ones.

    Args:
        tokens: (S, D).
        length: wanted.

    Returns:
        (length, D).
    """
    if len(tokens) <= length:
        return F.pad(tokens, (0, 0, 0, length - len(tokens)))
    return F.interpolate(tokens.T[None], size=length, mode="linear", align_corners=False)[0].T.contiguous()


def write_guide_files(
    root: Path, world: Synthetic, splits: Mapping[str, Sequence[int]], *, text_mode: TextMode = "caption"
) -> None:
    """Write the guide's dataset structure: one .pt file a tensor, each pooled from all that the encoder gives.

    Template and sink are in, as in the guide's extraction. Values are float32: the guide's float32 network
    refuses anything else.

    Args:
        root: folder; gets SPLIT/pairs.jsonl and SPLIT/embeddings/{vl,text}/00000.pt, ...
        world: the samples.
        splits: indices of the samples of `train` and `val`, in the order of the file names.
        text_mode: text in the VL input.
    """
    for split, indices in splits.items():
        folders = {side: root / split / "embeddings" / side for side in ("vl", "text")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        lines = []
        for number, index in enumerate(indices):
            encodings = world.encodings(index, (text_mode,))
            for side, name in (("vl", f"vl.{text_mode}"), ("text", "text")):
                pooled = guide_pool(torch.from_numpy(encodings[name][0]))
                torch.save(pooled, folders[side] / f"{number:05d}.pt")
            paths = {f"{side}_emb_path": str(folders[side] / f"{number:05d}.pt") for side in folders}
            lines.append(json.dumps({"caption": f"synthetic pair {index:06d}", **paths}))
        (root / split / "pairs.jsonl").write_text("\n".join(lines) + "\n")
