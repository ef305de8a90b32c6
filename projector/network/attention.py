"""Cross-attention from learnable queries, and where a token stands in its sequence.

B batch, S input positions, D hidden.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ATTENTION_HEADS = 8  # head size 320 at width 2560
POSITION_WAVELENGTHS = (
    0.004,
    2.0,
)  # shortest and longest, as shares of the sequence: 4 of 1,024 positions to twice all


class Attention(nn.Module):
    """Learnable queries that cross-attend over the input: any number of positions in, always the same number
    out.

    The queries need no projection of their own, so with key, value, attention output and final linear layers
    of D by D each the guide's "about 26M" at width 2560 comes to 26,385,920. Keys carry sinusoids of their
    relative position, since without them attention cannot tell the corner of an image from its middle.
    """

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in range(ATTENTION_HEADS, 0, -1) if width % heads == 0)
        self.queries = nn.Parameter(torch.randn(queries, width))
        # Softmax cancels a bias on keys: its gradient is rounding noise, which Adam would blow up.
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.mix = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend over (B, S, D) where `mask` (B, S) is True (None: everywhere); returns (B, queries, D)."""
        batch, positions, width = x.shape
        lengths = mask.sum(1) if mask is not None else x.new_full((batch,), positions)
        placed = x + relative_positions(lengths, positions, width).to(x.dtype)
        # At inference, where keys of long inputs would cost most; in training the weights change with every step.
        # An exported program takes inputs of any length, so one way must do for all.
        long = torch.compiler.is_exporting() or positions > 2 * len(self.queries)
        absorbed = long and not torch.is_grad_enabled()
        attended = (self._attend_absorbed if absorbed else self._attend)(x, placed, mask)
        mixed = F.gelu(self.mix(attended.transpose(1, 2).flatten(-2)))
        return self.out(mixed)  # type: ignore[no-any-return]

    def _attend(self, x: Tensor, placed: Tensor, mask: Tensor | None) -> Tensor:
        """(B, heads, queries, D / heads): keys and values of every position, then attention."""
        keys = self.key(placed)
        queries = self._split(self.queries.to(keys.dtype)[None]).expand(len(x), -1, -1, -1)
        where = None if mask is None else mask[:, None, None, :]
        return F.scaled_dot_product_attention(queries, self._split(keys), self._split(self.value(x)), where)

    def _attend_absorbed(self, x: Tensor, placed: Tensor, mask: Tensor | None) -> Tensor:
        """The same with the key and value matrices taken over to the side of the queries.

        Queries are constants, so q (K x) = (q K) x needs no keys, and the values of a weighted mean are the
        weighted mean's value: two products of (heads * queries, D) with (D, S) instead of two of (D, D) with (D, S).
        """
        width = x.shape[-1]
        size = width // self.heads
        key, value = (linear.weight.view(self.heads, size, width) for linear in (self.key, self.value))
        queries = self.queries.view(-1, self.heads, size)
        constants = torch.einsum("qhd,hdw->hqw", queries, key) / math.sqrt(size)
        scores = torch.einsum("hqw,bsw->bhqs", constants, placed)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        means = torch.einsum("bhqs,bsw->bhqw", scores.softmax(-1), x)
        bias = self.value.bias.view(self.heads, 1, size)
        return torch.einsum("bhqw,hdw->bhqd", means, value) + bias

    def _split(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, heads, S, D / heads)."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


def relative_positions(lengths: Tensor, positions: int, width: int) -> Tensor:
    """Sinusoids of where a position stands in its sequence, as a share of its length.

    Args:
        lengths: (B,) positions that each sequence really has.
        positions: S, the padded length.
        width: D.

    Returns:
        (B, S, D) float32 in [-1, 1]; wavelengths run geometrically over POSITION_WAVELENGTHS.
    """
    share = (torch.arange(positions, device=lengths.device) + 0.5) / lengths[:, None].clamp(min=1)
    short, long = (math.log(wavelength) for wavelength in POSITION_WAVELENGTHS)
    half = (width + 1) // 2
    frequencies = 2 * math.pi / torch.linspace(short, long, half, device=lengths.device).exp()
    angles = share[..., None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)[..., :width]
