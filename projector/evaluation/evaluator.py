"""Evaluation of checkpoints: what is compared on which pairs, and what goes into eval.json."""

from collections.abc import Callable, Mapping
from typing import Any

from projector.data.align import Alignment
from projector.data.pairs import PairSource, load_pairs
from projector.evaluation.caption_swap import caption_swap
from projector.evaluation.contest import Contest, Measured
from projector.network.projector import Projector
from projector.options import Align, EvaluateOptions, TextMode, Tokens
from shards.errors import UsageError

MAIN = "projector"  # what evaluate.checkpoint is called in the result
# Alignments that only training knows; the guide's pads with zeros, which would be measured as if they were tokens.
JUDGED: Mapping[Align, Align] = {"guide": "soft", "statistics": "soft"}

Measure = Callable[[Contest, PairSource], Measured]


def alone(contest: Contest, pairs: PairSource) -> Measured:
    """Measure all pairs in this process."""
    return contest.measure(pairs, range(len(pairs)))


def evaluate(
    projectors: Mapping[str, Projector],
    train_pairs: PairSource,
    val_pairs: PairSource,
    options: EvaluateOptions,
    *,
    alignment: Alignment,
    swap_pairs: PairSource | None = None,
    measure: Measure = alone,
) -> dict[str, Any]:
    """Measure projectors and baselines.

    Args:
        projectors: by the name they get in the result.
        train_pairs: where the baselines take their statistics from.
        val_pairs: what is measured on.
        options: directions and seed of the Wasserstein distance.
        alignment: which prediction answers for which target.
        swap_pairs: for the caption-swap test; None takes `val_pairs`.
        measure: how the pairs are gone through.

    Returns:
        the content of eval.json.

    Raises:
        UsageError: a projector of another width than the pairs, or with a baseline's name.
    """
    contest = Contest.between(projectors, train_pairs, options, alignment=alignment)
    measured = measure(contest, val_pairs)
    return {
        "pairs": len(val_pairs),
        "tokens": next(iter(measured.whole.values())).rows,
        "layer": val_pairs.layer,
        "text_mode": val_pairs.text_mode,
        "token_kinds": val_pairs.tokens,
        "align": alignment.kind,
        "train_pairs": len(train_pairs),
        "dataset": {key: value for key, value in val_pairs.provenance.items() if key != "models"},
        **measured.result(),
        "caption_swap": caption_swap(
            projectors, val_pairs if swap_pairs is None else swap_pairs, contest.standard
        ),
    }


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
                raise UsageError(
                    f"evaluate.others: {name} has {trait} {here!r}, the checkpoint has {there!r}; evaluate it "
                    "by itself"
                )
    return projectors


def dataset_of(options: EvaluateOptions, projector: Projector) -> str:
    """The root of the dataset to measure on; UsageError where neither options nor checkpoint name one."""
    data = options.data or str(projector.config.get("dataset", {}).get("root", ""))
    if not data:
        raise UsageError(
            "evaluate.data is empty and the checkpoint names no dataset; give the dataset's root"
        )
    return data


def held_out(options: EvaluateOptions, projector: Projector) -> PairSource:
    """The pairs to measure on, read as the projector reads its inputs."""
    return _load(options, projector, "val", options.max_samples)


def evaluate_checkpoint(
    options: EvaluateOptions, projectors: Mapping[str, Projector], *, measure: Measure = alone
) -> dict[str, Any]:
    """Measure trained projectors on a dataset's held-out pairs.

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
    alignment = Alignment(options.align or JUDGED.get(config["align"], config["align"]), config["length"])
    return evaluate(
        projectors,
        _load(options, main, "train", options.max_train_samples),
        held_out(options, main),
        options,
        alignment=alignment,
        swap_pairs=_swap_pairs(options, main),
        measure=measure,
    )


def _load(
    options: EvaluateOptions,
    projector: Projector,
    split: str,
    limit: int | None,
    *,
    text_mode: TextMode | None = None,
    tokens: Tokens | None = None,
) -> PairSource:
    return load_pairs(
        dataset_of(options, projector),
        split,
        layer=projector.layer,
        text_mode=text_mode or projector.config["text_mode"],
        tokens=tokens or projector.config["tokens"],
        limit=limit,
        data_option="evaluate.data",
    )


def _swap_pairs(options: EvaluateOptions, projector: Projector) -> PairSource:
    """Held-out pairs whose VL input holds a caption that can be swapped, where the projector reads captions."""
    if projector.tokens == "image":
        return held_out(options, projector)
    return _load(options, projector, "val", options.max_samples, text_mode="caption", tokens="all")
