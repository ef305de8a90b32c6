"""The training guide's loop, written from its text: what this project's training is measured against.

    https://github.com/fblissjr/llm-dit-experiments, experiments/qwen3_vl/docs/projector_training_guide.md

One .pt file a tensor, `DataLoader` without workers, raw mean squared error, AdamW at 1e-4 with weight decay 0.01,
batches of 32, 50 epochs, a cosine over epochs, the best epoch on validation kept. The guide's table promises 500
warm-up steps and its script has none; this follows the script. Linear and attention have a diagram and no code
there: linear is one `nn.Linear`; attention is 64 learnable queries over `nn.MultiheadAttention`, whose four D by D
matrices are the "about 26M" of the guide.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

EPOCHS = 50
BATCH = 32
RATE = 1e-4
DECAY = 0.01
QUERIES = 64
HEADS = 8
ARCHES = ("linear", "mlp", "attention")


class QueryAttention(nn.Module):
    """Learnable queries that attend over the VL tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(QUERIES, width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, 64, D)."""
        return self.attention(self.queries.expand(len(x), -1, -1), x, x, need_weights=False)[0]


def make_network(arch: str, width: int) -> nn.Module:
    """The guide's network at a width; hidden size 4096 at 2560."""
    if arch == "linear":
        return nn.Linear(width, width)
    if arch == "attention":
        return QueryAttention(width)
    hidden = round(1.6 * width)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class PtFiles(Dataset):
    """Pairs of .pt files by sorted name."""

    def __init__(self, root: Path) -> None:
        self.vl = sorted((root / "embeddings" / "vl").glob("*.pt"))
        self.text = root / "embeddings" / "text"

    def __len__(self) -> int:
        return len(self.vl)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.load(self.vl[index]), torch.load(self.text / self.vl[index].name)


@dataclass
class Run:
    """What a run of the loop gives."""

    network: nn.Module
    """With the weights of the best epoch."""
    seconds: list[float] = field(default_factory=list)
    """Of each epoch, validation and saving included."""
    losses: list[float] = field(default_factory=list)
    """Validation loss of each epoch, raw."""


def train_epoch(
    network: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, precision: Any
) -> None:
    """The steps of an epoch, computed under the context `precision`."""
    for vl, text in loader:
        with precision:
            projected = network(vl)
        loss = F.mse_loss(projected.float(), text)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()


def train(
    root: Path,
    arch: str,
    width: int,
    *,
    epochs: int = EPOCHS,
    planned: int = EPOCHS,
    seed: int = 0,
    shortcuts: bool = False,
    on_epoch: Callable[[int], None] | None = None,
) -> Run:
    """Run the loop.

    Args:
        root: with `train` and `val`, from `write_guide_files`; gets the best weights.
        arch: `linear`, `mlp` or `attention`.
        width: D.
        epochs: to run, of those planned (the cosine's length); fewer for timing.
        planned: see there.
        seed: of weights and order.
        shortcuts: for runs that are not timed: files read once, arithmetic under bfloat16 autocast.
        on_epoch: called with each epoch's number.
    """
    torch.manual_seed(seed)
    sets: list[Dataset] = [PtFiles(root / split) for split in ("train", "val")]
    if shortcuts:
        sets = [[files[i] for i in range(len(files))] for files in sets]  # type: ignore[misc]
    train_loader = DataLoader(sets[0], batch_size=BATCH, shuffle=True)
    val_loader = DataLoader(sets[1], batch_size=BATCH)
    network = make_network(arch, width)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=planned)
    reduced = torch.autocast("cpu", torch.bfloat16) if shortcuts else nullcontext()
    best, kept, run = float("inf"), root / f"{arch}-{seed}.pt", Run(network)
    for epoch in range(epochs):
        begun = time.perf_counter()
        network.train()
        train_epoch(network, train_loader, optimizer, reduced)
        network.eval()
        total = 0.0
        with torch.no_grad():
            for vl, text in val_loader:
                with reduced:
                    projected = network(vl)
                total += F.mse_loss(projected.float(), text).item()
        run.losses.append(total / len(val_loader))
        if run.losses[-1] < best:
            best = run.losses[-1]
            torch.save(network.state_dict(), kept)
        scheduler.step()
        run.seconds.append(time.perf_counter() - begun)
        if on_epoch:
            on_epoch(epoch + 1)
    network.load_state_dict(torch.load(kept))
    return run
