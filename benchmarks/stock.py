"""Stock loaders over the same pairs, each as its own documentation has it: shuffled batches of 32 in bfloat16."""

import importlib.util
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projector.data.dataset_pairs import bfloat16_tensor
from projector.data.pairs import PairSource
from shards.format.sample import KIND_CAPTION, KIND_IMAGE, decode_tensors

BATCH = 32
RAY, MAPPED = "Ray Data iter_torch_batches", "one safetensors file, mapped"
NAMES = ("text", "text.kind", "vl.none.-8", "vl.none.kind")
Epoch = Callable[[], Iterable[Any]]


def sides(data: bytes) -> tuple[Tensor, Tensor]:
    """Image tokens and caption tokens of a sample's safetensors."""
    tensors = decode_tensors(data, NAMES)
    vl = tensors["vl.none.-8"][tensors["vl.none.kind"] == KIND_IMAGE]
    text = tensors["text"][tensors["text.kind"] == KIND_CAPTION]
    return bfloat16_tensor(vl), bfloat16_tensor(text)


def as_tensor(numbers: Any, width: int) -> Tensor:
    """int16 numbers of a column, or bytes, as bfloat16 (tokens, width)."""
    array = np.frombuffer(numbers, dtype=np.int16) if isinstance(numbers, bytes) else numbers
    return (
        torch.as_tensor(array.copy() if isinstance(numbers, bytes) else array)
        .view(torch.bfloat16)
        .view(-1, width)
    )


def web_dataset(_folder: Path, shards: Path, _source: PairSource) -> Epoch:
    """webdataset's WebLoader over the project's own shards."""
    import webdataset as wds

    urls = sorted(map(str, (shards / "train").glob("*.tar")))

    def epoch() -> Iterator[Any]:
        dataset = (
            wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
            .shuffle(256)
            .to_tuple("safetensors")
            .map(lambda sample: sides(sample[0]))
            .batched(BATCH, collation_fn=lambda rows: [torch.stack(side) for side in zip(*rows, strict=True)])
        )
        return iter(wds.WebLoader(dataset, batch_size=None, num_workers=0))

    return epoch


def ray_data(_folder: Path, shards: Path, _source: PairSource) -> Epoch:
    """Ray Data's `read_webdataset`, a map that decodes, `iter_torch_batches`."""
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    urls = sorted(map(str, (shards / "train").glob("*.tar")))

    def decode(row: dict[str, Any]) -> dict[str, Any]:
        vl, text = sides(row["safetensors"])
        return {"vl": vl.view(torch.int16).numpy(), "text": text.view(torch.int16).numpy()}

    def epoch() -> Iterator[Any]:
        dataset = ray.data.read_webdataset(urls, suffixes=["safetensors"], decoder=None, shuffle="files").map(
            decode
        )
        for batch in dataset.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=256):
            yield batch["vl"].view(torch.bfloat16), batch["text"].view(torch.bfloat16)

    return epoch


def hugging_face(folder: Path, _shards: Path, source: PairSource) -> Epoch:
    """HF datasets: an Arrow table of fixed arrays in torch format, shuffled by index."""
    import datasets

    datasets.disable_progress_bars()
    first = next(iter(source)).text.shape
    column = datasets.Array2D(shape=tuple(first), dtype="int16")

    def rows() -> Iterator[dict[str, Any]]:
        for pair in source:
            yield {"vl": pair.vl.view(torch.int16).numpy(), "text": pair.text.view(torch.int16).numpy()}

    table = datasets.Dataset.from_generator(
        rows, features=datasets.Features({"vl": column, "text": column}), cache_dir=str(folder / "hf")
    ).with_format("torch")
    state = {"epoch": 0}

    def epoch() -> Iterator[Any]:
        state["epoch"] += 1
        for batch in table.shuffle(seed=state["epoch"]).iter(batch_size=BATCH):
            yield tuple(batch[side].to(torch.int16).view(torch.bfloat16) for side in ("vl", "text"))

    return epoch


def lit_data(folder: Path, _shards: Path, source: PairSource) -> Epoch:
    """litdata: chunks written by its own writer, its StreamingDataLoader."""
    import litdata
    from litdata.streaming.writer import BinaryWriter

    root = folder / "lit"
    root.mkdir()
    writer = BinaryWriter(str(root), chunk_bytes="64MB")
    for index, pair in enumerate(source):
        # Its writer takes no bfloat16.
        writer.add_item(index, {"vl": pair.vl.view(torch.int16), "text": pair.text.view(torch.int16)})
    writer.done()
    writer.merge()
    dataset = litdata.StreamingDataset(str(root), shuffle=True, drop_last=False)

    def epoch() -> Iterator[Any]:
        for batch in litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0):
            yield batch["vl"].view(torch.bfloat16), batch["text"].view(torch.bfloat16)

    return epoch


def mosaic(folder: Path, _shards: Path, source: PairSource) -> Epoch:
    """mosaicml-streaming: MDS shards of raw bytes, StreamingDataset under a DataLoader."""
    # The package's own __init__ draws in torchvision, which has no CPU build; its base does not need it.
    found = importlib.util.find_spec("streaming")
    if found is None:
        raise ModuleNotFoundError("mosaicml-streaming is not installed")
    package = types.ModuleType("streaming")
    package.__path__ = list(found.submodule_search_locations or ())
    package.__spec__ = found
    sys.modules.setdefault("streaming", package)
    from streaming.base import MDSWriter, StreamingDataset

    width, root = source.width, str(folder / "mds")
    with MDSWriter(out=root, columns={"vl": "bytes", "text": "bytes"}) as writer:
        for pair in source:
            writer.write(
                {side: getattr(pair, side).view(torch.int16).numpy().tobytes() for side in ("vl", "text")}
            )
    dataset = StreamingDataset(local=root, shuffle=True, batch_size=BATCH)

    def collate(rows: list[dict[str, bytes]]) -> list[Tensor]:
        return [torch.stack([as_tensor(row[side], width) for row in rows]) for side in ("vl", "text")]

    return lambda: torch.utils.data.DataLoader(dataset, batch_size=BATCH, collate_fn=collate)


def safetensors_mmap(folder: Path, _shards: Path, source: PairSource) -> Epoch:
    """One safetensors file with all pairs, mapped into memory, rows picked at random."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = folder / "all.safetensors"
    pairs = list(source)
    save_file({side: torch.stack([getattr(pair, side) for pair in pairs]) for side in ("vl", "text")}, path)

    def epoch() -> Iterator[Any]:
        with safe_open(path, framework="pt") as file:
            whole = [file.get_tensor(side) for side in ("vl", "text")]
            for part in torch.split(torch.randperm(len(whole[0])), BATCH):
                yield whole[0][part], whole[1][part]

    return epoch


LOADERS: dict[str, Callable[[Path, Path, PairSource], Epoch]] = {
    "webdataset WebLoader": web_dataset,
    RAY: ray_data,
    "HF datasets": hugging_face,
    "litdata": lit_data,
    "mosaicml-streaming": mosaic,
    MAPPED: safetensors_mmap,
}
