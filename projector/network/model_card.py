"""The page that goes with a projector to publish: pure text from its config.json, eval.json and pictures."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from projector.network.checkpoint import CONFIG, EVALUATION, WEIGHTS
from projector.network.publishing import FOLDED, ONNX, PROGRAM
from shards.tools.dataset_card import RANDOM, SPLIT_NAMES, WARNING, are_random
from shards.tools.markdown import front_matter, inline, table

CARD = "README.md"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
# The hub's cache keeps a dataset in datasets--ORG--NAME/snapshots/COMMIT.
HUB_CACHE = re.compile(r"/datasets--([\w.-]+?)--([\w.-]+)/snapshots/", re.ASCII)
FILES = {
    WEIGHTS: "weights, normalisation and description, for Projector.from_pretrained; usable by itself",
    CONFIG: "what it is and what it may be applied to",
    EVALUATION: "all measurements on held-out pairs",
    PROGRAM: "the same as a torch.export program, from (B, S, D) float32 tokens to whole conditionings, or to "
    "projected rows where it learnt without the image model; leave attention sinks out (template.vl_limit in "
    "config.json) and give linear and mlp no more than `length` tokens, evenly chosen; no pickle in it, but "
    "torch.export.load would run one that somebody put in: take it from who you trust",
    ONNX: "the same as ONNX, input vl (B, S, D) float32, output embeddings",
    FOLDED: "the same as one plain linear layer, weight (D, D) and bias (D,), from raw to raw",
}
USUAL = {
    "vl": "Qwen/Qwen3-VL-4B-Instruct",
    "image": "Tongyi-MAI/Z-Image-Turbo",
}  # where config.json names no hub id
FIGURES = {
    "fidelity": "fidelity of the picture",
    "velocity_error": "velocity error",
    "mse_standardized": "MSE (standardised)",
    "per_dim_correlation": "correlation",
    "r2": "R²",
    "cosine_similarity": "cosine",
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "sliced_wasserstein": "sliced Wasserstein",
    "outlier_dims": "dims > 2x",
    "collapsed_dims": "dims < 0.5x",
}
NAME, PIPELINE_TAG = "z-image-projector", "image-to-image"
# Methods stand by the first of these that is known: what pictures show, what they follow, the error of embeddings. The
# sign puts better ones first.
RANKED_BY = {"fidelity": -1, "velocity_error": 1, "mse_standardized": 1}
TOKENS = {
    "image": "the image tokens",
    "text": "the caption's tokens",
    "all": "the image's and the caption's tokens",
}
MODES = {"caption": "with the caption", "none": "with no text", "mixed": "with the caption or with no text"}


@dataclass(frozen=True)
class CardPicture:
    """A grid of pictures made with and without the projector."""

    file: str
    """Its name in the folder."""
    name: str
    """Of the reference, from outside."""
    prompt: str
    """From outside."""


@dataclass(frozen=True)
class Published:
    """What a model card is written from."""

    config: Mapping[str, Any]
    """Content of config.json."""
    evaluation: Mapping[str, Any] | None
    """Content of eval.json."""
    pictures: Sequence[CardPicture]
    """What `compare` made with this projector."""
    files: Mapping[str, str]
    """What else lies in the folder: names, and what each is."""
    license: str
    """The hub's identifier of the licence."""
    restore: float
    """How far outputs are stretched as saved, 0 to 1."""
    repository: str = ""
    """Hub id that it is published under; empty where that is not known yet."""
    dataset: str = ""
    """Hub id of the dataset it was trained on; empty where it has none."""


def model_card(published: Published) -> str:
    """The whole page; nothing that comes from a file can become markup, HTML or YAML."""
    config = published.config
    tokens, mode = TOKENS[config["tokens"]], MODES[config["text_mode"]]
    sections = (
        ("", _what_it_is(config)),
        ("Use", _use(published)),
        ("Figures", _figures(published.evaluation)),
        ("Pictures", _pictures(published.pictures)),
        ("Files", table(("file", "what it is"), list(published.files.items()))),
        ("Training", _training(config)),
        (
            "Limits",
            f"- Made for layer {config['layer']} of the vision-language model above, {tokens}, {mode} in its input. "
            "Projector refuses other widths, VLEmbeddingExtractor other layers, tokens and texts as well; a fine-tuned "
            "model gives numbers, but not these.\n"
            "- It carries over what pictures and prompts of its training data share; other kinds were not tried.\n"
            f"{_of_restoration(published)}"
            "- Figures are of pairs of the same kind as the training pairs, not of photographs.",
        ),
    )
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections if text)
    warning = f"{WARNING}\n" if are_random(config.get("base_models")) else ""
    return f"{front_matter(_fields(published))}# {_title(config)}\n\n{warning}{body}\n"


def dataset_id(config: Mapping[str, Any]) -> str:
    """The Hub id of the dataset that a projector was trained on, where that was read from the Hub's cache; or empty."""
    dataset = config.get("dataset")
    found = HUB_CACHE.search(str(dataset.get("root", "")) + "/") if isinstance(dataset, Mapping) else None
    return f"{found[1]}/{found[2]}" if found else ""


def _fields(published: Published) -> dict[str, Any]:
    identities = [str(model.get("id", "")) for model in _models(published.config).values()]
    bases = [name for name in identities if HUB_ID.fullmatch(name) and not name.startswith(RANDOM)]
    return {
        "license": published.license,
        "base_model": bases,
        "base_model_relation": "adapter" if bases else None,
        "pipeline_tag": PIPELINE_TAG,
        "library_name": NAME,
        "datasets": [published.dataset] if published.dataset else [],
        "tags": ["z-image", "qwen3-vl", "embeddings", "projector", "safetensors"],
        "model-index": _index(published),
    }


def _index(published: Published) -> list[dict[str, Any]]:
    """The projector's own figures as the Hub shows them beside the page."""
    methods = (published.evaluation or {}).get("methods")
    own = methods.get("projector") if isinstance(methods, Mapping) else None
    values = own if isinstance(own, Mapping) else {}
    metrics = [
        {"type": key, "name": label, "value": values[key]}
        for key, label in FIGURES.items()
        if type(values.get(key)) in (int, float) and math.isfinite(values[key])
    ]
    if not metrics:
        return []
    dataset = {"name": "held-out pairs", "type": published.dataset or "paired-hidden-states"}
    if isinstance(split := (published.evaluation or {}).get("split"), str):
        dataset["split"] = SPLIT_NAMES.get(split, split)
    result = {"task": {"type": PIPELINE_TAG}, "dataset": dataset, "metrics": metrics}
    return [{"name": published.repository.partition("/")[2] or NAME, "results": [result]}]


def _title(config: Mapping[str, Any]) -> str:
    return f"Qwen3-VL to Z-Image conditioning: {config['network']['arch']} projector, layer {config['layer']}"


def _what_it_is(config: Mapping[str, Any]) -> str:
    models = [
        (role, model.get("id", ""), model.get("revision") or "local folder")
        for role, model in _models(config).items()
    ]
    return (
        f"A light network ({_number(config.get('parameters'))} parameters) that maps hidden states of Qwen3-VL looking "
        "at a picture to embeddings like those that Qwen3-4B makes of a prompt, to steer Z-Image with the picture. "
        "Raw embeddings in, raw embeddings out: every normalisation is inside.\n\n"
        + table(("role", "base model", "revision"), models)
    )


def _use(published: Published) -> str:
    config = published.config
    width, layer, text = config["network"]["width"], config["layer"], config["text_mode"] == "caption"
    named = {role: str(model.get("id", "")) for role, model in _models(config).items()}
    vl, image = (
        identity
        if HUB_ID.fullmatch(identity := named.get(role, "")) and not identity.startswith(RANDOM)
        else usual
        for role, usual in USUAL.items()
    )
    kind = f"(S, {width}) hidden states of layer {layer}, {TOKENS[config['tokens']]}"
    said = published.repository or "this-folder"
    place = "" if published.repository else " and this folder downloaded"
    beside = "prompt" if text else "None"
    return f"""With the project installed (`pip install ".[diffusers]"` in a copy of its repository){place}:

```python
import torch
from PIL import Image

from projector import ZImageProjectorPipeline

device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = ZImageProjectorPipeline.from_pretrained(
    "{image}", projector="{said}", vision="{vl}", dtype=torch.bfloat16
).to(device)
prompt, cat = "a lighthouse at dusk", Image.open("cat.jpg")
picture = pipe(prompt, reference=cat, num_inference_steps=8, guidance_scale=0.0).images[0]
```

Or by hand, without diffusers:

```python
from projector import Projector, VLEmbeddingExtractor
from projector.inference.text_encoder import TextEncoder

where = {{"device": device, "dtype": torch.bfloat16}}
projector = Projector.from_pretrained("{said}")
extractor = VLEmbeddingExtractor.from_pretrained("{vl}", "{said}", **where)
seen = extractor.extract(cat, text={beside}, hidden_layer={layer}).raw
text = TextEncoder.from_pretrained("{image}", **where).encode([prompt])[0]
conditioning = projector.conditioning(seen, text.embeddings, text.kind)
```

`projector(embeddings)` takes {kind}, or a batch of them. Give any Z-Image pipeline of diffusers \
`prompt_embeds=[conditioning]`, a list with a tensor for each picture."""


def _figures(evaluation: Mapping[str, Any] | None) -> str:
    """The methods as a table, best first."""
    methods = (evaluation or {}).get("methods")
    if not isinstance(methods, Mapping) or not methods:
        return "It was not evaluated."
    known = {name: values for name, values in methods.items() if isinstance(values, Mapping)}
    columns = {
        key: label for key, label in FIGURES.items() if any(key in values for values in known.values())
    }

    deciding = next((key for key in RANKED_BY if key in columns), "")

    def order(name: str) -> float:
        value = known[name].get(deciding)
        return RANKED_BY[deciding] * float(value) if isinstance(value, int | float) else float("inf")

    rows = [
        (
            "this projector" if name == "projector" else name,
            *(_number(known[name].get(key)) for key in columns),
        )
        for name in sorted(known, key=order)
    ]
    told = evaluation or {}
    pairs = told.get("pairs")
    counts = f"{_number(pairs)} {inline(told.get('split', 'held-out'))} pairs, best first."
    if isinstance(groups := told.get("groups"), int) and isinstance(pairs, int) and groups < pairs:
        counts += (
            f" They are {groups:,} groups, each of one picture or caption: retrieval takes none of a pair's own group "
            "for wrong."
        )
    judged = told.get("judged")
    for name, count in judged.items() if isinstance(judged, Mapping) else ():
        if name in columns and isinstance(count, int) and isinstance(pairs, int) and count < pairs:
            counts += f" {columns[name].capitalize()} is of the first {count:,}."
    return f"{counts}\n\n{table(('method', *columns.values()), rows)}"


def _pictures(pictures: Sequence[CardPicture]) -> str:
    return "\n\n".join(
        f"![With and without the projector]({picture.file})\n\n{inline(picture.name)}: {inline(picture.prompt)}"
        for picture in pictures
    )


def _of_restoration(published: Published) -> str:
    """What can be set of the outputs' spread: nothing where rows have the size of the text's already."""
    if published.config["network"].get("suffix"):
        return ""
    return (
        "- Squared error shrinks what it cannot predict. `projector.restore = 1.0` stretches outputs to the real "
        f"tokens' spread, at a cost in error; it is saved as {published.restore:g}.\n"
    )


def _training(config: Mapping[str, Any]) -> str:
    dataset = config.get("dataset", {})
    pairs = f"{_number(config.get('train_pairs'))} training pairs, {_number(config.get('val_pairs'))} to choose by"
    fingerprint = inline(dataset.get("fingerprint") or "unknown")
    options = config.get("options")
    told = options.items() if isinstance(options, Mapping) else ()
    rows = [(key, value) for key, value in told if value is not None]
    return f"{pairs}; dataset fingerprint {fingerprint}.\n\n{table(('option', 'value'), rows)}"


def _models(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    models = config.get("base_models")
    named = models.items() if isinstance(models, Mapping) else ()
    return {role: model if isinstance(model, Mapping) else {"id": model} for role, model in named}


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
