"""What the files of a run say, as far as the report uses it: old files lack keys, later ones have more."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

LARGEST = 1e30  # beyond it, and below one over it, axes overflow; no measurement is there


def _measured(value: Any) -> Any:
    """None for numbers that are none or too large, 0 for those too small."""
    if isinstance(value, (int, float)) and not abs(value) <= LARGEST:
        return None
    return 0.0 if isinstance(value, float) and abs(value) < 1 / LARGEST else value


def _pair_or_none(value: Any) -> Any:
    return value if isinstance(value, list) and len(value) == 2 else None


Count = Annotated[int, Field(ge=0, le=10**15)]
Number = Annotated[float | None, BeforeValidator(_measured)]
Interval = Annotated[tuple[Number, Number] | None, BeforeValidator(_pair_or_none)]
"""Low and high end, 95%; None where there is none."""


class Record(BaseModel):
    """Base of what is read: keys that are not known are ignored, and files of older versions lack newer ones."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Dimension(Record):
    """How one dimension of the outputs stands to the target's."""

    dimension: Count | None = None
    std_ratio: Number = None
    correlation: Number = None
    r2: Number = None


class Difference(Record):
    """A method's figure less that of the best baseline, on the same pairs.

    Attributes:
        baseline: the best one.
        difference: of an error, below 0 is better; of fidelity, above 0.
        interval: 95% for all projectors of the evaluation together.
        p: how likely such a difference is by luck, not corrected for several projectors.
        better: whether the evaluation calls the method better.
    """

    baseline: str = ""
    difference: Number = None
    interval: Interval = None
    p: Number = None
    better: bool = False


class Figures(Record):
    """What was measured of one method; INTERFACE names in eval.json, explained in `projector.evaluation.metrics`."""

    fidelity: Number = None
    velocity_error: Number = None
    mse: Number = None
    mse_standardized: Number = None
    cosine_similarity: Number = None
    per_dim_correlation: Number = None
    r2: Number = None
    std_ratio_range: Interval = None
    outlier_dims: Number = None
    collapsed_dims: Number = None
    recall_at_1: Number = None
    recall_at_5: Number = None
    rms_r2: Number = None
    rms_cosine: Number = None
    sliced_wasserstein: Number = None
    intervals: Mapping[str, Interval] = Field(default_factory=dict)
    dimensions: Mapping[str, Dimension] = Field(default_factory=dict)
    worst_dimensions: tuple[Dimension, ...] = ()
    against: Mapping[str, Difference] = Field(default_factory=dict)
    """By figure, see `Difference`."""
    by_kind: Mapping[str, "Figures"] = Field(default_factory=dict)


class Profile(Record):
    """Every dimension of one method."""

    std_ratio: tuple[Number, ...] = ()
    correlation: tuple[Number, ...] = ()


class Profiles(Record):
    """Profiles by method."""

    methods: Mapping[str, Profile] = Field(default_factory=dict)


class CaptionSwap(Record):
    """Whether a projector looks at the picture or copies the caption beside it; recalls are recall@1."""

    pairs: Count = 0
    own: Number = None
    image: Number = None
    caption: Number = None
    takes_own: Number = None
    takes_other: Number = None
    chance: Number = None
    intervals: Mapping[str, Interval] = Field(default_factory=dict)
    copies: bool = False
    sentence: str = ""


class Evaluation(Record):
    """eval.json."""

    split: str = "held-out"  # what files of earlier versions were measured on
    pairs: Count = 0
    groups: Count = 0
    """Of pairs that have a picture or a caption in common; 0 in files of earlier versions."""
    judged: Mapping[str, Count] = Field(default_factory=dict)
    """Pairs by figure, of what is measured on fewer than all."""
    tokens: Count = 0
    layer: int | None = None
    text_mode: str = ""
    align: str = ""
    methods: Mapping[str, Figures]
    ranking: tuple[str, ...] = ()
    profile: Profiles = Profiles()
    caption_swap: Mapping[str, CaptionSwap] = Field(default_factory=dict)

    def counted(self, figure: str = "") -> str:
        """What all figures or one of them were measured on, in words."""
        if (some := self.judged.get(figure) or self.pairs) < self.pairs:
            return f"{some:,} of {self.pairs:,} {self.split} pairs"
        groups = f" in {self.groups:,} groups" if 0 < self.groups < self.pairs else ""
        return f"{self.pairs:,} {self.split} pairs{groups}"


class Score(Record):
    """Mean of an automatic score over pictures, or of a difference; then `better` says that it is above 0."""

    mean: Number = None
    low: Number = None
    high: Number = None
    better: bool = False


class ComparedPicture(Record):
    """A picture made with a method in a mode; `file` lies below compare.json's folder."""

    method: str
    mode: str
    value: float
    file: str


class ComparedCase(Record):
    """A reference picture with a prompt or none, and what was made of both."""

    case: str = ""
    prompt: str = ""
    reference: str = ""
    pictures: tuple[ComparedPicture, ...] = ()


class Lead(Record):
    """How far the projector is above the best of what it is held against, in one mode at one value."""

    baseline: str = ""
    adherence: Score | None = None
    fidelity: Score | None = None


class Comparison(Record):
    """compare.json."""

    blend: str = ""
    split: str = ""
    scorer: str = ""
    references: Count = 0
    cases: tuple[ComparedCase, ...] = ()
    methods: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Score]]]] = Field(default_factory=dict)
    """Scores by method, mode and value."""
    differences: Mapping[str, Mapping[str, Lead]] = Field(default_factory=dict)
    """By mode and value."""


class Rung(Record):
    """A point of the learning curve."""

    pairs: Count
    val_loss: Score


class Climb(Record):
    """A step of the ladder and its judgement."""

    arch: str = ""
    samples: Count = 0
    sentence: str = ""


class LayerLoss(Record):
    """Ridge at one layer and text mode."""

    layer: int = 0
    text_mode: str = ""
    val_loss: Number = None


class Ladder(Record):
    """ladder.json."""

    steps: tuple[Climb, ...] = ()
    curve: tuple[Rung, ...] = ()
    layers: tuple[LayerLoss, ...] = ()
    verdict: str = ""


class Epoch(Record):
    """A line of metrics.jsonl."""

    epoch: Count
    train_loss: Number = None
    val_loss: Number = None


class Restoration(Record):
    """What stretching the outputs to the targets' spread costs."""

    strength: Number = None
    val_loss: Number = None
    std_ratio_range: Interval = None
    dims_outside: Number = None


class Summary(Record):
    """summary.json."""

    arch: str = ""
    objective: str = ""
    parameters: Count | None = None
    train_pairs: Count | None = None
    best_epoch: Count | None = None
    best_val_loss: Number = None
    ridge_val_loss: Number = None
    seconds: Number = None
    device: str = ""
    stopped: str = ""
    recommendation: str = ""
    restoration: tuple[Restoration, ...] = ()
