"""A linear map of low rank from all inputs, each at its place, to all outputs: what networks start from.

B batch, S input positions, P positions that inputs are spread over, R outputs, D hidden, r rank.
"""

import torch
from torch import Tensor, nn

from projector.data.align import area_weights

MOST_POSITIONS = 64
RANK = 64


class WholeMap(nn.Module):
    """Inputs spread over so many positions, times `down`, times `up`, plus `bias`; zero until it is set.

    `down` is drawn, alike in every network: were both factors zero, neither would ever learn.
    """

    def __init__(self, width: int, positions: int, rank: int, outputs: int) -> None:
        super().__init__()
        drawn = torch.randn(positions, width, rank, generator=torch.Generator().manual_seed(0))
        self.down = nn.Parameter(drawn / (positions * width) ** 0.5)
        self.up = nn.Parameter(torch.zeros(rank, outputs, width))
        self.bias = nn.Parameter(torch.zeros(outputs, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, R, D) of standardised inputs (B, S, D), which exist where `mask` (B, S) is True."""
        narrow = torch.einsum("bpd,pdr->br", spread_over(x, mask, len(self.down)), self.down)
        return torch.einsum("br,rqe->bqe", narrow, self.up) + self.bias

    @torch.no_grad()
    def set(self, down: Tensor, up: Tensor, bias: Tensor) -> None:
        """Take over a map of as low a rank or a lower one; the rest of it adds nothing yet."""
        self.down[..., : down.shape[-1]] = down
        self.up[: len(up)] = up
        self.bias.copy_(bias)


def spread_over(x: Tensor, mask: Tensor | None, positions: int) -> Tensor:
    """Sequences (B, S, D) resampled by area to so many positions, (B, positions, D); padding takes no part."""
    if mask is None:
        lengths = torch.full((x.shape[0],), x.shape[1], device=x.device)
    else:
        lengths = mask.sum(1)
        x = torch.where(mask[..., None], x, 0.0)
    wanted = torch.full_like(lengths, positions)
    return area_weights(lengths, wanted, (positions, x.shape[1])).to(x.dtype) @ x


def spread_back(rows: Tensor, mask: Tensor | None, positions: int) -> Tensor:
    """Rows (B, M, D) resampled by area to the positions that each sequence has, (B, positions, D), zero behind them."""
    wanted = torch.full((rows.shape[0],), positions, device=rows.device) if mask is None else mask.sum(1)
    have = torch.full_like(wanted, rows.shape[1])
    return area_weights(have, wanted, (positions, rows.shape[1])).to(rows.dtype) @ rows
