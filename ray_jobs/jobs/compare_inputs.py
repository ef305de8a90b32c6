"""What `compare` is asked for, checked before a model loads: models, scorer, pictures, prompts, statistics."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from projector.comparison.cases import (
    PROJECTED,
    Case,
    cases_of,
    name_of,
    paired,
    part_of,
    reference_pictures,
    user_pictures,
)
from projector.comparison.comparer import UNTRAINED
from projector.comparison.scores import DEFAULT_SCORER, resolve_scorer
from projector.data.dataset_pairs import load_pairs
from projector.evaluation.baselines import TrainStatistics
from projector.models.resolve import OWN_MODELS, ModelSource, ModelSources
from projector.network.projector import Projector
from projector.options import GRAFT
from projector.steering.modes import WITH_PROMPT, Mode
from ray_jobs.cli.run_options import CompareOptions
from shards.dataset.dataset import Dataset
from shards.errors import UsageError
from shards.format.plan import sample_seed
from shards.prompts.files import read_prompts
from shards.scenes.captions import scene_named
from shards.stores.local import open_storage

DEFAULT_MODES: tuple[Mode, ...] = ("alone", "concat", "guidance", "blend")
STATISTICS_PAIRS = (
    1000  # a million tokens at 1024 pixels: more move no mean or spread that a picture would show
)


def check_fit(projector: Projector, sources: ModelSources) -> None:
    """Refuse models of another width than the projector's, or without its layer."""
    if projector.width != sources.hidden_size or -projector.layer > sources.vl_layers:
        raise UsageError(
            f"compare.models: width {sources.hidden_size} and {sources.vl_layers} VL blocks; the projector was "
            f"trained on width {projector.width} and layer {projector.layer}; give the models it was trained on"
        )


def scorer_of(options: CompareOptions) -> ModelSource | None:
    """The SigLIP model to score with; None for none."""
    if options.scorer == "none":
        return None
    own = options.models if options.models in OWN_MODELS else DEFAULT_SCORER
    return resolve_scorer(options.scorer or str(own))


def data_of(options: CompareOptions, projector: Projector) -> str:
    """Root of the dataset behind test samples and baselines."""
    data = options.data or projector.config.get("dataset", {}).get("root", "")
    if not data:
        raise UsageError(
            "compare.data is empty and the checkpoint names no dataset; give the dataset's root, or "
            "compare.images, compare.prompts, compare.methods identity,projector and compare.modes concat,blend, which "
            "need none"
        )
    return str(data)


def modes_of(options: CompareOptions, projector: Projector) -> list[Mode]:
    """The modes asked for, or all that make sense.

    Raises:
        UsageError: a picture alone, to a projector of captions.
    """
    needs_text = projector.tokens != "image" and projector.text_mode == "caption"
    if options.modes is None:
        return [mode for mode in DEFAULT_MODES if not (needs_text and mode == "alone")]
    if needs_text and "alone" in options.modes:
        raise UsageError(
            f"compare.modes: alone has no prompt, and the projector takes tokens {projector.tokens!r} of a picture "
            "with a text beside it; leave it out"
        )
    return list(options.modes)


def cases_to_make(
    options: CompareOptions, projector: Projector, modes: Sequence[Mode]
) -> list[tuple[Case, Image.Image]]:
    """The cases in order, those of a reference together, each with its reference.

    Raises:
        UsageError: nothing to make, or a picture twice with the same prompt.
    """
    alone, with_prompt = "alone" in modes, bool(set(modes) & set(WITH_PROMPT))
    prompts: list[str] = []
    if options.prompts:
        source = read_prompts(Path(options.prompts), options.prompt_column)
        prompts = [prompt.caption for prompt in source.prompts]
    if options.images is None:
        dataset = Dataset.open(open_storage(data_of(options, projector)))
        pairs = reference_pictures(dataset, max(options.samples, 1 if prompts else 2))
        if not prompts:
            return _held_out_cases(options, pairs, alone=alone, with_prompt=with_prompt)
        pictures = [picture for picture, _ in pairs]
    else:
        if with_prompt and not prompts:
            raise UsageError(
                "compare.images without compare.prompts: say what the pictures should show; give a prompt file with "
                "one prompt for each image, or one for all, or compare.modes alone"
            )
        pictures = user_pictures(options.images, projector.picture_size)
    wanted = paired(pictures, prompts) if with_prompt else [(picture, "") for picture in pictures]
    names = [name_of(*pair) for pair in wanted]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UsageError(
                f"compare.images: pictures {names.index(name) + 1} and {index + 1} are the same, with the same "
                "prompt; leave one out"
            )
    return _once(
        (case, picture)
        for picture, prompt in wanted
        for case in cases_of(picture, [prompt], options.seed, alone=alone)
    )


def _held_out_cases(
    options: CompareOptions,
    pairs: Sequence[tuple[Image.Image, str]],
    *,
    alone: bool,
    with_prompt: bool,
) -> list[tuple[Case, Image.Image]]:
    """Each reference without a prompt, with the next one's caption, and with part of what that one names."""
    if with_prompt and len(pairs) < 2:
        raise UsageError(
            "compare.samples: the dataset holds one held-out sample, and each gets the prompt of another; build more, "
            "or give compare.prompts"
        )
    found = []
    for number, (picture, caption) in enumerate(pairs[: options.samples]):
        other = pairs[(number + 1) % len(pairs)][1]
        prompts = [other, part_of(other, sample_seed(options.seed, other))] if with_prompt else []
        scene = scene_named(caption)
        things = len(scene.things) if scene else 1
        of_reference = cases_of(picture, prompts, options.seed, alone=alone, things=things)
        found += [(case, picture) for case in of_reference]
    return _once(found)


def _once(cases: Iterable[tuple[Case, Image.Image]]) -> list[tuple[Case, Image.Image]]:
    """Each case once: a picture that is there with several prompts is drawn alone only once."""
    return list({case.name: (case, picture) for case, picture in cases}.values())


def known_of(
    options: CompareOptions, projector: Projector, modes: Sequence[Mode]
) -> tuple[TrainStatistics | None, Tensor | None]:
    """What is known of the training data: statistics for the baselines, and the template's mean end.

    Returns:
        both, None where nothing needs them.

    Raises:
        UsageError: a method that does not exist, or no dataset to take statistics from.
    """
    asked = set(options.methods) - {PROJECTED}
    untrained = asked <= {*UNTRAINED, GRAFT}
    needs_end = bool({"alone", "guidance"} & set(modes)) and not projector.network.shape.suffix
    if untrained and not needs_end:
        return None, None
    pairs = load_pairs(
        data_of(options, projector),
        "train",
        layer=projector.layer,
        text_mode=projector.config["text_mode"],
        tokens=projector.config["tokens"],
        limit=STATISTICS_PAIRS,
        reader=projector.reader,
        fixed=True,
    )
    if pairs.width != projector.width:
        raise UsageError(
            f"compare.data: its pairs have width {pairs.width}, the projector has {projector.width}; "
            "give a dataset of the models it was trained on"
        )
    suffix = pairs.template.suffix if needs_end and pairs.template else None
    if untrained:
        return None, suffix
    reference = TrainStatistics.of(pairs)
    known = [*reference.baselines(), GRAFT, PROJECTED]
    if unknown := sorted(asked - set(known)):
        raise UsageError(f"compare.methods: unknown {unknown[0]!r}; the methods are {', '.join(known)}")
    return reference, suffix
