"""Pairs a second of the project's loaders beside stock ones on the same pairs, and the memory of `stream`.

    python benchmarks/loaders.py                      1,000 pairs of 64 tokens a side at width 2560
    python benchmarks/loaders.py --quick              small
    python benchmarks/loaders.py --memory 1000 5000 20000 --output loaders.json

All loaders deliver the same shuffled batches of 32 pairs as bfloat16 tensors (the guide's: float32, as its loop
needs) from warm local disk, in turns within one process. `resident` and `stream` read the shards once beforehand;
that takes `seconds_before_the_first_batch`, and `pairs_per_second_10_epochs` counts it in. A loader that is not
installed is skipped with a note: litdata and mosaicml-streaming are no dependencies of this project.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import guide
import stock
import torch
from synthetic import Synthetic
from synthetic_files import write_guide_files, write_shards
from torch.utils.data import DataLoader
from training import hardware

from projector.data.align import Alignment
from projector.data.dataset_pairs import load_pairs
from projector.data.packed import Held
from projector.data.pairs import Pair
from projector.training.schedule import epoch_order

BATCH = 32
ROUNDS = 3
EPOCHS = 10
ALIGNMENT = Alignment("pool", 64)
Epoch = Callable[[], Iterable[Any]]


def held_epochs(held: Held) -> Epoch:
    """Epochs of the project's own loaders."""
    state = {"epoch": 0}

    def epoch() -> Iterator[Any]:
        order = torch.from_numpy(epoch_order(len(held.keys), BATCH, 0, state["epoch"]))
        state["epoch"] += 1
        for batch in held.batches([row[row >= 0] for row in order]):
            yield batch.inputs, batch.targets

    return epoch


def drained(epoch: Epoch) -> tuple[int, float]:
    """Pairs and seconds of an epoch; one number of each batch is read."""
    begun, pairs = time.perf_counter(), 0
    for inputs, targets in epoch():
        assert inputs.shape == targets.shape, (inputs.shape, targets.shape)
        float(inputs[:, -1, -1].float().sum() + targets[:, -1, -1].float().sum())
        pairs += len(inputs)
    return pairs, time.perf_counter() - begun


def prepared(folder: Path, words: argparse.Namespace) -> tuple[dict[str, Epoch], dict[str, Any]]:
    """All loaders over the same pairs, what they cost before the first batch, and notes on those left out."""
    tokens = words.tokens
    world = Synthetic.realistic(words.width, image_tokens=tokens, text_tokens=(tokens, tokens))
    shards = folder / "shards"
    indices = write_shards(str(shards), world, words.pairs, val_fraction=0.0, text_modes=("none",))
    write_guide_files(folder / "guide", world, {"train": list(indices.values())}, text_mode="none")
    source = load_pairs(str(shards), "train", layer=-8, text_mode="none", tokens="image")
    epochs: dict[str, Epoch] = {}
    before: dict[str, float] = {}
    notes: dict[str, str] = {}
    for name, on_disk in (("resident", False), ("stream", True)):
        begun = time.perf_counter()
        held = Held.load(source, ALIGNMENT, keeps_positions=True, width=words.width, on_disk=on_disk)
        before[name] = time.perf_counter() - begun
        epochs[name] = held_epochs(held)
    files = guide.PtFiles(folder / "guide" / "train")
    epochs["guide: .pt files, DataLoader"] = lambda: DataLoader(files, batch_size=BATCH, shuffle=True)
    for name, make in stock.LOADERS.items():
        if words.only and name not in words.only:
            continue
        begun = time.perf_counter()
        try:
            epochs[name] = make(folder, shards, source)
        except Exception as error:
            notes[name] = f"left out: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        before[name] = time.perf_counter() - begun
    return epochs, {"before": before, "notes": notes}


def compare(words: argparse.Namespace) -> dict[str, Any]:
    """Median pairs a second, in turns; the first turn warms up."""
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        epochs, known = prepared(Path(folder), words)
        for turn in range(words.rounds + 1):
            for name, epoch in list(epochs.items()):
                try:
                    pairs, seconds = drained(epoch)
                except Exception as error:
                    known["notes"][name] = f"left out: {type(error).__name__}: {str(error)[:200]}"
                    del epochs[name]
                    continue
                if turn:
                    rates.setdefault(name, []).append(pairs / seconds)
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    found: dict[str, Any] = {"pairs_per_second": medians, "notes": known["notes"]}
    found["seconds_before_the_first_batch"] = {
        name: round(value, 2) for name, value in known["before"].items()
    }
    found["pairs_per_second_10_epochs"] = {
        name: round(EPOCHS * words.pairs / (known["before"].get(name, 0.0) + EPOCHS * words.pairs / rate), 1)
        for name, rate in medians.items()
        if name in ("resident", "stream")
    }
    found["targets"] = targets(medians)
    return found


def targets(medians: dict[str, float]) -> dict[str, Any]:
    """The targets beside what was found. A mapped file is no loader: it is listed for what memory itself gives."""
    own = ("resident", "stream", stock.MAPPED)
    others = {name: rate for name, rate in medians.items() if name not in own}
    against = {"stream over Ray Data": (3.0, others.get(stock.RAY))}
    against["stream over the fastest stock loader"] = (1.0, max(others.values()))
    against["stream over one mapped file"] = (None, medians.get(stock.MAPPED))
    return {
        name: {"target": target, "found": round(medians["stream"] / rate, 2) if rate else None}
        for name, (target, rate) in against.items()
    }


def cheap_pairs(count: int, tokens: int, width: int) -> Iterator[Pair]:
    """Pairs of the full size whose numbers are cut out of one buffer: memory is measured, not content."""
    buffer = torch.randn(4096, width).to(torch.bfloat16)
    kind = torch.ones(tokens, dtype=torch.uint8)
    for index in range(count):
        start = index % (len(buffer) - 2 * tokens)
        vl, text = buffer[start : start + tokens], buffer[start + tokens : start + 2 * tokens]
        yield Pair(f"pair-{index:06d}", vl, kind, text)


def memory_of(loader: str, count: int, tokens: int, width: int, folder: str | None) -> dict[str, float]:
    """Peak resident memory, in MB above the interpreter's, of loading and of an epoch; run in a fresh process."""

    def peak() -> float:
        # Not ru_maxrss, which a child takes over from its parent.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return float(status["VmHWM"].split()[0]) / 1024

    torch.randn(64, width) @ torch.randn(width, 64)  # draws in what any arithmetic needs
    start = peak()
    pairs = cheap_pairs(count, tokens, width)
    held = Held.load(
        pairs, ALIGNMENT, keeps_positions=True, width=width, on_disk=loader == "stream", folder=folder
    )
    loaded = peak()
    drained_pairs, seconds = drained(held_epochs(held))
    return {
        "peak_mb_after_loading": round(loaded - start, 1),
        "peak_mb_after_an_epoch": round(peak() - start, 1),
        "pairs_per_second": round(drained_pairs / seconds, 1),
    }


def memory(words: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of `stream` by the number of pairs, each in a process of its own; `resident` at the smallest."""
    found: dict[str, Any] = {"tokens_a_side": words.tokens, "width": words.width}
    cases = [("stream", count) for count in words.memory] + [("resident", words.memory[0])]
    for loader, count in cases:
        command = [sys.executable, __file__, "--memory-of", loader, str(count)]
        command += ["--tokens", str(words.tokens), "--width", str(words.width)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[f"{loader}, {count} pairs"] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(words: list[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="*", help="stock loaders to measure; default: all")
    parser.add_argument("--memory", nargs="*", type=int, help="numbers of pairs at which memory is measured")
    parser.add_argument("--memory-of", nargs=2, metavar=("LOADER", "PAIRS"), help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="100 pairs at width 256")
    parser.add_argument("--output", type=Path, help="JSON file; default: stdout")
    options = parser.parse_args(words)
    if options.quick:
        vars(options).update(pairs=100, width=256, rounds=1)
    if options.memory_of:
        loader, count = options.memory_of
        print(json.dumps(memory_of(loader, int(count), options.tokens, options.width, None)))
        return
    result: dict[str, Any] = {"hardware": hardware(), "pairs": options.pairs, "width": options.width}
    result |= compare(options)
    if options.memory:
        result["memory"] = memory(options)
    result["load_average_at_end"] = os.getloadavg()
    text = json.dumps(result, indent=1)
    options.output.write_text(text + "\n") if options.output else print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
