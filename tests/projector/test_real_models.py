"""docs/real-models.md says what is refused and how; every line of it is tried on a folder of that kind."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from projector.inference.image_settings import check_image_settings
from projector.models.resolve import resolve_models
from projector.options import ModelPaths
from ray_support import ROOT
from shards.errors import UsageError

PAGE = (ROOT / "docs" / "real-models.md").read_text()
REFUSED = dict(
    re.findall(
        r"^\| (.+?) \| `{1,2}(.+?)`{1,2} \|$", PAGE.split("## What is refused")[1].split("## Memory")[0], re.M
    )
)


# What is given instead of the pipeline's folder.
FILES = {
    "a GGUF file": "z_image_turbo-Q4_K_M.gguf",
    "a ComfyUI single file": "z_image_turbo_bf16.safetensors",
}


def edit(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def quantised(method):
    return lambda folder: edit(folder / "vl" / "config.json", quantization_config={"quant_method": method})


def other_width(folder):
    config = json.loads((folder / "vl" / "config.json").read_text())
    edit(folder / "vl" / "config.json", text_config=config["text_config"] | {"hidden_size": 128})


def fp8_tensors(folder):
    tensors = {"a.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn)}
    save_file(tensors, folder / "image" / "transformer" / "diffusion_pytorch_model.safetensors")


def gguf_inside(folder):
    weights = folder / "image" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("z_image_turbo-Q4_K_M.gguf"))


def one_file(folder):
    for name in FILES.values():
        (folder / name).write_bytes(b"GGUF")


def comfyui_folder(folder):
    shutil.rmtree(folder / "image")
    (folder / "image" / "diffusion_models").mkdir(parents=True)
    save_file({"a": torch.zeros(2)}, folder / "image" / "diffusion_models" / "z_image_turbo_bf16.safetensors")


def missing_shard(folder):
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    (folder / "vl" / "model.safetensors").rename(folder / "vl" / first)
    (folder / "vl" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": first, "b": second}})
    )


def cut(folder):
    path = folder / "vl" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


FOLDERS = {
    "Z-Image without guidance": lambda f: edit(f / "image/scheduler/scheduler_config.json", shift=6.0),
    "another pipeline": lambda f: edit(f / "image" / "model_index.json", _class_name="FluxPipeline"),
    "Qwen2.5-VL": lambda f: edit(
        f / "vl" / "config.json", architectures=["Qwen2_5_VLForConditionalGeneration"]
    ),
    "Qwen3-VL of another width": other_width,
    "FP8 with its config": quantised("fp8"),
    "bitsandbytes": quantised("bitsandbytes"),
    "AWQ or GPTQ": quantised("awq"),
    "compressed-tensors": quantised("compressed-tensors"),
    "FP8 tensors without a config": fp8_tensors,
    "GGUF in the transformer's place": gguf_inside,
    "a GGUF file": one_file,
    "a ComfyUI single file": one_file,
    "a folder of ComfyUI files": comfyui_folder,
    "pickled weights": lambda f: (f / "vl" / "model.safetensors").rename(f / "vl" / "pytorch_model.bin"),
    "a Git LFS pointer": lambda f: (f / "vl" / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    ),
    "a download that was cut": cut,
    "a missing shard": missing_shard,
}


def test_the_page_and_this_file_name_the_same():
    assert set(REFUSED) == set(FOLDERS)


def asked(folder, image):
    """The checks of a build, in their order."""
    found = resolve_models(ModelPaths(image=str(folder / image), vl=str(folder / "vl")))
    pipeline = replace(found.image, id="Z-Image")
    check_image_settings(pipeline, height=64, width=64, steps=8, guidance=0.0, max_tokens=60)


def test_sound_models_pass(tiny):
    asked(tiny, "image")


@pytest.mark.parametrize("given", FOLDERS)
def test_it_is_refused_with_the_words_of_the_page(tiny, tmp_path, given):
    folder = tmp_path / "models"
    shutil.copytree(tiny, folder)
    FOLDERS[given](folder)
    with pytest.raises(UsageError) as caught:
        asked(folder, FILES.get(given, "image"))
    said = REFUSED[given].removeprefix("build.")  # which the job puts before its option
    words = ".*".join(map(re.escape, said.split("…")))
    assert re.search(words, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_page_is_linked_from_the_readme():
    assert "docs/real-models.md" in (ROOT / "README.md").read_text()
