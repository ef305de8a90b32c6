"""Whether a step of the ladder was worth climbing, and whether more pairs are; pure, from what its files say."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from projector.evaluation.drawn_fidelity import FIDELITY
from projector.evaluation.learning_curve import PowerLaw
from projector.options import Arch
from projector.training.summary import WORTH

PAYS = 0.01  # share of the loss that twice the pairs have to take off
ATTENTION_MAY = "attention may still gain: it tells positions apart, which an MLP cannot"
OUTLIERS_KEPT = 0.5  # of those that the raw hidden states have: more is not corrected


@dataclass(frozen=True)
class Gate:
    """A step's judgement.

    Attributes:
        passed: whether the next step is worth its pairs.
        sentence: why, and what to change where it is not.
        val_loss, ridge_val_loss: of the training.
        mse_standardized, identity_mse: of the evaluation, projected and raw.
        outlier_dims, identity_outlier_dims: dimensions more than twice as wide as the target's.
        train_pairs: that it was trained on.
    """

    passed: bool
    sentence: str
    val_loss: float
    ridge_val_loss: float
    mse_standardized: float
    identity_mse: float
    outlier_dims: int
    identity_outlier_dims: int
    train_pairs: int

    def as_json(self) -> dict[str, Any]:
        """For ladder.json."""
        return asdict(self)


def judge(arch: Arch, summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Gate:
    """Judge a step.

    Args:
        arch: of its projector. A linear one that learns embeddings cannot do better than ridge, which is linear; it
            must do as well.
        summary: of its training.
        evaluation: eval.json.
    """
    ours, raw = evaluation["methods"]["projector"], evaluation["methods"]["identity"]
    # Errors of embeddings say nothing about a projector that was trained for pictures.
    judged = _by_pictures if summary["objective"] == "response" else _by_embeddings
    passed, sentence = judged(arch, summary["best_val_loss"], summary["ridge_val_loss"], ours, raw)
    return Gate(
        passed,
        sentence,
        summary["best_val_loss"],
        summary["ridge_val_loss"],
        ours["mse_standardized"],
        raw["mse_standardized"],
        ours["outlier_dims"],
        raw["outlier_dims"],
        summary["train_pairs"],
    )


def _by_pictures(
    arch: Arch, loss: float, ridge: float, ours: Mapping[str, Any], raw: Mapping[str, Any]
) -> tuple[bool, str]:
    """Whether a projector that was trained through the image model passed, and why."""
    found = (
        f"the image model's velocities are off by {loss:.4g}, under ridge by {ridge:.4g}{_shown(ours, raw)}"
    )
    if 1 - loss / ridge >= WORTH:
        return True, f"passed: {found}"
    if arch == "mlp":
        return True, f"no gain over ridge: {found}; {ATTENTION_MAY}"
    return (
        False,
        f"no gain over ridge: {found}; try another layer or text mode, more train.epochs, or more pairs",
    )


def _by_embeddings(
    arch: Arch, loss: float, ridge: float, ours: Mapping[str, Any], raw: Mapping[str, Any]
) -> tuple[bool, str]:
    """Whether a projector that was fitted to embeddings passed, and why."""
    wide, raw_wide, gain = ours["outlier_dims"], raw["outlier_dims"], 1 - loss / ridge
    if wide > OUTLIERS_KEPT * raw_wide:
        return False, (
            f"outliers are not corrected: {wide} dimensions are more than twice as wide as the target's, {raw_wide} "
            "before; try another layer (train.layer), train.restore 1, or more pairs at this step"
        )
    if ours["mse_standardized"] >= raw["mse_standardized"]:
        return False, (
            f"no better than doing nothing: standardised error {ours['mse_standardized']:.4g}, "
            f"{raw['mse_standardized']:.4g} without a projector; try another layer or text mode, or more pairs"
        )
    if arch == "linear" and gain < -WORTH:
        return (
            False,
            f"{-gain:.1%} worse than ridge, where it began; use a lower train.learning_rate, or ridge itself",
        )
    if arch == "mlp" and gain < WORTH:
        return True, f"no gain over ridge (validation loss {loss:.4g}, ridge {ridge:.4g}); {ATTENTION_MAY}"
    if arch == "attention" and gain < WORTH:
        return False, (
            f"no gain over ridge (validation loss {loss:.4g}, ridge {ridge:.4g}); use ridge, which took seconds, or "
            "try another layer, text mode or train.align before making more pairs"
        )
    beside = f"{abs(gain):.1%} {'better' if gain >= 0 else 'worse'} than ridge"
    return (
        True,
        f"passed: validation loss {loss:.4g}, {beside}; {wide} dimensions too wide, {raw_wide} before",
    )


def _shown(ours: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
    """What pictures show of their references, where that was measured."""
    if FIDELITY not in ours:
        return ""
    interval = ours.get("intervals", {}).get(FIDELITY)  # with few references there is none
    ends = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    return f"; pictures show {ours[FIDELITY]:.2f} of their references{ends}, {raw[FIDELITY]:.2f} without a projector"


def ladder_verdict(
    curve: Sequence[Mapping[str, Any]],
    fit: PowerLaw | None,
    seconds_per_sample: float,
    steps: Sequence[Mapping[str, Any]],
    planned: Sequence[int],
) -> str:
    """Is more data worth it? In one sentence, and where a gate ended the climb, that first.

    Args:
        curve: points of the learning curve, fewest pairs first.
        fit: the curve through them.
        seconds_per_sample: of device time that making one takes.
        steps: judged so far.
        planned: samples at each step.
    """
    stopped = ""
    if steps and not steps[-1]["passed"] and len(steps) < len(planned):
        last = steps[-1]
        stopped = (
            f"The climb ended at {last['arch']} with {last['train_pairs']:,} pairs: {last['sentence']}. "
        )
    if fit is None:
        return (
            f"{stopped}Whether more data pays is not known: that takes a learning curve of at least four sizes of 8 "
            "pairs and more, drawn twice (ladder.curve_points, ladder.curve_seeds)."
        )
    pairs, loss = curve[-1]["pairs"], fit.at(curve[-1]["pairs"])
    gain = fit.gain_of_doubling
    low, high = gain.low / loss, gain.high / loss
    if low >= PAYS:
        answer = "more data pays"
    elif high < PAYS:
        answer = "more data does not pay"
    else:
        answer = "whether more data pays cannot be told from these points"
    hours = pairs * seconds_per_sample / 3600
    return (
        f"{stopped}From {pairs:,} to {2 * pairs:,} pairs the validation loss is expected to fall by "
        f"{gain.value / loss:.1%} (95% interval {low:.1%} to {high:.1%}), from {loss:.4g} to "
        f"{loss - gain.value:.4g}, for {hours:,.2f} device-hours: {answer}."
    )
