"""Projectors and baselines measured side by side: every method on the same target tokens, in one pass.

V vision-language tokens, P predicted tokens, L aligned positions, D hidden.

Each method maps one pair's VL tokens (V, D) to predictions (P, D) exactly as at inference; only then are
predictions and caption tokens brought to the same positions, which the caption alone decides (see
`projector.data.align`): `pool` compares area-pooled predictions with area-pooled caption tokens, `per_token`
position with position. Under `mean` and `soft` only the two means are known to belong together, so errors,
correlations and retrieval are those of means, while the figures on distributions (std ratios, Wasserstein)
compare all predicted tokens with all caption tokens.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from projector.data.align import Alignment
from projector.data.pairs import Pair, PairSource
from projector.evaluation.baselines import Method, TrainStatistics, ridge_baseline
from projector.evaluation.distances import random_directions
from projector.evaluation.intervals import GroupSums, against_best
from projector.evaluation.metrics import Metrics, Standard
from projector.evaluation.moments import REPLICATES
from projector.network.projector import Projector
from projector.options import GRAFT, EvaluateOptions, Tokens
from shards.errors import UsageError

SPLIT_KINDS: Mapping[Tokens, tuple[Tokens, ...]] = {
    "all": ("image", "text"),
    "image": ("image",),
    "text": ("text",),
}
PROFILED = ("identity", "ridge", "projector")  # every dimension of these is written down
SMALLER_IS_BETTER = "mse_standardized"

ByKey = Callable[[str], Tensor]


@dataclass(frozen=True)
class Contest:
    """Everything that is compared, and how."""

    methods: Mapping[str, Method]
    """By the name they get in the result."""
    standard: Standard
    """Units of the errors."""
    alignment: Alignment
    """Which prediction answers for which target."""
    kinds: tuple[Tokens, ...]
    """Kinds of VL tokens that are measured apart."""
    projectors: tuple[str, ...] = ()
    """The methods that are projectors, which may be better than the best baseline."""

    @classmethod
    def between(
        cls,
        projectors: Mapping[str, Projector],
        train_pairs: PairSource,
        val_pairs: PairSource,
        options: EvaluateOptions,
        *,
        alignment: Alignment,
    ) -> "Contest":
        """Projectors against all baselines, which get what projectors get: training pairs, and `val` to choose by.

        Raises:
            UsageError: a projector of another width than the pairs, or with a baseline's name.
        """
        for name, projector in projectors.items():
            if projector.width != train_pairs.width:
                raise UsageError(
                    f"{name} has width {projector.width}, the pairs have {train_pairs.width}; "
                    "evaluate it on pairs of its models"
                )
        reference = TrainStatistics.of(train_pairs)
        methods = reference.baselines() | {"ridge": ridge_baseline(train_pairs, val_pairs, alignment)}
        if taken := sorted(methods.keys() & projectors.keys()):
            raise UsageError(
                f"a projector is called {taken[0]!r}, which is a baseline's name; give it another one"
            )
        methods |= {
            name: Method(projector, projector.keeps_positions) for name, projector in projectors.items()
        }
        directions = random_directions(train_pairs.width, options.directions, options.seed)
        standard = Standard(reference.targets.mean, reference.target_std, directions)
        return cls(methods, standard, alignment, SPLIT_KINDS[train_pairs.tokens], tuple(projectors))

    def measure(
        self,
        pairs: PairSource,
        part: range,
        *,
        by_key: Mapping[str, ByKey] | None = None,
        grafted: PairSource | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> "Measured":
        """Apply every method to a range of held-out pairs.

        Args:
            pairs: held out.
            part: which of them; what other workers measured of the others is merged.
            by_key: further methods, which make tokens (P, D) of a pair's key, without positions of its own.
            grafted: the same pairs as the graft read them, in the same order; measured as they are.
            on_progress: called with the number of pairs done.
        """
        further = by_key or {}
        names = (*self.methods, *further, *((GRAFT,) if grafted is not None else ()))
        whole = {name: Metrics(self.standard) for name in names}
        by_graft = None if grafted is None else grafted.read(part.start, part.stop)
        apart = self.kinds if len(self.kinds) > 1 else ()
        parts = {kind: {name: Metrics(self.standard, 0) for name in self.methods} for kind in apart}
        for done, pair in enumerate(pairs.read(part.start, part.stop), start=1):
            made = self._made(pair)
            for name, tokens_of in further.items():
                made[name] = tokens_of(pair.key), False
            if by_graft is not None:
                made[GRAFT] = _same(next(by_graft), pair).vl.float(), True
            self._take_in(pair, made, whole, REPLICATES)
            for kind in apart:
                alone = pair.only(kind)
                if alone is not None:
                    self._take_in(alone, self._made(alone), parts[kind], 0)
            if on_progress:
                on_progress(done)
        return Measured(whole, parts, self.kinds, self.projectors)

    def _made(self, pair: Pair) -> dict[str, tuple[Tensor, bool]]:
        """What every method makes of a pair's VL tokens, and whether that keeps their positions."""
        vl = pair.vl.float()
        return {name: (method.apply(vl), method.keeps_positions) for name, method in self.methods.items()}

    def _take_in(
        self,
        pair: Pair,
        made: Mapping[str, tuple[Tensor, bool]],
        metrics: Mapping[str, Metrics],
        replicates: int,
    ) -> None:
        """Bring both sides to the same positions and measure."""
        positions = self.alignment.positions(len(pair.vl), len(pair.text))
        text = pair.text.double()
        content = self.alignment.bring(text, positions)
        means = self.alignment.compares_means
        target = self.standard.target(
            pair.key, content, text if means else content, replicates, group=pair.group
        )
        for name, (output, keeps_positions) in made.items():
            tokens = output.double().cpu()
            predicted = self.alignment.bring(tokens, positions, own_positions=keeps_positions)
            metrics[name].update(target, predicted, tokens if means else predicted)


def _same(one: Pair, other: Pair) -> Pair:
    """One pair, which must be of the other's sample."""
    if one.key != other.key:
        raise ValueError(
            f"{one.key} stands where {other.key} should: the readers' pairs are not in one order"
        )
    return one


@dataclass(frozen=True)
class Measured:
    """What was measured of every method on some of the pairs."""

    whole: dict[str, Metrics]
    """On all VL tokens, by method."""
    parts: dict[Tokens, dict[str, Metrics]]
    """On those of one kind alone, by kind and method; empty where there is one kind."""
    kinds: tuple[Tokens, ...]
    """Kinds of VL tokens."""
    projectors: tuple[str, ...] = ()
    """The methods that are projectors."""

    @property
    def groups(self) -> int:
        """Groups of pairs: pictures of an import, else different captions."""
        return len(next(iter(self.whole.values())).errors().under)

    def merge(self, other: "Measured") -> None:
        """Take in what another worker measured on other pairs."""
        for name, metrics in self.whole.items():
            metrics.merge(other.whole[name])
        for kind, methods in self.parts.items():
            for name, metrics in methods.items():
                metrics.merge(other.parts[kind][name])

    def result(self) -> dict[str, Any]:
        """`methods`, their `ranking` and `winner`, and the `profile` over dimensions, as in eval.json."""
        methods = {name: metrics.result() for name, metrics in self.whole.items()}
        for name, result in methods.items():
            by_kind = {
                kind: of_kind[name].result()
                for kind, of_kind in self.parts.items()
                if name in of_kind and of_kind[name].rows
            }
            result["by_kind"] = by_kind or {self.kinds[0]: dict(result)}
        errors = {name: metrics.errors() for name, metrics in self.whole.items()}
        put_differences(methods, SMALLER_IS_BETTER, errors, self.projectors)
        ranking = sorted(methods, key=lambda name: float(methods[name][SMALLER_IS_BETTER]))
        profiled = {name: self.whole[name].profile() for name in PROFILED if name in self.whole}
        return {
            "methods": methods,
            "ranking": ranking,
            "winner": ranking[0],
            "profile": {
                "methods": {
                    name: {key: _short(profile[key]) for key in ("std_ratio", "correlation")}
                    for name, profile in profiled.items()
                }
            },
        }


def put_differences(
    methods: Mapping[str, dict[str, Any]],
    figure: str,
    errors: Mapping[str, GroupSums],
    projectors: Collection[str],
) -> None:
    """Write each method's difference to the best baseline beside its figures, as `against` and the figure's name."""
    for name, difference in against_best(errors, projectors).items():
        methods[name].setdefault("against", {})[figure] = difference


def _short(values: Any) -> list[float | None]:
    """Four digits each: what a plot shows."""
    return [None if math.isnan(value) else float(f"{value:.4g}") for value in values.tolist()]
