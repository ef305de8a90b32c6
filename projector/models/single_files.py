"""Make a model folder for `build` of ComfyUI's single files of Z-Image: `python -m projector.models.single_files`."""

import argparse
import json
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from projector.models.model_folder import (
    PICKLED_SUFFIXES,
    PIPELINE_CLASS,
    PIPELINE_PARTS,
    WEIGHTED_PARTS,
    read_json,
)
from projector.models.resolve import locate
from projector.models.weight_files import PLAIN, problem_of
from shards.errors import UsageError
from shards.tools.terminal import exit_code, visible_output

SETTINGS = "Tongyi-MAI/Z-Image-Turbo"
STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
SHARD_BYTES = 2 * 10**9  # what is held in memory at a time
SCALES = (
    "weight_scale",
    "scale_weight",
    "input_scale",
    "scaled_fp8",
    "comfy_quant",
)  # of ComfyUI's quantised files


@dataclass(frozen=True)
class SingleFiles:
    """The weights of Z-Image as ComfyUI's loaders take them."""

    transformer: Path
    """Such as diffusion_models/z_image_turbo_bf16.safetensors."""
    text_encoder: Path
    """Such as text_encoders/qwen_3_4b.safetensors."""
    vae: Path
    """Such as vae/ae.safetensors."""


def convert_single_files(files: SingleFiles, output: Path, settings: str = SETTINGS) -> None:
    """Write a Z-Image folder as diffusers has it; weights keep their type, and nothing is written before all fit.

    Args:
        files: the weights.
        output: the folder, which must not be there; it appears whole or not at all.
        settings: folder or Hub id that configurations, scheduler and tokenizer are taken from, never weights.

    Raises:
        UsageError: files or settings that are missing, quantised, pickled or of another model, or no room for them.
    """
    if output.exists():
        raise UsageError(f"output = {str(output)!r} exists; choose another folder, or remove it")
    sources = {part: getattr(files, part) for part in WEIGHTED_PARTS}
    for part, path in sources.items():
        _check_file(part, path)
    folder = _settings_folder(settings)
    states = {part: _renamed(part, path, folder) for part, path in sources.items()}
    needed = sum(tensor.nbytes for state in states.values() for tensor in state.values())
    draft = output.with_name(f".{output.name}-{uuid.uuid4().hex}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(output.parent).free) < needed:
            raise UsageError(
                f"output = {str(output)!r}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; make room"
            )
        for part, state in states.items():
            _write(draft / part, STEMS[part], state)
        _copy_settings(folder, draft)
        draft.rename(output)
    except OSError as error:
        raise UsageError(
            f"output = {str(output)!r} cannot be written: {error}; choose another folder"
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def main(argv: Sequence[str]) -> int:
    """Convert by the words of a command line; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m projector.models.single_files",
        description="Make a model folder for models.image of the single files that ComfyUI has of Z-Image.",
    )
    parser.add_argument("output", type=Path, help="the folder, which must not be there")
    parser.add_argument("--transformer", type=Path, required=True, help="z_image_turbo_bf16.safetensors")
    parser.add_argument("--text-encoder", type=Path, required=True, help="qwen_3_4b.safetensors")
    parser.add_argument("--vae", type=Path, required=True, help="ae.safetensors")
    parser.add_argument(
        "--settings",
        default=SETTINGS,
        help="folder or Hub id of the small files beside the weights; %(default)s",
    )
    given = parser.parse_args(argv)
    files = SingleFiles(given.transformer, given.text_encoder, given.vae)

    def run() -> int:
        convert_single_files(files, given.output, given.settings)
        print(f"{given.output}: for --models.image")
        return 0

    with visible_output():
        return exit_code(run)


def _check_file(part: str, path: Path) -> None:
    said = f"{part} = {str(path)!r}"
    if path.suffix in PICKLED_SUFFIXES:
        raise UsageError(f"{said}: it is pickled weights, which are never loaded; give a .safetensors file")
    if not path.is_file():
        raise UsageError(f"{said}: no such file; give the .safetensors file that ComfyUI loads")
    if problem := problem_of(path):
        raise UsageError(f"{said}: it {problem}")


def _settings_folder(settings: str) -> Path:
    """Where the settings are, with every file that a pipeline has beside its weights."""
    wanted = ("model_index.json", *(f"{part}/*.json" for part in WEIGHTED_PARTS))
    _, folder, _ = locate("settings", settings, ("scheduler", "tokenizer"), files=wanted)
    kind = read_json(folder / "model_index.json", "settings", folder).get("_class_name")
    if kind != PIPELINE_CLASS:
        raise UsageError(f"settings = {settings!r}: holds a {kind!r}; a {PIPELINE_CLASS} is needed")
    for part, name in PIPELINE_PARTS.items():
        if not (folder / part / name).is_file():
            raise UsageError(f"settings = {settings!r}: no {part}/{name} there; give a complete model folder")
    return folder


def _renamed(part: str, path: Path, settings: Path) -> dict[str, Tensor]:
    """Tensors under diffusers' names, as many and as large as the settings say; their values are not read yet."""
    from safetensors.torch import load_file

    found: Mapping[str, Tensor] = load_file(path)  # maps the file into memory
    if scales := [name for name in found if name.endswith(SCALES)]:
        raise UsageError(
            f"{part} = {str(path)!r}: {scales[0]} is of quantised weights, which are not loaded; give it in {PLAIN}"
        )
    expected = _expected(part, settings)
    renamed = dict(found) if found.keys() == expected.keys() else _by_library(part, found, settings)
    for name in [*expected, *renamed]:
        sizes = [tuple(state[name].shape) if name in state else None for state in (renamed, expected)]
        if sizes[0] != sizes[1]:
            raise UsageError(
                f"{part} = {str(path)!r}: {name} has the shape {sizes[0]}, {part}/config.json of the settings has "
                f"{sizes[1]}; give the file and the settings of one model"
            )
    return renamed


def _by_library(part: str, found: Mapping[str, Tensor], settings: Path) -> dict[str, Tensor]:
    """Renamed as diffusers' `from_single_file` does; a text encoder's names are the same in both."""
    from diffusers.loaders import single_file_utils as library

    if part == "text_encoder":
        return {name: tensor for name, tensor in found.items() if name != "lm_head.weight"}
    try:
        if part == "transformer":
            return dict(library.convert_z_image_transformer_checkpoint_to_diffusers(dict(found)))
        config = read_json(settings / part / "config.json", "settings", settings)
        return dict(library.convert_ldm_vae_checkpoint(found, config))
    except (KeyError, IndexError, RuntimeError):  # names of another model, which are told by what is missing
        return dict(found)


def _expected(part: str, settings: Path) -> dict[str, Tensor]:
    """Names and shapes by the part's config.json, without values."""
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.device("meta"):
        if part == "text_encoder":
            config = Qwen3Config.from_pretrained(settings / part)
            state = dict(Qwen3ForCausalLM(config).state_dict())
            if config.tie_word_embeddings:
                del state["lm_head.weight"]
            return state
        kind = {"transformer": ZImageTransformer2DModel, "vae": AutoencoderKL}[part]
        return dict(kind.from_config(kind.load_config(settings / part)).state_dict())


def _write(folder: Path, stem: str, state: Mapping[str, Tensor]) -> None:
    """Save in shards, of which one at a time is in memory."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    sizes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    split = split_torch_state_dict_into_shards(
        sizes, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=SHARD_BYTES
    )
    for file, names in split.filename_to_tensors.items():
        save_file(
            {name: state[name].clone(memory_format=torch.contiguous_format) for name in names},
            folder / file,
            metadata={"format": "pt"},
        )
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _copy_settings(settings: Path, folder: Path) -> None:
    shutil.copyfile(settings / "model_index.json", folder / "model_index.json")
    for part in PIPELINE_PARTS:
        (folder / part).mkdir(exist_ok=True)
        for file in (settings / part).iterdir():
            plain = file.suffix in (".json", ".txt", ".jinja") and not file.name.endswith(".index.json")
            if file.is_file() and plain:
                shutil.copyfile(file, folder / part / file.name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
