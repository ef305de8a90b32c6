"""The networks between the embedding spaces: raw embeddings in, raw embeddings out, standardised inside.

B batch, S input positions, M output positions, D hidden.
"""

from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projector.data.align import masked_mean
from projector.network.attention import Attention, relative_positions
from projector.network.whole_map import RANK, WholeMap, spread_back, spread_over
from projector.options import Arch
from shards.errors import UsageError
from shards.format.statistics import RunningStatistics

LARGEST_ENDING = 256  # values between the inputs' mean and the template's end: 3.9M numbers at width 2560
LARGEST_RESTORATION = (
    20.0  # a dimension predicted with a correlation below 0.05 is noise: do not blow it up further
)


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
    residual: bool = False
    """Whether a fixed linear map, the ridge solution, is added to what `mlp` and `attention` learn."""
    prefix: int = 0
    """Constant template tokens that the projector carries for the conditioning."""
    suffix: int = 0
    """Template tokens behind the caption, which the network predicts; with any, inputs carry their position, too."""
    positions: int = 0
    """Over which inputs are spread for a linear map of all of them, which is added to the rest; 0: without one."""

    def outputs(self, inputs: int) -> int:
        """Projected rows of so many inputs, without those of the template's end."""
        return self.queries if self.arch == "attention" else inputs

    def as_json(self) -> dict[str, Any]:
        """A JSON object that `Shape(**object)` reads back."""
        return asdict(self)


class Ending(nn.Module):
    """The template's end from the mean of all inputs, through a bottleneck.

    Attention is causal, so the tokens behind a caption have seen all of it: they are a summary, and draw a picture
    nearly as well as the caption does.
    """

    def __init__(self, width: int, count: int, *, bent: bool) -> None:
        super().__init__()
        inner = min(width, LARGEST_ENDING)
        self.count = count
        self.narrow = nn.Linear(width, inner)
        self.bend = nn.GELU() if bent else nn.Identity()
        self.widen = nn.Linear(inner, count * width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, E, D) of (B, S, D)."""
        mean = x.mean(1) if mask is None else masked_mean(x, mask)[:, 0]
        return self.widen(self.bend(self.narrow(mean))).view(x.shape[0], self.count, -1)  # type: ignore[no-any-return]


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
    base_weight: Tensor
    base_bias: Tensor
    text_prefix: Tensor
    text_suffix: Tensor

    def __init__(self, shape: Shape, *, random_start: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.core = _core(shape)
        if not random_start:
            _start_from_the_mean(self.core)
        if shape.residual:
            self.register_buffer("base_weight", torch.zeros(shape.width, shape.width))
            self.register_buffer("base_bias", torch.zeros(shape.width))
        outputs = shape.queries + shape.suffix
        self.whole = WholeMap(shape.width, shape.positions, RANK, outputs) if shape.positions else None
        self.register_buffer("text_prefix", torch.zeros(shape.prefix, shape.width))
        if shape.suffix:
            self.register_buffer("text_suffix", torch.zeros(shape.suffix, shape.width))
            if self.keeps_positions:  # attention has queries for it
                self.ending = Ending(shape.width, shape.suffix, bent=shape.arch == "mlp")
                nn.init.zeros_(self.ending.widen.weight)
                nn.init.zeros_(self.ending.widen.bias)
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
        return self._rows_and_ends(self.standardised(x, mask), mask)[0]

    def conditioning(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map raw inputs to whole conditionings: prefix, projected rows, the template's end.

        The image model's first step on a conditioning is RMSNorm, so the size of a row says nothing. Each row gets
        the size that text rows have, so that what else is done with it (a blend, a mean) weighs it like text.

        Args:
            x: (B, S, D) raw embeddings.
            mask: (B, S) bool, True where a position exists; None: everywhere.

        Returns:
            (B, P + M + E, D) float32 raw, and (B, P + M + E) bool, True where a row exists: padding is on the right.
        """
        rows, ends = self._rows_and_ends(self.standardised(x, mask), mask)
        with torch.autocast(x.device.type, enabled=False):
            rows = with_rms(self.to_raw(self.restored(rows)), self._row_size())
            parts = [self.text_prefix.expand(x.shape[0], -1, -1), rows]
            if self.shape.suffix:
                ends = self.text_suffix + self.target_std * ends
                parts.append(with_rms(ends, self.text_suffix.square().mean(-1, keepdim=True).sqrt()))
            whole = torch.cat(parts, 1)
        exists = torch.ones(whole.shape[:2], dtype=torch.bool, device=x.device)
        if mask is None or not self.keeps_positions:
            return whole, exists
        return _moved_up(whole, mask, self.shape)

    def standardised(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Inputs per dimension; with positions where the network knows them and does not see them by itself."""
        with torch.autocast(x.device.type, enabled=False):
            standardised = (x.float() - self.input_mean).div_(self.input_std)
            if not self.shape.suffix or not self.keeps_positions:
                return standardised
            lengths = mask.sum(1) if mask is not None else x.new_full((x.shape[0],), x.shape[1])
            return standardised + relative_positions(lengths, x.shape[1], x.shape[2])

    def _rows_and_ends(self, standardised: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, M, D) standardised rows and (B, E, D) rows of the template's end, float32."""
        mapped = self._mapped(standardised, mask)
        count = self.shape.outputs(standardised.shape[1])
        rows, ends = mapped[:, :count], mapped[:, count:]
        if self.shape.suffix and self.keeps_positions:
            ends = self.ending(standardised, mask).float()
        if self.whole is None:
            return rows, ends
        added: Tensor = self.whole(standardised, mask).float()
        own, of_end = added[:, : self.shape.queries], added[:, self.shape.queries :]
        if self.keeps_positions:
            own = spread_back(own, mask, count)
        return rows + own, ends + of_end

    def _mapped(self, standardised: Tensor, mask: Tensor | None) -> Tensor:
        """(B, M, D) standardised outputs; for attention with the rows of the template's end behind them."""
        attention = isinstance(self.core, Attention)
        outputs: Tensor = self.core(standardised, mask) if attention else self.core(standardised)
        outputs = outputs.float()
        if not self.shape.residual:
            return outputs
        base = self._base(standardised, mask).float()
        return outputs + F.pad(base, (0, 0, 0, outputs.shape[1] - base.shape[1]))

    def _base(self, standardised: Tensor, mask: Tensor | None) -> Tensor:
        """The fixed linear map; where outputs have no position of their own, of the inputs spread over them."""
        if not self.keeps_positions:
            standardised = spread_over(standardised, mask, self.shape.queries)
        return F.linear(standardised, self.base_weight, self.base_bias)

    @torch.no_grad()
    def start_from(self, linear: nn.Linear) -> None:
        """Begin at a linear map of standardised inputs: as the weights of `linear`, as the base of the others."""
        if self.shape.residual:
            self.base_weight.copy_(linear.weight)
            self.base_bias.copy_(linear.bias)
        elif isinstance(self.core, nn.Linear):
            self.core.load_state_dict(linear.state_dict())

    def folded(self) -> nn.Linear:
        """A linear network as one plain layer from raw to raw, restoration included.

        Folded in float64: the inputs' means are thousands of times some dimensions' spread.

        Raises:
            UsageError: the network is not linear, or its inputs carry their positions.
        """
        if not isinstance(self.core, nn.Linear) or self.shape.suffix:
            raise UsageError(
                f"{self.shape.arch}{' with positions' * bool(self.shape.suffix)} is no linear map; only ridge, and "
                "linear that learnt embeddings, fold into one layer"
            )
        strength = self.restore_strength.double()
        scale = torch.lerp(
            torch.ones_like(self.restore_scale).double(), self.restore_scale.double(), strength
        )
        out = self.target_std.double() * scale
        weight = out[:, None] * self.core.weight.double() / self.input_std.double()
        shift = scale * self.core.bias.double() + strength * self.restore_shift.double()
        bias = (
            self.target_mean.double() + self.target_std.double() * shift - weight @ self.input_mean.double()
        )
        plain = nn.Linear(self.shape.width, self.shape.width)
        with torch.no_grad():
            plain.weight.copy_(weight)
            plain.bias.copy_(bias)
        return plain.requires_grad_(False)

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map raw inputs (B, S, D) to raw outputs (B, M, D) float32; see `forward`.

        Where the image model was the judge, which looks at no row's size, rows get the size of text rows, as in
        `conditioning`; outputs fitted to embeddings stay as they are.
        """
        outputs = self(x, mask)
        with torch.autocast(x.device.type, enabled=False):
            rows = self.to_raw(self.restored(outputs))
            return with_rms(rows, self._row_size()) if self.shape.suffix else rows

    def _row_size(self) -> Tensor:
        """Root mean square of a text row, about."""
        return (self.target_mean.square() + self.target_std.square()).mean().sqrt()

    def restored(self, outputs: Tensor) -> Tensor:
        """Standardised outputs with the restoration that is set."""
        return torch.lerp(outputs, outputs * self.restore_scale + self.restore_shift, self.restore_strength)

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

    def spread_ratio(self, outputs: RunningStatistics, targets: RunningStatistics) -> Tensor:
        """(D,) float64: std of restored outputs over the targets', where those move; arguments as above."""
        scale = torch.lerp(torch.ones_like(self.restore_scale), self.restore_scale, self.restore_strength)
        target_std = torch.from_numpy(targets.std())
        ratio = torch.from_numpy(outputs.std()) * scale.double().cpu() / target_std.clamp(min=1e-12)
        return ratio[target_std > 0]

    def to_raw(self, outputs: Tensor) -> Tensor:
        """From the standardised target space back to raw embeddings."""
        return outputs * self.target_std + self.target_mean

    def standardise_target(self, target: Tensor) -> Tensor:
        """Raw target embeddings in the space of `forward`'s output, float32."""
        return (target - self.target_mean).div_(self.target_std)  # bfloat16 is taken as it is: a pass less


def with_rms(rows: Tensor, size: Tensor) -> Tensor:
    """Rows (…, D) brought to a root mean square."""
    return rows * (size / rows.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6))


def _moved_up(whole: Tensor, mask: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Conditionings (B, P + S + E, D) with their padding moved from behind the projected rows to the end."""
    lengths, places = mask.sum(1, keepdim=True), torch.arange(whole.shape[1], device=whole.device)
    padding = mask.shape[1] - lengths
    source = places + torch.where(places >= shape.prefix + lengths, padding, 0)
    exists = places < shape.prefix + lengths + shape.suffix
    source = torch.where(exists, source, 0)
    return whole.gather(1, source[..., None].expand_as(whole)), exists


def safe_std(std: Tensor) -> Tensor:
    """Standard deviations to divide by: a dimension that (nearly) never moves gets 1 and so becomes 0."""
    moving = std > 1e-6 * std.max().clamp(min=1e-30)
    return torch.where(moving, std, torch.ones_like(std))


def _core(shape: Shape) -> nn.Module:
    width = shape.width
    if shape.arch not in get_args(Arch):
        raise UsageError(f"network arch {shape.arch!r} is unknown; it is one of {', '.join(get_args(Arch))}")
    if width < 1:
        raise UsageError(f"network width {width} is not positive; it is the hidden size of the embeddings")
    if shape.arch == "attention":
        return Attention(width, shape.queries + shape.suffix)
    if shape.arch in ("linear", "ridge"):
        return nn.Linear(width, width)
    return nn.Sequential(nn.Linear(width, shape.hidden), nn.GELU(), nn.Linear(shape.hidden, width))


def _start_from_the_mean(core: nn.Module) -> None:
    """Zero the last layer: an untrained network then predicts the mean, the best constant there is."""
    last = [module for module in core.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
