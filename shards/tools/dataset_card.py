"""The page that goes with a dataset to publish: README.md in its root."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from shards.dataset.dataset import Dataset
from shards.errors import UsageError
from shards.prompts.categories import AXES
from shards.tools.info import details, info
from shards.tools.markdown import front_matter, inline, table

CARD = "README.md"
SETTINGS = (
    "height",
    "width",
    "steps",
    "guidance",
    "dtype",
    "layers",
    "text_modes",
    "vl_tokens",
    "max_tokens",
    "seed",
)
SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
)  # names of the hub's

ROLES = ("image", "text", "vl")  # of the models that a dataset's settings name
RANDOM = "tiny/"  # ids of the random test models, which are made on the spot and are nowhere to be had
WARNING = (
    "> **Made with random test models.** It shows that the program runs. Its figures and pictures mean nothing, and it "
    "is not for publishing.\n"
)

SPLIT_NAMES = {"val": "validation"}  # what the hub's own detection of splits makes of the folder

HUB_LOADING = """```python
import os

from datasets import load_dataset
from safetensors.torch import load

pairs = load_dataset(os.getcwd())  # or the name of its repository on the Hub
for sample in pairs["train"]:
    picture, caption, tensors = sample["SUFFIX"], sample["txt"], load(sample["safetensors"])
```"""
LOADING = """```python
from glob import glob

import webdataset
from safetensors.torch import load

for sample in webdataset.WebDataset(sorted(glob("train/*.tar")), shardshuffle=False):
    caption, tensors = sample["txt"].decode(), load(sample["safetensors"])
    text = tensors["text"]  # (T, D) what conditions Z-Image on the caption
    image = tensors["vl.MODE.LAYER"]  # (V, D) what Qwen3-VL read in it
```"""


def are_random(models: object) -> bool:
    """Whether any of the models that settings or a config.json name, by role, is a random test model."""
    named = models if isinstance(models, Mapping) else {}
    found = (named.get(role) for role in ROLES)
    ids = (model.get("id") if isinstance(model, Mapping) else model for model in found)
    return any(str(identity).startswith(RANDOM) for identity in ids)


def put_card(dataset: Dataset, license_id: str | None) -> str:
    """Write the card of a dataset.

    Args:
        dataset: opened dataset.
        license_id: an identifier of the hub's; None leaves the licence to be filled in.

    Returns:
        where it lies.

    Raises:
        UsageError: there is one already, which may hold what somebody wrote; or the dataset is of an earlier format.
    """
    dataset.require_writable()
    storage = dataset.storage
    if storage.stat(CARD) is not None:
        raise UsageError(
            f"{storage.url(CARD)} already exists and may hold changes of yours; remove it to have it written anew"
        )
    facts = info(dataset) | details(dataset)
    storage.put_bytes(CARD, dataset_card(facts, dataset.settings, dataset.packages, license_id).encode())
    return storage.url(CARD)


def dataset_card(
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    packages: Mapping[str, str],
    license_id: str | None,
) -> str:
    """The card's text; see `put_card`. `facts` are those of `info` and `details` together."""
    size = next((name for limit, name in SIZES if facts["samples"] < limit), "n>1M")
    layers, modes = settings.get("layers") or ["LAYER"], settings.get("text_modes") or ["MODE"]
    state = "complete" if facts["complete"] else "not complete yet"
    fields = {
        "license": license_id,
        "task_categories": ["image-to-image"],
        "tags": ["webdataset", "z-image", "qwen3-vl", "embeddings"],
        "size_categories": [size],
        # Without it `load_dataset` takes the parquet beside the shards, which has no picture and no embedding.
        "configs": _configs(facts["splits"]),
        "pretty_name": "Paired Qwen3-VL and Qwen3-4B hidden states",
    }
    parts = [
        front_matter(fields),
        "# Paired Qwen3-VL and Qwen3-4B hidden states\n",
        WARNING if are_random(settings.get("models")) else "",
        f"{_content(settings)}, and the hidden states that Qwen3-VL has when it looks at the picture. WebDataset "
        "shards; embeddings are bfloat16 safetensors.\n",
        "" if license_id else "The licence is not filled in: add `license` to the head of this page.\n",
        f"## Counts\n\n{facts['samples']} samples, {state}; {facts['failed']} of {facts['planned']} planned ones could "
        "not be made.\n",
        _splits(facts["splits"], facts.get("pictures", {})),
        "\n`val` is there to choose by (penalty, epoch and so on), `test` to report on; a caption, or a picture, is in "
        "one split only.\n",
        f"## Models\n\n{_models(settings.get('models', {}))}\n",
        "## Settings\n",
        table(("setting", "value"), [(key, settings[key]) for key in SETTINGS if key in settings]),
        f"\nFingerprint of all settings: `{inline(facts['fingerprint'])}`, made {inline(facts['created'])} with "
        f"{inline(', '.join(f'{name} {version}' for name, version in packages.items()))}.\n",
        "## Loading\n\nWith nothing of this project, in a copy of this folder:\n",
        HUB_LOADING.replace("SUFFIX", "jpg" if "import" in settings else "png"),
        "\nOr as a stream, tensor by tensor:\n",
        LOADING.replace("MODE", _key(modes[0])).replace("LAYER", _key(layers[0])),
        "\nLeave out `.decode()`: some of WebDataset's decoders unpickle. `KEY.json` tells seed, sizes, token counts "
        "and categories; `text.kind` and `vl.MODE.kind` tell each token's kind (0 template, 1 image, 2 caption, "
        "3 marker).\n",
        f"## Coverage\n\n{_coverage(facts['coverage'])}\n",
        f"## Limits\n\n{_limits(settings)}; nobody looked through them.\n",
    ]
    return "\n".join(part for part in parts if part)


def _splits(splits: Mapping[str, Mapping[str, int]], pictures: Mapping[str, int]) -> str:
    """Samples, and for an import their pictures, by split."""
    rows = [
        (name, split["samples"], *((pictures[name],) if pictures else ()), split["shards"])
        for name, split in splits.items()
    ]
    return table(("split", "samples", *(("pictures",) if pictures else ()), "shards"), rows)


def _content(settings: Mapping[str, Any]) -> str:
    """What stands beside the hidden states."""
    if "import" in settings:
        return (
            "Pictures and captions of another set, the text embeddings that condition Z-Image on each caption"
        )
    return "Pictures, their captions, the text embeddings that conditioned each picture in Z-Image"


def _limits(settings: Mapping[str, Any]) -> str:
    if "import" in settings:
        return (
            "Pictures and captions are other people's, under the terms of the set that they were taken from"
        )
    return "The pictures are one model's idea of the captions, flaws included"


def _key(value: object) -> str:
    """A part of a tensor's name, for code: nothing but letters, digits and a minus survives."""
    return "".join(sign for sign in str(value) if sign.isalnum() or sign == "-")


def _coverage(cells: Iterable[Mapping[str, Any]]) -> str:
    """Samples by each category; the combinations, which are hundreds, as one figure."""
    made = list(cells)
    counts = {name: Counter[str]() for name in AXES}
    for cell in made:
        for name, count in counts.items():
            count[cell[name]] += cell["samples"]
    rows = [
        (name, value, samples) for name, count in counts.items() for value, samples in sorted(count.items())
    ]
    if not any(value for _, value, _ in rows):
        return "The captions carry no categories."
    fewest, most = min(cell["samples"] for cell in made), max(cell["samples"] for cell in made)
    said = f"{len(made)} combinations of the three have samples, {fewest} to {most} each."
    return f"{table(('category', 'value', 'samples'), [row for row in rows if row[1]])}\n\n{said}"


def _configs(splits: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Which files are which split, for the hub's viewer and `datasets`: shards, whose pictures it then shows."""
    files = [
        {"split": SPLIT_NAMES.get(name, name), "path": f"{name}/*.tar"}
        for name, split in splits.items()
        if split["shards"]
    ]
    return [{"config_name": "default", "data_files": files}] if files else []


def _models(models: Mapping[str, Any]) -> str:
    rows = []
    for role, model in models.items():
        known = model if isinstance(model, Mapping) else {"id": model}
        rows.append(
            (role, known.get("id", ""), known.get("revision") or "a local folder; hashes in dataset.json")
        )
    return table(("role", "model", "revision"), rows)
