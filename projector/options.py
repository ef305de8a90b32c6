"""The options of training and evaluation; pydantic models and nothing heavier."""

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    field_validator,
    model_validator,
)

Arch = Literal["ridge", "linear", "mlp", "attention"]
Reader = Literal["vl", "graft"]
GRAFT: Final = "graft"  # the pipeline's text encoder behind Qwen3-VL's vision tower
TextMode = Literal["caption", "none", "mixed"]
Tokens = Literal["image", "all", "text"]
Align = Literal["pool", "mean", "per_token", "soft", "statistics", "guide"]
Objective = Literal["embedding", "response"]
Loss = Literal["mse", "raw_mse", "huber", "cosine"]
Precision = Literal["auto", "float32", "bfloat16"]
Loader = Literal["auto", "resident", "stream"]
Tracker = Literal["tensorboard", "mlflow", "wandb"]
SCENE_PIXELS = 64  # along an edge of what the miniature models were trained to draw
VL_TOKENS = r"^(all|pooled:[1-9][0-9]{0,3})$"

MLP_HIDDEN_OVER_WIDTH = 1.6  # the guide's 4096 at width 2560
REFERENCE_WIDTH = 2560  # of the 4B models
LEARNING_RATES: dict[Arch, float] = {
    "ridge": 0.0,
    "linear": 1e-3,
    "mlp": 3e-4,
    "attention": 3e-4,
}  # at the reference width, from a random start or the targets' mean: the best of benchmarks/rates.py at width 512
# From a ridge start, whatever the network: at five to ten times as much it only gets worse (same benchmark).
RIDGE_START_RATE = 6e-5
HIGHEST_DEFAULT_RATE = 1e-2
LONGEST_DEFAULT_WARMUP = 500  # optimizer steps, the guide's figure
# The guide's section on training, to the letter: its hyperparameters, its pooling, no standardisation, no clipping.
GUIDE: dict[str, Any] = {
    "align": "guide",
    "tokens": "all",
    "length": 64,
    "epochs": 50,
    "batch_size": 32,
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "warmup_steps": 500,
    "loss": "raw_mse",
    "gradient_clip": None,
    "start": "random",
    "patience": None,
    "restore": 0.0,
}


class ModelPaths(BaseModel):
    """Where the two real models are: local folders or hub ids, `id@revision` pins one."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    image: str
    """The Z-Image pipeline: folder or hub id, e.g. Tongyi-MAI/Z-Image-Turbo."""
    vl: str
    """The vision-language model: folder or hub id, e.g. Qwen/Qwen3-VL-4B-Instruct."""


STARTS = ("ridge", "mean", "random")
# Through the image model: the schedule that steers best in the miniature world (docs/steering.md).
RESPONSE: dict[str, Any] = {"epochs": 24, "patience": None, "warmup_steps": 20, "weight_decay": 0.0}
# Left as they are where the image model is the judge: only embeddings have their like.
WITH_RESPONSE = {"align": "soft", "loss": "mse", "std_weight": 0.0, "dim_weights": None, "restore": 0.0}
OF_THE_MODEL = {"response", "response_size", "compose"}
RESPONSE_RATE = 1e-4  # at the reference width


def _own_or_mapping(models: object) -> object:
    if isinstance(models, str) and models not in ("tiny", "mini"):
        raise ValueError("must be `tiny`, `mini`, or both `image` and `vl` below it (folders or hub ids)")
    return models


Models = Annotated[Literal["tiny", "mini"] | ModelPaths, BeforeValidator(_own_or_mapping)]


def _number_or_range(workers: object) -> object:
    found = re.fullmatch(r"([1-9]\d{0,4})(?:-([1-9]\d{0,4}))?", str(workers), re.ASCII)
    if not found or int(found[2] or found[1]) < int(found[1]):
        raise ValueError("expected a number above 0, or a range, smaller number first, such as 2-8")
    return workers if found[2] else int(found[1])


class TrainOptions(BaseModel):
    """What to train, on which pairs, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: str = ""
    """Root of the dataset: a local folder or s3://bucket/prefix."""
    output: str = ""
    """Where config.json, model.safetensors, metrics.jsonl and summary.json go: a folder or s3://."""
    also: dict[str, float] | None = None
    """Further datasets, and what one of their pairs weighs beside one of `data`, e.g. {s3://bucket/coco: 0.5}."""
    recipe: Literal["default", "guide"] = "default"
    """`guide`: the training section of the guide to the letter, as a baseline; what is given beside it still wins."""
    objective: Objective = "response"
    """What is learnt from: `response`, what the frozen image model answers to the text, with that model in memory, or
    `embedding`, the text itself, which does not steer pictures; absent: `embedding` where something is given that only
    it has, that is arch ridge, recipe guide, an align, loss, std_weight, dim_weights or restore."""
    models: Models | None = None
    """With objective `response`, the models that made the dataset; absent: those it names, where they can be found."""
    response: Literal["teacher", "flow"] = "teacher"
    """With objective `response`, what velocities are held to: `teacher`, the model's own under the text, right for
    distilled models, or `flow`, from noise to the picture itself, for base models and imported pictures."""
    response_size: Annotated[int, Field(gt=0, multiple_of=16)] | None = None
    """Pixels of a picture's side under objective `response`; absent: the dataset's own, 512 for imported pictures."""
    compose: Annotated[float, Field(ge=0, lt=1)] = 0.6
    """With objective `response`, share of the pairs that the second half of the steps learns behind a prompt which
    changes some of what their picture shows; those whose caption can be edited. 0: the picture alone throughout."""
    arch: Arch = "linear"
    """Network: `ridge` (closed form), `linear` (6.6M parameters at width 2560), `mlp` (21M), `attention` (26M); with
    objective `response`, the ridge that they start at learns on and is 22M more."""
    layer: Annotated[int, Field(lt=0)] = -8
    """Qwen3-VL layer to read, counted from the end; must be one the dataset holds."""
    reader: Reader = "vl"
    """What read the pictures: `vl`, Qwen3-VL, or `graft`, where the dataset holds it."""
    text_mode: TextMode = "caption"
    """Text that stood in the VL input: the sample's `caption`, `none`, or `mixed`, drawn for each sample."""
    tokens: Tokens = "image"
    """VL tokens to project: `image`, `text` (the caption's own) or `all` (both)."""
    align: Align = "soft"
    """What is matched: sides area-`pool`ed to a length, their `mean`, `per_token` positions, tokens `soft`ly, or
    only the `statistics` of each dimension (linear alone, nothing is trained); `guide`: pooled as the guide does it."""
    length: Annotated[int, Field(gt=0, le=4096)] = 64
    """Positions that `pool` and `soft` keep at most, and learnable queries (outputs) of `attention`."""
    restore: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How far outputs are stretched to the targets' mean and std: 0 least squared error, 1 full spread."""
    hidden: Annotated[int, Field(gt=0)] | None = None
    """Hidden size of `mlp`; absent: 1.6 times the width (4096 at 2560)."""
    epochs: Annotated[int, Field(gt=0)] = 50
    """Passes over the training pairs."""
    batch_size: Annotated[int, Field(gt=0)] = 32
    """Pairs per optimizer step, over all workers together."""
    micro_batch: Annotated[int, Field(gt=0)] | None = None
    """Pairs per forward pass on a worker; gradients add up. Absent: the worker's whole share of a batch, or, through
    the image model on a GPU, as many as free memory has room for by estimate."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; absent: 6e-5 at width 2560 from ridge, else 1e-3 (linear) or 3e-4; more at smaller widths."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW weight decay."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warm-up, at most half of all; absent: a twentieth of them, at most 500."""
    start: str = "ridge"
    """Where networks start: at the closed-form `ridge` solution, at the `mean` of the targets, at `random`, or at the
    projector in this folder, with a new optimizer."""
    loss: Loss = "mse"
    """`mse`, `huber` or `cosine` on standardised values, where every dimension counts alike, or `raw_mse`."""
    std_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a loss term that holds each pair's spread over its tokens to the target's; 0 for none."""
    dim_weights: dict[int, float] | None = None
    """Loss weight by dimension, e.g. {396: 10, 4: 5}; dimensions not named weigh 1."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a running average of the weights, which is then what is judged and kept; absent: none."""
    patience: Annotated[int, Field(gt=0)] | None = 10
    """Epochs without a better validation loss after which training stops; absent (null): never."""
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm; absent (null): no clipping."""
    precision: Precision = "auto"
    """Matrix arithmetic, of the image model where learning goes through it: `auto` is bfloat16 on GPUs, float32 on
    CPUs; losses are float32 always."""
    workers: Annotated[int | str, BeforeValidator(_number_or_range)] = 1
    """Data-parallel workers, one GPU each where there are any, or a range such as 2-8: as many as the cluster has.
    The result does not depend on them."""
    loader: Loader = "auto"
    """`resident`: pairs in memory; `stream`: packed on local disk, read ahead of the steps; `auto`: by their size."""
    cache: str | None = None
    """Local folder for what `stream` packs, gone when the worker ends; absent: the system's temporary folder."""
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Resumable state is saved after each epoch, and inside long epochs at least this often."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial weights and of the order of the pairs."""
    max_samples: Annotated[int, Field(gt=0)] | None = None
    """Training pairs to use, the first in plan order; absent: all."""
    log: list[Tracker] = ["tensorboard"]
    """Where each epoch's figures go: `tensorboard` (a folder in output), `mlflow`, `wandb`; the last two are extras."""

    @model_validator(mode="wrap")
    @classmethod
    def _defaults_belong_together(cls, given: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(given, dict):
            return read(given)
        if given.get("recipe") == "guide":
            return read({"objective": "embedding", **GUIDE, **given})
        plain = read({"objective": "embedding", **given})
        if "objective" in given:
            through_the_model = plain.objective == "response"
        else:
            losses = plain._of_embeddings.keys() & WITH_RESPONSE.keys() - {"align"}
            both = losses and OF_THE_MODEL & given.keys()  # which is refused by name
            through_the_model = bool(both) or not plain._of_embeddings
        return read({"objective": "response", **RESPONSE, **given}) if through_the_model else plain

    @model_validator(mode="after")
    def _statistics_train_nothing(self) -> Self:
        if self.align == "statistics" and self.arch != "linear":
            raise ValueError(
                f"align statistics maps each dimension by itself, which {self.arch} is not; use arch linear"
            )
        return self

    @model_validator(mode="after")
    def _response_trains_a_network(self) -> Self:
        if self.objective == "response" and self._of_embeddings:
            said = ", ".join(f"{name} {value}" for name, value in self._of_embeddings.items())
            raise ValueError(
                f"objective response with {said}, which objective embedding alone has; leave it out, or give "
                "objective embedding"
            )
        return self

    @property
    def _of_embeddings(self) -> dict[str, Any]:
        """What is set that means nothing through the image model."""
        if self.recipe == "guide":
            return {"recipe": "guide"}
        found = {
            name: getattr(self, name) for name, plain in WITH_RESPONSE.items() if getattr(self, name) != plain
        }
        return ({"arch": "ridge"} if self.arch == "ridge" else {}) | found

    @field_validator("also")
    @classmethod
    def _shares_are_positive(cls, also: dict[str, float] | None) -> dict[str, float] | None:
        for root, weight in (also or {}).items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"gives {root} the weight {weight}; expected a finite number above 0")
        return also

    @field_validator("log")
    @classmethod
    def _each_once(cls, log: list[Tracker]) -> list[Tracker]:
        if len(set(log)) != len(log):
            raise ValueError(f"names something twice: {log}; list each once")
        return log

    @field_validator("dim_weights")
    @classmethod
    def _weights_are_weights(cls, weights: dict[int, float] | None) -> dict[int, float] | None:
        for dimension, weight in (weights or {}).items():
            if dimension < 0 or not 0 <= weight < float("inf"):
                raise ValueError(
                    f"holds {dimension}: {weight}; expected dimensions from 0 on and finite weights from 0 on"
                )
        return weights

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers; the same where `workers` is a number."""
        fewest, _, most = str(self.workers).partition("-")
        return int(fewest), int(most or fewest)

    @property
    def start_folder(self) -> str | None:
        """The folder of the projector that training starts at; None where it starts elsewhere."""
        return None if self.start in STARTS else self.start

    def peak_learning_rate(self, width: int) -> float:
        """The learning rate given, or that of start and architecture, which grows as the width shrinks."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.objective == "response":
            return min(HIGHEST_DEFAULT_RATE, RESPONSE_RATE * REFERENCE_WIDTH / width)
        trained = self.start == "ridge" or self.start_folder is not None
        rate = RIDGE_START_RATE if trained else LEARNING_RATES[self.arch]
        return min(HIGHEST_DEFAULT_RATE, rate * REFERENCE_WIDTH / width)

    def warmup(self, total_steps: int) -> int:
        """Optimizer steps of warm-up out of `total_steps`."""
        if self.warmup_steps is None:
            return min(LONGEST_DEFAULT_WARMUP, total_steps // 20)
        return min(self.warmup_steps, total_steps // 2)

    def hidden_size(self, width: int) -> int:
        """Hidden size of the MLP at this width."""
        return self.hidden or round(MLP_HIDDEN_OVER_WIDTH * width)


class EvaluateOptions(BaseModel):
    """Which projector to measure, on which pairs."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: str = ""
    """Root of the dataset; absent: the one the checkpoint was trained on."""
    checkpoint: str = ""
    """Folder (local or s3://) of a trained or exported projector."""
    others: dict[str, str] | None = None
    """Further projectors to measure on the same pairs, by name, e.g. {linear: runs/linear}."""
    models: Models | None = None
    """With it the control to beat: `vl` writes a caption of each image, the text encoder of `image` encodes it."""
    output: str = ""
    """Folder that gets eval.json; absent: the checkpoint's."""
    workers: Annotated[int, Field(gt=0)] = 1
    """Processes that share the pairs, one GPU each where there are any; the result does not depend on them."""
    align: Align | None = None
    """How predictions and targets are matched; absent: as the checkpoint was trained."""
    split: Literal["test", "val"] = "test"
    """Pairs that are measured on: `test`, which chose nothing, or `val`, which chose penalty and epoch."""
    max_samples: Annotated[int, Field(gt=0)] | None = None
    """Pairs of the split to use, the first in plan order; absent: all."""
    max_train_samples: Annotated[int, Field(gt=0)] | None = None
    """Training pairs that the baselines' statistics are taken from, the first in plan order; absent: all."""
    directions: Annotated[int, Field(gt=0)] = 128
    """Random directions of the sliced Wasserstein distance."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of those directions."""
