"""What `compare` is asked for, checked before a model loads: models, scorer, pictures, prompts, statistics."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from projector.comparison.cases import Case, name_of, paired, reference_pictures, user_pictures
from projector.comparison.comparer import PROJECTED, UNTRAINED
from projector.comparison.scores import DEFAULT_SCORER, TINY_SCORER, resolve_scorer
from projector.data.pairs import load_pairs
from projector.evaluation.baselines import TrainStatistics
from projector.models.resolve import ModelSource, ModelSources
from projector.network.projector import Projector
from ray_jobs.cli.run_options import CompareOptions
from shards.dataset.dataset import Dataset
from shards.errors import UsageError
from shards.format.plan import sample_seed
from shards.prompts.files import read_prompts
from shards.stores.local import open_storage

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
    return resolve_scorer(options.scorer or (TINY_SCORER if options.models == "tiny" else DEFAULT_SCORER))


def data_of(options: CompareOptions, projector: Projector) -> str:
    """Root of the dataset behind test samples and baselines."""
    data = options.data or projector.config.get("dataset", {}).get("root", "")
    if not data:
        raise UsageError(
            "compare.data is empty and the checkpoint names no dataset; give the dataset's root, or "
            "compare.images, compare.prompts and compare.methods identity,projector, which need none"
        )
    return str(data)


def pictures_of(options: CompareOptions, projector: Projector) -> list[tuple[Image.Image, str]]:
    """Reference pictures with their prompts: a user's, those of `test`, or pictures of `test` with a user's prompts."""
    prompts: list[str] = []
    if options.prompts:
        source = read_prompts(Path(options.prompts), options.prompt_column, "compare.prompts")
        prompts = [prompt.caption for prompt in source.prompts]
    if options.images is None:
        dataset = Dataset.open(open_storage(data_of(options, projector)))
        found = reference_pictures(dataset, options.samples)
        return paired([picture for picture, _ in found], prompts) if prompts else found
    if not prompts:
        raise UsageError(
            "compare.images without compare.prompts: say what the pictures should show; give a prompt file with "
            "one prompt for each image, or one for all"
        )
    return paired(user_pictures(options.images, projector.picture_size), prompts)


def reference_of(options: CompareOptions, projector: Projector) -> TrainStatistics | None:
    """Statistics for the baselines among the methods; None where no method needs them.

    Raises:
        UsageError: a method that does not exist, or no dataset to take statistics from.
    """
    asked = set(options.methods) - {PROJECTED}
    if asked <= UNTRAINED.keys():
        return None
    pairs = load_pairs(
        data_of(options, projector),
        "train",
        layer=projector.layer,
        text_mode=projector.config["text_mode"],
        tokens=projector.config["tokens"],
        limit=STATISTICS_PAIRS,
        reader=projector.reader,
        data_option="compare.data",
    )
    if pairs.width != projector.width:
        raise UsageError(
            f"compare.data: its pairs have width {pairs.width}, the projector has {projector.width}; "
            "give a dataset of the models it was trained on"
        )
    reference = TrainStatistics.of(pairs)
    known = [*reference.baselines(), PROJECTED]
    if unknown := sorted(asked - set(known)):
        raise UsageError(f"compare.methods: unknown {unknown[0]!r}; the methods are {', '.join(known)}")
    return reference


def cases_of(pictures: Sequence[tuple[Image.Image, str]], seed: int) -> list[Case]:
    """The cases in order, named.

    Raises:
        UsageError: a picture is there twice with the same prompt.
    """
    names = [name_of(*pair) for pair in pictures]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UsageError(
                f"compare.images: pictures {names.index(name) + 1} and {index + 1} are the same, with the same "
                "prompt; leave one out"
            )
    return [
        Case(name, prompt, sample_seed(seed, name)) for name, (_, prompt) in zip(names, pictures, strict=True)
    ]
