"""Measuring a projector on held-out pairs, beside every baseline, on the same target tokens, in one pass.

V vision-language tokens, P predicted tokens, L aligned positions, D hidden.

Each method maps one pair's VL tokens (V, D) to predictions (P, D) exactly as at inference; only then are
predictions and caption tokens brought to the same positions, which the caption alone decides (see
`projector.align`): `pool` compares area-pooled predictions with area-pooled caption tokens, `per_token`
position with position. Under `mean` and `soft` only the two means are known to belong together, so errors,
correlations and retrieval are those of means, while the figures on distributions (std ratios, Wasserstein)
compare all predicted tokens with all caption tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projector.align import Alignment
from projector.checkpoint import put_json
from projector.data import Pair, PairSource, load_pairs
from projector.held import Held, statistics_of
from projector.metrics import Float64, Metrics, random_directions
from projector.networks import ProjectorNetwork, Shape, safe_std
from projector.options import Align, EvaluateOptions, Tokens
from projector.projector import Projector
from projector.ridge import fit_ridge
from projector.world import World
from shards.errors import UsageError
from shards.statistics import RunningStatistics
from shards.storage import open_storage

EVALUATION = "eval.json"
# Alignments that only training knows; the guide's pads with zeros, which would be measured as if they were tokens.
JUDGED: Mapping[Align, Align] = {"guide": "soft", "statistics": "soft"}
SPLIT_KINDS: Mapping[Tokens, tuple[Tokens, ...]] = {
    "all": ("image", "text"),
    "image": ("image",),
    "text": ("text",),
}


@dataclass(frozen=True)
class Method:
    """Something that makes text-like tokens of VL tokens."""

    apply: Callable[[Tensor], Tensor]
    """(V, D) raw to (P, D) raw."""
    keeps_positions: bool = True
    """Whether prediction i belongs to VL token i."""


@dataclass(frozen=True)
class Reference:
    """What the baselines know: statistics of the training split's tokens, template left out."""

    inputs: RunningStatistics
    """Of the VL tokens."""
    targets: RunningStatistics
    """Of the caption's tokens."""

    @classmethod
    def of(cls, pairs: PairSource) -> "Reference":
        """One pass over the training pairs."""
        reference = cls(RunningStatistics(pairs.width), RunningStatistics(pairs.width))
        for pair in pairs:
            reference.inputs.update(pair.vl.float().numpy())
            reference.targets.update(pair.text.float().numpy())
        return reference

    @property
    def target_std(self) -> Float64:
        """(D,) the target's standard deviation, 1 where it never moves."""
        return safe_std(torch.from_numpy(self.targets.std())).numpy()

    def baselines(self) -> dict[str, Method]:
        """The methods that need no training."""
        mean_x, mean_y = (torch.from_numpy(side.mean) for side in (self.inputs, self.targets))
        std_x, std_y = (safe_std(torch.from_numpy(side.std())) for side in (self.inputs, self.targets))
        scale = overall_std(self.targets) / overall_std(self.inputs)
        return {
            "no_input": Method(lambda vl: mean_y.expand(len(vl), -1)),
            "identity": Method(lambda vl: vl),
            "global_scale": Method(lambda vl: vl.double() * scale),
            "per_dim_norm": Method(lambda vl: (vl.double() - mean_x) / std_x * std_y + mean_y),
        }


def ridge_baseline(pairs: PairSource, alignment: Alignment) -> Method:
    """Closed-form ridge on the training pairs; a tenth of them, never a measured one, chooses the penalty.

    Args:
        pairs: of the training split.
        alignment: of the two sides.

    Returns:
        the fitted method.
    """
    width, cut = pairs.width, max(1, len(pairs) - max(1, len(pairs) // 10))
    fitted, chosen = (
        Held.load(pairs.read(first, last), alignment, keeps_positions=True, width=width)
        for first, last in ((0, cut), (cut if len(pairs) > 1 else 0, len(pairs)))
    )
    network = ProjectorNetwork(Shape("ridge", width, hidden=0, queries=0))
    network.set_statistics(statistics_of(fitted.inputs, width), statistics_of(fitted.targets, width))
    fit_ridge(network, fitted, chosen, alignment, World(0, 1, torch.device("cpu")))

    def apply(vl: Tensor) -> Tensor:
        with torch.no_grad():
            return network.project(vl[None])[0]

    return Method(apply)


def overall_std(statistics: RunningStatistics) -> float:
    """Standard deviation over all numbers of all dimensions together, as the guide's 61.0 is one."""
    return float(np.sqrt(statistics.variance().mean() + statistics.mean.var()))


def evaluate(
    projectors: Mapping[str, Projector],
    train_pairs: PairSource,
    val_pairs: PairSource,
    options: EvaluateOptions,
    *,
    alignment: Alignment,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure projectors and baselines.

    Args:
        projectors: by the name they get in the result.
        train_pairs: where the baselines take their statistics from.
        val_pairs: what is measured on.
        options: directions and seed of the Wasserstein distance.
        alignment: which prediction answers for which target.
        on_progress: called with the number of pairs done and of all.

    Returns:
        the content of eval.json.

    Raises:
        UsageError: a projector of another width than the pairs.
    """
    for name, projector in projectors.items():
        if projector.width != val_pairs.width:
            raise UsageError(
                f"{name} has width {projector.width}, the pairs have {val_pairs.width}; "
                "evaluate it on pairs of its models"
            )
    reference = Reference.of(train_pairs)
    methods = reference.baselines() | {"ridge": ridge_baseline(train_pairs, alignment)}
    methods |= {name: Method(projector, projector.keeps_positions) for name, projector in projectors.items()}
    directions = random_directions(val_pairs.width, options.directions, options.seed)
    kinds = SPLIT_KINDS[val_pairs.tokens]

    def empty() -> dict[str, Metrics]:
        return {name: Metrics(reference.targets.mean, reference.target_std, directions) for name in methods}

    whole, parts = empty(), {kind: empty() for kind in kinds}
    for done, pair in enumerate(val_pairs, start=1):
        _measure(methods, pair, alignment, whole)
        for kind in kinds if len(kinds) > 1 else ():
            part = pair.only(kind)
            if part is not None:
                _measure(methods, part, alignment, parts[kind])
        if on_progress:
            on_progress(done, len(val_pairs))
    results = {name: metrics.result() for name, metrics in whole.items()}
    for name, result in results.items():
        if len(kinds) > 1:
            result["by_kind"] = {
                kind: parts[kind][name].result() for kind in kinds if parts[kind][name].queries
            }
        else:
            result["by_kind"] = {kinds[0]: dict(result)}
    return {
        "pairs": len(val_pairs),
        "tokens": next(iter(whole.values())).content.count,
        "layer": val_pairs.layer,
        "text_mode": val_pairs.text_mode,
        "token_kinds": val_pairs.tokens,
        "align": alignment.kind,
        "train_pairs": len(train_pairs),
        "dataset": {key: value for key, value in val_pairs.provenance.items() if key != "models"},
        "methods": results,
    }


def _measure(
    methods: Mapping[str, Method], pair: Pair, alignment: Alignment, metrics: Mapping[str, Metrics]
) -> None:
    """Apply every method to a pair and take in what comes out."""
    positions = alignment.positions(len(pair.vl), len(pair.text))
    text = pair.text.double()
    target = alignment.bring(text, positions)
    vl = pair.vl.float()
    for name, method in methods.items():
        tokens = method.apply(vl).double().cpu()
        predicted = alignment.bring(tokens, positions, own_positions=method.keeps_positions)
        if alignment.compares_means:
            metrics[name].update(predicted, target, tokens, text)
        else:
            metrics[name].update(predicted, target, predicted, target)


def evaluate_checkpoint(
    options: EvaluateOptions, *, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Measure a trained projector on its dataset's held-out pairs and write eval.json.

    Args:
        options: which projector, which data, where to.
        on_progress: called with the number of pairs done and of all.

    Returns:
        the content of eval.json.

    Raises:
        UsageError: no projector or no pairs there, or the two do not fit.
    """
    projector = Projector.from_pretrained(options.checkpoint)
    config = projector.config
    data = options.data or config.get("dataset", {}).get("root", "")
    if not data:
        raise UsageError(
            "evaluate.data is empty and the checkpoint names no dataset; give the dataset's root"
        )
    want = {"layer": projector.layer, "text_mode": config["text_mode"], "tokens": config["tokens"]}
    train_pairs = load_pairs(data, "train", **want, limit=options.max_train_samples)
    val_pairs = load_pairs(data, "val", **want, limit=options.max_samples)
    alignment = Alignment(options.align or JUDGED.get(config["align"], config["align"]), config["length"])
    result = evaluate(
        {"projector": projector},
        train_pairs,
        val_pairs,
        options,
        alignment=alignment,
        on_progress=on_progress,
    )
    put_json(open_storage(options.output or options.checkpoint), EVALUATION, result)
    return result
