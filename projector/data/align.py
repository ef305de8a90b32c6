"""Matching VL tokens with text tokens: selection, area pooling, means, positions.

B batch, S source positions, L aligned positions, T text tokens, V vision-language tokens, D hidden.

The text side decides which positions exist: a caption of T tokens gives min(T, length) aligned positions
under `pool`, min(T, V) under `per_token` and one under `mean`. `soft` trains on tokens matched by optimal
transport, and is judged like `mean`, since a match that looks at the targets flatters whoever spreads; so is
`statistics`, which compares spreads alone. `guide` is the guide's own pooling, zero padding included.
Whatever produces the other side (the VL tokens themselves, a projector, a baseline) is brought to those same
positions, so methods are always compared on the same targets, and no position is ever made of padding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from projector.options import Align

SINKHORN_ROUNDS = 20  # the marginals are within 1% long before
LOWEST_SCORE = -300.0  # below a pair's highest one: less mass than this moves is none
SMALLEST = 1e-300  # what zero is divided by
TEMPERATURE = 0.25  # in standard deviations of a sample's similarities; 0.12 does as well, 0.5 and 1 worse


def area_weights(sources: Tensor, targets: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
    """Weights that resample sequences by area: each target position averages the stretch of source it covers.

    A source of n positions is cut into m equal stretches; a position that lies across a cut counts with the
    fraction inside. The mean over positions is kept exactly, and n < m repeats positions rather than invent
    any. (torch's linear interpolation from 1,100 to 64 reads about 128 of the 1,100 positions; this reads
    all.)

    Args:
        sources: (B,) source lengths n, integer, at least 1.
        targets: (B,) target lengths m, integer, at least 1.
        shape: rows and columns of the result; None: the longest target and source, read from the device.

    Returns:
        (B, max m, max n) float64; rows past a target's length and columns past a source's length are zero.
    """
    rows, columns = shape or (int(targets.max()), int(sources.max()))
    n = sources.double()[:, None, None]
    m = targets.double()[:, None, None]
    row = torch.arange(rows, device=sources.device, dtype=torch.float64)[None, :, None]
    column = torch.arange(columns, device=sources.device, dtype=torch.float64)[None, None, :]
    overlap = torch.minimum((row + 1) * n / m, column + 1) - torch.maximum(row * n / m, column)
    inside = (row < m) & (column < n)
    return overlap.clamp(min=0) * (m / n) * inside


def area_pool(tokens: Tensor, length: int) -> Tensor:
    """Resample one sequence (S, D) to (length, D) by area, in float32 at least; see `area_weights`."""
    wide = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    if tokens.shape[0] == length:
        return tokens.to(wide)
    if length == 1:
        return tokens.to(wide).mean(0, keepdim=True)
    lengths = torch.tensor([[tokens.shape[0]], [length]], device=tokens.device)
    return area_weights(lengths[0], lengths[1])[0].to(wide) @ tokens.to(wide)


def evenly(tokens: Tensor, length: int) -> Tensor:
    """At most `length` of a sequence's tokens, evenly spaced.

    Real tokens, not averages: a network that learnt on averages of sixteen would meet, at inference, tokens of
    a spread it has never seen.
    """
    if len(tokens) <= length:
        return tokens
    places = torch.linspace(0, len(tokens) - 1, length, device=tokens.device).round().long()
    return tokens[places]


def guide_pool(tokens: Tensor, length: int) -> Tensor:
    """(S, D) to (length, D) float32 as the guide does it: longer sequences interpolated, shorter ones zero-padded."""
    rows = tokens.float()
    if len(rows) <= length:
        return functional.pad(rows, (0, 0, 0, length - len(rows)))
    return functional.interpolate(rows.T[None], size=length, mode="linear", align_corners=False)[0].T


def position_mask(lengths: Tensor, longest: int) -> Tensor:
    """(B, longest) bool from (B,) lengths: True where a sequence has a position."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def transport_plan(similarity: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Entropic optimal transport between two sets of tokens (Sinkhorn), every token with equal mass on its
    side.

    Equal masses are what keeps every caption token spoken for: a softmax over similarities lets all image
    tokens crowd around the few captions tokens that resemble the mean.

    Args:
        similarity: (B, S, T) how well row token and column token fit, in units of the temperature.
        rows: (B, S) bool, which row tokens exist.
        columns: (B, T) bool, which column tokens exist.

    Returns:
        (B, S, T): for each row token the share of its mass that goes to each column token; existing rows sum
        to 1.
    """
    # Products in float64, which holds exp(-300) and its inverse, cost a fortieth of sums of exponentials in float32.
    both = rows[:, :, None] & columns[:, None, :]
    scores = similarity.double().masked_fill(~both, -torch.inf)
    highest = scores.amax((1, 2), keepdim=True)
    kernel = torch.where(both, (scores - highest).clamp(min=LOWEST_SCORE).exp(), 0.0)
    row_mass, column_mass = (
        side / side.sum(1, keepdim=True).clamp(min=1).double() for side in (rows, columns)
    )
    u, v = row_mass.sign(), column_mass.sign()
    for _ in range(SINKHORN_ROUNDS):
        # Padding has neither mass nor a kernel: zero over a tiny number stays zero.
        v = column_mass / torch.einsum("bst,bs->bt", kernel, u).clamp(min=SMALLEST)
        u = row_mass / torch.einsum("bst,bt->bs", kernel, v).clamp(min=SMALLEST)
    share = u * rows.sum(1, keepdim=True)
    return (kernel * share[:, :, None] * v[:, None, :]).to(similarity.dtype)


def soft_targets(outputs: Tensor, targets: Tensor, output_mask: Tensor, target_mask: Tensor) -> Tensor:
    """What each output token should become: the mean of the caption tokens that transport matches it with.

    Args:
        outputs: (B, S, D) predictions, standardised.
        targets: (B, T, D) caption tokens, standardised.
        output_mask: (B, S) bool.
        target_mask: (B, T) bool.

    Returns:
        (B, S, D) without gradient.
    """
    with torch.no_grad():
        outputs = outputs.detach().masked_fill(~output_mask[..., None], 0.0)
        targets = targets.masked_fill(~target_mask[..., None], 0.0)
        centred = outputs - outputs.sum(1, keepdim=True) / output_mask.sum(1).clamp(min=1)[:, None, None]
        similarity = centred @ targets.transpose(1, 2)
        both = output_mask[:, :, None] & target_mask[:, None, :]
        spread = (similarity.square() * both).sum((1, 2)) / both.sum((1, 2)).clamp(min=1)
        scaled = similarity / (TEMPERATURE * spread.sqrt().clamp(min=1e-12))[:, None, None]
        return transport_plan(scaled, output_mask, target_mask) @ targets


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, D) mean of (B, S, D) over the positions that exist."""
    kept = torch.where(mask[..., None], rows, 0.0)
    return kept.sum(1, keepdim=True) / mask.sum(1)[:, None, None]


@dataclass(frozen=True)
class Alignment:
    """How the two sides of a pair are brought to the same positions."""

    kind: Align
    """`pool`, `mean`, `per_token` or `soft`; see the module's text."""
    length: int
    """Positions that `pool` keeps at most, on either side, and `soft` on the VL side; all that `guide` has."""

    @property
    def compares_means(self) -> bool:
        """Whether only the means of the two sides are known to belong together, so that they are what is judged."""
        return self.kind in ("mean", "soft", "statistics")

    @property
    def whole(self) -> bool:
        """Whether template tokens and the attention sink take part, as they do in the guide."""
        return self.kind == "guide"

    def positions(self, vl_tokens: int, text_tokens: int) -> int:
        """Aligned positions of a pair with these token counts."""
        if self.kind == "pool":
            return min(self.length, text_tokens)
        if self.kind == "guide":
            return self.length
        return min(vl_tokens, text_tokens) if self.kind == "per_token" else 1

    def training_sides(self, vl: Tensor, text: Tensor, *, keeps_positions: bool) -> tuple[Tensor, Tensor]:
        """What training holds of a pair, float32.

        Args:
            vl: (V, D) VL tokens.
            text: (T, D) caption tokens.
            keeps_positions: whether the network's output i belongs to input i. Then its inputs are aligned
                here, which is what a linear map does to its outputs anyway and costs far less; else all VL
                tokens go in.

        Returns:
            inputs (S, D) and targets (L, D); row i of one answers for row i of the other, unless the network
            has positions of its own or the alignment is `soft`, which matches them anew at each step.
        """
        if self.kind in ("soft", "statistics"):
            return evenly(vl, self.length).float() if keeps_positions else vl.float(), text.float()
        if self.kind == "guide":
            return guide_pool(vl, self.length), guide_pool(text, self.length)
        positions = self.positions(len(vl), len(text))
        inputs = self.bring(vl, positions) if keeps_positions else vl.float()
        return inputs, self.bring(text, positions)

    def bring(self, tokens: Tensor, positions: int, *, own_positions: bool = True) -> Tensor:
        """Either side of a pair at the aligned positions.

        Args:
            tokens: (S, D): text tokens, VL tokens, or what a method made of VL tokens.
            positions: L, from `positions`.
            own_positions: whether position i of `tokens` belongs to token i (false for a fixed set of
                queries, which are then spread over the positions by area).

        Returns:
            (L, D), float32 (float64 kept).
        """
        if self.kind == "guide":
            return guide_pool(tokens, positions)
        if self.kind == "per_token" and own_positions:
            tokens = tokens[:positions]
        return area_pool(tokens, positions)
