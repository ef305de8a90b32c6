"""The networks between the embedding spaces: raw embeddings in, raw embeddings out, standardised inside.

B batch, S input positions, M output positions, D hidden.
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projector.options import Arch
from shards.errors import UsageError
from shards.statistics import RunningStatistics

ATTENTION_HEADS = 8  # head size 320 at width 2560
LARGEST_RESTORATION = (
    20.0  # a dimension predicted with a correlation below 0.05 is noise: do not blow it up further
)
POSITION_WAVELENGTHS = (
    0.004,
    2.0,
)  # shortest and longest, as shares of the sequence: 4 of 1,024 positions to twice all


@dataclass(frozen=True)
class Shape:
    """What it takes to build a network, as config.json keeps it."""

    arch: Arch
    """Which of the four."""
    width: int
    """D of both sides."""
    hidden: int
    """Hidden size of `mlp`."""
    queries: int
    """Learnable queries, hence outputs, of `attention`."""

    def as_json(self) -> dict[str, str | int]:
        """A JSON object that `Shape(**object)` reads back."""
        return asdict(self)


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
        _start_from_the_mean(self.out)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend over (B, S, D) where `mask` (B, S) is True (None: everywhere); returns (B, queries, D)."""
        batch, positions, width = x.shape
        lengths = mask.sum(1) if mask is not None else x.new_full((batch,), positions)
        keys = self.key(x + relative_positions(lengths, positions, width).to(x.dtype))
        queries = self._split(self.queries.to(keys.dtype)[None]).expand(batch, -1, -1, -1)
        attended = F.scaled_dot_product_attention(
            queries,
            self._split(keys),
            self._split(self.value(x)),
            attn_mask=None if mask is None else mask[:, None, None, :],
        )
        mixed = F.gelu(self.mix(attended.transpose(1, 2).flatten(-2)))
        return self.out(mixed)  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, heads, S, D / heads)."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class ProjectorNetwork(nn.Module):
    """Standardise the input per dimension, map it, and undo the target's standardisation.

    `forward` stays in the standardised target space, where training's loss lives; `project` goes all the way
    from raw to raw. The statistics are float32 buffers and are applied in float32 also under autocast: hidden
    states reach 13,504, where bfloat16 resolves steps of 64.
    """

    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    restore_scale: Tensor
    restore_shift: Tensor
    restore_strength: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.core = _core(shape)
        for name in ("input", "target"):
            self.register_buffer(f"{name}_mean", torch.zeros(shape.width))
            self.register_buffer(f"{name}_std", torch.ones(shape.width))
        self.register_buffer("restore_scale", torch.ones(shape.width))
        self.register_buffer("restore_shift", torch.zeros(shape.width))
        self.register_buffer("restore_strength", torch.zeros(()))

    @property
    def keeps_positions(self) -> bool:
        """Whether output i belongs to input i (attention has outputs of its own)."""
        return not isinstance(self.core, Attention)

    @property
    def parameter_count(self) -> int:
        """Trained numbers; the standardisation's buffers are measured, not trained, and do not count."""
        return sum(parameter.numel() for parameter in self.parameters())

    def set_statistics(self, inputs: RunningStatistics, targets: RunningStatistics) -> None:
        """Take over the per-dimension means and standard deviations of both sides."""
        for name, statistics in (("input", inputs), ("target", targets)):
            getattr(self, f"{name}_mean").copy_(torch.from_numpy(statistics.mean))
            getattr(self, f"{name}_std").copy_(safe_std(torch.from_numpy(statistics.std())))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map raw inputs to standardised outputs.

        Args:
            x: (B, S, D) raw embeddings, any float dtype.
            mask: (B, S) bool, True where a position exists; only attention looks at it. None: everywhere.

        Returns:
            (B, M, D) float32 in the standardised target space; M is S, or the number of queries.
        """
        with torch.autocast(x.device.type, enabled=False):
            standardised = (x.float() - self.input_mean) / self.input_std
        if isinstance(self.core, Attention):
            return self.core(standardised, mask).float()  # type: ignore[no-any-return]
        return self.core(standardised).float()  # type: ignore[no-any-return]

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map raw inputs (B, S, D) to raw outputs (B, M, D) float32; see `forward`."""
        outputs = self(x, mask)
        with torch.autocast(x.device.type, enabled=False):
            restored = outputs * self.restore_scale + self.restore_shift
            return self.to_raw(torch.lerp(outputs, restored, self.restore_strength))

    def set_restoration(
        self, outputs: RunningStatistics, targets: RunningStatistics, strength: float
    ) -> None:
        """Learn the per-dimension affine that gives the outputs the targets' mean and spread.

        Squared error shrinks what it cannot predict: the outputs' std falls to about the correlation.
        Stretching them back costs squared error and no content; `strength` is how much of it `project` does.

        Args:
            outputs: statistics of the network's standardised outputs on held-out tokens.
            targets: statistics of standardised caption tokens.
            strength: 0 (none) to 1 (full).
        """
        out_std, target_std = torch.from_numpy(outputs.std()), torch.from_numpy(targets.std())
        scale = (target_std / out_std.clamp(min=1e-12)).clamp(max=LARGEST_RESTORATION)
        self.restore_scale.copy_(scale)
        self.restore_shift.copy_(torch.from_numpy(targets.mean) - scale * torch.from_numpy(outputs.mean))
        self.restore_strength.fill_(strength)

    def to_raw(self, outputs: Tensor) -> Tensor:
        """From the standardised target space back to raw embeddings."""
        return outputs * self.target_std + self.target_mean

    def standardise_target(self, target: Tensor) -> Tensor:
        """Raw target embeddings in the space of `forward`'s output, float32."""
        return (target.float() - self.target_mean) / self.target_std


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


def safe_std(std: Tensor) -> Tensor:
    """Standard deviations to divide by: a dimension that (nearly) never moves gets 1 and so becomes 0."""
    moving = std > 1e-6 * std.max().clamp(min=1e-30)
    return torch.where(moving, std, torch.ones_like(std))


def _core(shape: Shape) -> nn.Module:
    width = shape.width
    if width < 1:
        raise UsageError(f"network width {width} is not positive; it is the hidden size of the embeddings")
    if shape.arch == "attention":
        return Attention(width, shape.queries)
    if shape.arch in ("linear", "ridge"):
        linear = nn.Linear(width, width)
        _start_from_the_mean(linear)
        return linear
    out = nn.Linear(shape.hidden, width)
    _start_from_the_mean(out)
    return nn.Sequential(nn.Linear(width, shape.hidden), nn.GELU(), out)


def _start_from_the_mean(out: nn.Linear) -> None:
    """Zero the last layer: an untrained network then predicts the mean, the best constant there is."""
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
