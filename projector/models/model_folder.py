"""Whether a model's folder is whole and holds what it should, by its files alone.

`option` is what errors call the folder.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from projector.models.weight_files import check_not_quantised, check_weight_files
from shards.errors import OptionError

PIPELINE_CLASS = "ZImagePipeline"
VL_CLASS = "Qwen3VLForConditionalGeneration"
# Component folders of the pipeline and the file in each that says what it is.
PIPELINE_PARTS = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
}
WEIGHTED_PARTS = ("transformer", "vae", "text_encoder")
VL_FILES = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def check_pipeline(folder: Path, option: str) -> None:
    """UsageError where a folder is no whole Z-Image pipeline."""
    index = read_json(folder / "model_index.json", option, folder)
    if index.get("_class_name") != PIPELINE_CLASS:
        raise OptionError(
            f"{option} = {str(folder)!r}: holds a {index.get('_class_name')!r}; a {PIPELINE_CLASS} is needed"
        )
    missing = [
        f"{part}/{name}" for part, name in PIPELINE_PARTS.items() if not (folder / part / name).is_file()
    ]
    for part in WEIGHTED_PARTS:
        if f"{part}/config.json" not in missing:
            missing += [f"{part}/{name}" for name in _missing_weights(folder / part, option, folder)]
    _refuse(missing, option, folder)
    for part in WEIGHTED_PARTS:
        _check_weights(folder / part, option, folder)


def check_vision_language(folder: Path, option: str) -> None:
    """UsageError where a folder is no whole Qwen3-VL."""
    config = read_json(folder / "config.json", option, folder)
    if VL_CLASS not in config.get("architectures", []):
        raise OptionError(
            f"{option} = {str(folder)!r}: holds {config.get('architectures')}; a {VL_CLASS} is needed"
        )
    check_complete(folder, VL_FILES, option)


def check_complete(folder: Path, files: Sequence[str], option: str) -> None:
    """UsageError where a model folder lacks one of these files or whole, plain weights as safetensors."""
    missing = [name for name in files if not (folder / name).is_file()]
    _refuse(missing + _missing_weights(folder, option, folder), option, folder)
    _check_weights(folder, option, folder)


def _check_weights(folder: Path, option: str, root: Path) -> None:
    path = folder / "config.json"
    check_not_quantised(read_json(path, option, root), str(path.relative_to(root)), option, root)
    check_weight_files(folder, option, root)


def _missing_weights(folder: Path, option: str, root: Path) -> list[str]:
    """Weight files that are promised and not there."""
    for index in folder.glob("*.safetensors.index.json"):
        if not index.is_file():
            return [index.name]
        shards = read_json(index, option, root).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise OptionError(
                f"{option} = {str(root)!r}: {index.relative_to(root)} has no weight_map of file names; "
                "download it again"
            )
        return sorted(name for name in set(shards.values()) if not (folder / name).is_file())
    weights = list(folder.glob("*.safetensors"))
    return [path.name for path in weights if not path.is_file()] if weights else ["*.safetensors"]


def _refuse(missing: Sequence[str], option: str, folder: Path) -> None:
    if not missing:
        return
    pickled = [path for path in folder.rglob("*") if path.suffix in PICKLED_SUFFIXES]
    hint = (
        f"; {pickled[0].name} is pickled weights, which are never loaded: convert them to safetensors"
        if pickled
        else "; download the folder again"
    )
    raise OptionError(f"{option} = {str(folder)!r}: incomplete, missing {', '.join(missing)}{hint}")


def read_json(path: Path, option: str, folder: Path) -> dict[str, Any]:
    """A JSON object of a model folder; UsageError where it is missing or broken."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no plain file")  # a pipe would be waited for
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OptionError(
            f"{option} = {str(folder)!r}: no {path.relative_to(folder)} there; give a complete model folder"
        ) from None
    except (OSError, ValueError) as error:
        raise OptionError(
            f"{option} = {str(folder)!r}: {path.relative_to(folder)} cannot be read: {error}"
        ) from None
    if not isinstance(content, dict):
        raise OptionError(f"{option} = {str(folder)!r}: {path.relative_to(folder)} is not a JSON object")
    return content
