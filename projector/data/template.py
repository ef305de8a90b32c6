"""What is the same in every prompt, found in the data: the template's constant tokens, and attention sinks.

A causal model gives the tokens before the caption the same hidden state in every prompt. The first of them is the
attention sink: at Qwen3-4B's layer -2 it holds 13,504 in dimension 4 and -4,544 in 396, where other tokens have
about 87 and 1. Such tokens are 98% of a raw error and teach nothing, so they take no part in statistics and losses;
what the conditioning needs of them is kept as constants.

P constant tokens, E tokens of the template's end, T text tokens, V vision-language tokens, D hidden.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shards.format.sample import KIND_NAMES, KIND_TEMPLATE

LOOKED_AT = 32  # samples: what is constant is so in all of them
SINK_RATIO = (
    10.0  # times the median token's root mean square; the text side's sink has 40, other tokens at most 3
)
SAME = 0.02  # largest deviation of a constant token, of its norm; bfloat16 alone makes 0.004
NAMED_DIMENSIONS = 4  # of a sink: those that make it one


@dataclass(frozen=True)
class WholeSample:
    """All tokens of one sample, template included."""

    text: Tensor
    """(T, D) float."""
    text_kind: Tensor
    """(T,) uint8."""
    vl: Tensor
    """(V, D) float."""
    vl_kind: Tensor
    """(V,) uint8."""


@dataclass(frozen=True)
class Template:
    """What was found."""

    prefix: Tensor
    """(P, D) float32: the text side's leading tokens that are the same in every prompt."""
    text_limit: float
    """Root mean square above which a text token is a sink."""
    vl_limit: float
    """The same for VL tokens."""
    suffix: Tensor
    """(E, D) float32: mean of the text side's last template tokens, which stand behind the caption and so differ."""
    sinks: Sequence[dict[str, Any]]
    """One record for each side and kind that has sinks: how many, where, how strong, in which dimensions."""

    def as_json(self) -> dict[str, Any]:
        """What config.json says of it."""
        return {
            "prefix_tokens": len(self.prefix),
            "suffix_tokens": len(self.suffix),
            "text_limit": self.text_limit,
            "vl_limit": self.vl_limit,
            "sinks": list(self.sinks),
        }

    def __str__(self) -> str:
        found = [
            f"{sink['tokens']} {sink['side']} {sink['kind']} tokens of {sink['times_median']:.0f} times the median "
            f"in dimensions {', '.join(map(str, sink['dimensions']))}"
            for sink in self.sinks
        ]
        return f"{len(self.prefix)} constant template tokens; attention sinks: {'; '.join(found) or 'none'}"


def find_template(samples: Iterable[WholeSample]) -> Template:
    """Look at some samples.

    Args:
        samples: of one dataset; more than `LOOKED_AT` tell nothing more.

    Returns:
        what is constant and what is a sink in them.
    """
    looked = list(samples)
    text = [(sample.text.float(), sample.text_kind) for sample in looked]
    vl = [(sample.vl.float(), sample.vl_kind) for sample in looked]
    limits = {name: SINK_RATIO * _median_rms(side) for name, side in (("text", text), ("vl", vl))}
    sinks = [
        record for name, side in (("text", text), ("vl", vl)) for record in _sinks(name, side, limits[name])
    ]
    return Template(_constant_prefix(text), limits["text"], limits["vl"], _mean_suffix(text), tuple(sinks))


def token_rms(tokens: Tensor) -> Tensor:
    """(n,) root mean square of each of (n, D) tokens, float32."""
    return tokens.float().square().mean(-1).sqrt()


def _median_rms(side: Sequence[tuple[Tensor, Tensor]]) -> float:
    return float(torch.cat([token_rms(tokens) for tokens, _ in side]).median())


def _constant_prefix(text: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The leading template tokens that agree in all samples; none where there is only one sample to look at."""
    leading = min(_leading_template(kind) for _, kind in text)
    rows = torch.stack([tokens[:leading] for tokens, _ in text])
    mean = rows.mean(0)
    deviation = (rows - mean).norm(dim=-1).amax(0) / mean.norm(dim=-1).clamp(min=1e-12)
    same = (deviation <= SAME) & (len(text) > 1)
    return mean[: int(same.long().cumprod(0).sum())]


def _mean_suffix(text: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean of the template tokens behind the caption; none where their number differs between samples."""
    counts = {_leading_template(kind.flip(0)) for _, kind in text if (kind != KIND_TEMPLATE).any()}
    count = counts.pop() if len(counts) == 1 else 0
    rows = [tokens[len(tokens) - count :] for tokens, _ in text]
    return torch.stack(rows).mean(0)


def _leading_template(kind: Tensor) -> int:
    """How many template tokens stand before the first other one."""
    return int((kind == KIND_TEMPLATE).long().cumprod(0).sum())


def _sinks(name: str, side: Sequence[tuple[Tensor, Tensor]], limit: float) -> list[dict[str, Any]]:
    """A record for each kind of token that has sinks."""
    records = []
    for number, kind_name in enumerate(KIND_NAMES):
        places: set[int] = set()
        found: list[Tensor] = []
        for tokens, kind in side:
            here = (kind == number) & (token_rms(tokens) > limit)
            places |= set(torch.nonzero(here)[:, 0].tolist())
            found.append(tokens[here])
        rows = torch.cat(found)
        if len(rows):
            strongest = rows.abs().mean(0).topk(min(NAMED_DIMENSIONS, rows.shape[1])).indices
            records.append(
                {
                    "side": name,
                    "kind": kind_name,
                    "tokens": len(rows),
                    "samples": len(side),
                    "positions": sorted(places)[:16],
                    "times_median": round(float(token_rms(rows).median()) * SINK_RATIO / limit, 2),
                    "dimensions": strongest.tolist(),
                }
            )
    return records
