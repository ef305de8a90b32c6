"""Evaluation of checkpoints: what is compared on which pairs, and what goes into eval.json."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from projector.data.align import Alignment
from projector.data.dataset_pairs import load_pairs
from projector.data.pairs import PairSource
from projector.evaluation.caption_swap import caption_swap
from projector.evaluation.contest import Contest, Measured, put_differences
from projector.evaluation.drawn_fidelity import FIDELITY, drawn_fidelity, put_fidelity
from projector.evaluation.intervals import resampled
from projector.evaluation.velocity_error import conditioned_by, conditionings, velocity_errors
from projector.inference.frozen_transformer import FrozenTransformer
from projector.inference.image_generator import ImageGenerator
from projector.models.resolve import MINIATURE, OWN_MODELS, ModelSource, locate, own_folder
from projector.network.projector import Projector
from projector.options import GRAFT, Align, EvaluateOptions, ModelPaths, Reader, TextMode, Tokens
from projector.training.response import frozen_model
from shards.dataset.dataset import Dataset
from shards.errors import OptionError
from shards.stores.local import open_storage

VELOCITY = "velocity_error"
DRAWN = ("identity", "per_dim_norm", "ridge", GRAFT)  # baselines that pictures are made with
MAIN = "projector"  # what the checkpoint is called in the result
# Alignments that only training knows; the guide's pads with zeros, which would be measured as if they were tokens.
JUDGED: Mapping[Align, Align] = {"guide": "soft", "statistics": "soft"}

Measure = Callable[[Contest, PairSource, PairSource | None], Measured]


def alone(contest: Contest, pairs: PairSource, grafted: PairSource | None = None) -> Measured:
    """Measure all pairs in this process."""
    return contest.measure(pairs, range(len(pairs)), grafted=grafted)


def evaluate(
    projectors: Mapping[str, Projector],
    train_pairs: PairSource,
    val_pairs: PairSource,
    pairs: PairSource,
    options: EvaluateOptions,
    *,
    alignment: Alignment,
    swap_pairs: PairSource | None = None,
    grafted: PairSource | None = None,
    measure: Measure = alone,
    image_model: FrozenTransformer | None = None,
    artist: ImageGenerator | None = None,
) -> dict[str, Any]:
    """Measure projectors and baselines.

    Args:
        projectors: by the name they get in the result.
        train_pairs: where the baselines take their statistics from.
        val_pairs: those that choose ridge's penalty, as they do in a training.
        pairs: what is measured on, of `options.split`.
        options: directions and seed of the Wasserstein distance.
        alignment: which prediction answers for which target.
        swap_pairs: for the caption-swap test; None takes `pairs`.
        grafted: `pairs` as the graft read them; None where it did not.
        measure: how the pairs are gone through.
        image_model: that made the pictures; with it each method gets its `velocity_error`.
        artist: the same model as a whole pipeline, where pictures are of scenes; each method gets its `fidelity`.

    Returns:
        the content of eval.json.

    Raises:
        UsageError: a projector of another width than the pairs, or with a baseline's name.
    """
    contest = Contest.between(projectors, train_pairs, val_pairs, options, alignment=alignment)
    measured = measure(contest, pairs, grafted)
    result = measured.result()
    judged = {}
    if image_model is not None and pairs.conditionings is not None and pairs.template is not None:
        wholes = conditionings(conditioned_by(contest.methods, projectors, pairs), pairs, grafted=grafted)
        judged = _judge_with_the_image_model(
            result["methods"], wholes, pairs, projectors, image_model, artist
        )
    return {
        "split": options.split,
        "pairs": len(pairs),
        "groups": measured.groups,
        "judged": judged,
        "tokens": next(iter(measured.whole.values())).rows,
        "layer": pairs.layer,
        "text_mode": pairs.text_mode,
        "token_kinds": pairs.tokens,
        "align": alignment.kind,
        "train_pairs": len(train_pairs),
        "val_pairs": len(val_pairs),
        "dataset": {key: value for key, value in pairs.provenance.items() if key != "models"},
        **result,
        "caption_swap": caption_swap(
            projectors, pairs if swap_pairs is None else swap_pairs, contest.standard
        ),
    }


def _judge_with_the_image_model(
    methods: Mapping[str, dict[str, Any]],
    wholes: Mapping[str, Sequence[Tensor]],
    pairs: PairSource,
    projectors: Mapping[str, Projector],
    image_model: FrozenTransformer,
    artist: ImageGenerator | None,
) -> dict[str, int]:
    """Write each method's velocity error and fidelity beside its figures; returns on how many pairs, by figure."""
    errors = velocity_errors(wholes, pairs, image_model)
    judged = {VELOCITY: len(next(iter(wholes.values())))}
    put_differences(methods, VELOCITY, errors, projectors)
    for name, found in resampled(errors).items():
        methods[name].setdefault("intervals", {})[VELOCITY] = found.interval()
    for name, error in errors.items():
        methods[name][VELOCITY] = error.value
    if artist is not None:
        drawn = {name: wholes[name] for name in wholes if name in DRAWN or name in projectors}
        if fidelity := drawn_fidelity(drawn, pairs, artist):
            put_fidelity(methods, fidelity, projectors)
            judged[FIDELITY] = int(next(iter(fidelity.values())).under.sum())
    return judged


def load_projectors(options: EvaluateOptions) -> dict[str, Projector]:
    """The checkpoint and those beside it, by name.

    Raises:
        UsageError: no projector there, or one that reads other layers, texts or tokens than the checkpoint: they
            cannot be measured on the same inputs.
    """
    projectors = {MAIN: Projector.from_pretrained(options.checkpoint)}
    for name, path in (options.others or {}).items():
        projectors[name] = Projector.from_pretrained(path)
        for trait in ("width", "layer", "text_mode", "tokens"):
            here, there = (getattr(projectors[which], trait) for which in (name, MAIN))
            if here != there:
                raise OptionError(
                    f"others: {name} has {trait} {here!r}, the checkpoint has {there!r}; evaluate it "
                    "by itself"
                )
    return projectors


def dataset_of(options: EvaluateOptions, projector: Projector) -> str:
    """The root of the dataset to measure on; UsageError where neither options nor checkpoint name one."""
    data = options.data or str(projector.config.get("dataset", {}).get("root", ""))
    if not data:
        raise OptionError("data is empty and the checkpoint names no dataset; give the dataset's root")
    return data


def measured_pairs(options: EvaluateOptions, projector: Projector) -> PairSource:
    """The pairs to measure on, read as the projector reads its inputs."""
    return _load(options, projector, options.split, options.max_samples)


def grafted_pairs(options: EvaluateOptions, projector: Projector) -> PairSource | None:
    """The same pairs as the graft read them; None where it did not, or where the projector's inputs are its."""
    dataset = Dataset.open(open_storage(dataset_of(options, projector)))
    if GRAFT not in dataset.settings.get("readers", ()) or projector.reader == GRAFT:
        return None
    return _load(options, projector, options.split, options.max_samples, reader=GRAFT)


def evaluate_checkpoint(
    options: EvaluateOptions, projectors: Mapping[str, Projector], *, measure: Measure = alone
) -> dict[str, Any]:
    """Measure trained projectors on the pairs of a dataset's split.

    Args:
        options: which data.
        projectors: from `load_projectors`.
        measure: how the pairs are gone through.

    Returns:
        the content of eval.json.

    Raises:
        UsageError: no pairs there, or they do not fit.
    """
    main = projectors[MAIN]
    config = main.config
    pairs = measured_pairs(options, main)
    image_model = _image_model(options, pairs)
    alignment = Alignment(options.align or JUDGED.get(config["align"], config["align"]), config["length"])
    return evaluate(
        projectors,
        _load(options, main, "train", options.max_train_samples),
        _load(options, main, "val", None),
        pairs,
        options,
        alignment=alignment,
        swap_pairs=_swap_pairs(options, main),
        grafted=grafted_pairs(options, main),
        measure=measure,
        image_model=image_model,
        artist=None if image_model is None else _artist(image_model, pairs),
    )


def _artist(image_model: FrozenTransformer, pairs: PairSource) -> ImageGenerator | None:
    """The pipeline that drew scenes, whose attributes can be read from pixels; None where others did."""
    if pairs.provenance.get("models", {}).get("image", {}).get("id") != MINIATURE:
        return None
    height, width = image_model.size
    return ImageGenerator.from_pretrained(
        str(own_folder("mini") / "image"),
        device=str(image_model.device),
        dtype=image_model.dtype,
        height=height,
        width=width,
        steps=image_model.steps,
    )


def _image_model(options: EvaluateOptions, pairs: PairSource) -> FrozenTransformer | None:
    """The model that made the pictures, where it is at hand and quick; None elsewhere."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = pairs.provenance.get("models", {}).get("image", {})
    own = str(named.get("id", "")).partition("/")[0] in OWN_MODELS
    if isinstance(options.models, ModelPaths):
        folder = str(locate("models.image", options.models.image)[1])
    elif own or (device.type == "cuda" and named.get("revision")):
        source = ModelSource(str(named["id"]), "", str(named.get("revision", "")), {})
        found = source.here() if own else source.cached()
        if found is None:
            return None
        folder = str(found)
    else:
        return None
    return frozen_model(folder, pairs, device)


def _load(
    options: EvaluateOptions,
    projector: Projector,
    split: str,
    limit: int | None,
    *,
    text_mode: TextMode | None = None,
    tokens: Tokens | None = None,
    reader: Reader | None = None,
) -> PairSource:
    return load_pairs(
        dataset_of(options, projector),
        split,
        layer=projector.layer,
        text_mode=text_mode or projector.config["text_mode"],
        tokens=tokens or projector.config["tokens"],
        limit=limit,
        reader=reader or projector.reader,
        fixed=True,
    )


def _swap_pairs(options: EvaluateOptions, projector: Projector) -> PairSource:
    """Held-out pairs whose VL input holds a caption that can be swapped, where the projector reads captions."""
    if projector.tokens == "image":
        return measured_pairs(options, projector)
    return _load(options, projector, options.split, options.max_samples, text_mode="caption", tokens="all")
