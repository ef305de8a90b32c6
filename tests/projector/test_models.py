"""Models are pinned, hashed and refused before a weight is read."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from projector.models.resolve import CACHE_VARIABLE, file_hashes, own_folder, resolve_models
from projector.models.tiny import RECIPE, make_tiny_models
from projector.options import ModelPaths
from shards.errors import UsageError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny models that a test may damage."""
    shutil.copytree(tiny, tmp_path / "models")
    return tmp_path / "models"


def resolve(folder):
    return resolve_models(ModelPaths(image=str(folder / "image"), vl=str(folder / "vl")))


def test_both_models_are_pinned_by_their_files(tiny, tiny_sources):
    assert (tiny_sources.hidden_size, tiny_sources.vl_layers) == (64, 12)
    assert tiny_sources.image.files == file_hashes(tiny / "image")
    for name in (
        "model_index.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "tokenizer/tokenizer.json",
    ):
        assert len(tiny_sources.image.files[name]) == 64
    told = tiny_sources.to_json()
    assert told["vl"]["files"]["model.safetensors"]
    assert str(tiny) not in json.dumps(told)


def test_a_changed_weight_changes_the_hash(copy):
    before = resolve(copy)
    path = copy / "vl" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    after = resolve(copy)
    assert before.vl.files["model.safetensors"] != after.vl.files["model.safetensors"]
    assert before.image == after.image


def edit(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def no_weights(folder):
    (folder / "image" / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def pickled_weights(folder):
    path = folder / "vl" / "model.safetensors"
    path.rename(path.with_name("pytorch_model.bin"))


def pipe_for(pattern):
    """A pipe in the place of a file, which would be waited for."""

    def damage(folder):
        path = next(folder.glob(pattern))
        path.unlink()
        os.mkfifo(path)

    return damage


def missing_weight_shard(folder):
    vl = folder / "vl"
    (vl / "model.safetensors").rename(vl / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (vl / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def lfs_pointer(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (folder / "image" / "transformer" / WEIGHTS).write_text(text)


def cut_weights(folder):
    path = folder / "vl" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def typed_weights(dtype):
    """Weights of a type that other programs quantise to, where no config.json says so."""

    def damage(folder):
        save_file(
            {"a.weight": torch.zeros(4, 4).to(dtype)}, folder / "image" / "text_encoder" / "model.safetensors"
        )

    return damage


def other_width(folder):
    config = json.loads((folder / "vl" / "config.json").read_text())
    config["text_config"]["hidden_size"] = 128
    (folder / "vl" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (pipe_for("vl/config.json"), ["models.vl", "config.json"]),
        (pipe_for("vl/*.safetensors"), ["models.vl", ".safetensors"]),
        (lambda f: shutil.rmtree(f / "image"), ["models.image", "no such folder"]),
        (lambda f: shutil.rmtree(f / "vl"), ["models.vl", "no such folder"]),
        (
            lambda f: (f / "image" / "model_index.json").unlink(),
            ["models.image", "no model_index.json"],
        ),
        (lambda f: (f / "vl" / "config.json").unlink(), ["models.vl", "no config.json"]),
        (
            lambda f: shutil.rmtree(f / "image" / "tokenizer"),
            ["incomplete", "tokenizer/tokenizer_config.json"],
        ),
        (
            lambda f: (f / "vl" / "preprocessor_config.json").unlink(),
            ["incomplete", "preprocessor_config.json"],
        ),
        (no_weights, ["incomplete", "vae/*.safetensors"]),
        (pickled_weights, ["pytorch_model.bin is pickled weights", "never loaded"]),
        (missing_weight_shard, ["incomplete", "model-00002-of-00002.safetensors"]),
        (lfs_pointer, [f"transformer/{WEIGHTS} is a Git LFS pointer", "git lfs pull"]),
        (lambda f: (f / "vl" / "model.safetensors").write_bytes(b""), ["model.safetensors has 0 bytes"]),
        (cut_weights, ["model.safetensors has", "its head promises"]),
        (
            lambda f: (f / "image" / "vae" / WEIGHTS).write_bytes(b"<html>not found</html>"),
            [f"vae/{WEIGHTS} is no"],
        ),
        (
            lambda f: (f / "image" / "vae" / WEIGHTS).write_bytes(b"\x02" + bytes(7) + b"[]"),
            ["its head is not"],
        ),
        (lambda f: (f / "vl" / "model.safetensors.index.json").write_text("{}"), ["has no weight_map"]),
        (
            typed_weights(torch.float8_e4m3fn),
            ["text_encoder/model.safetensors holds tensors of type F8_E4M3"],
        ),
        (typed_weights(torch.int8), ["type I8", "give the original model"]),  # bitsandbytes' LLM.int8
        (typed_weights(torch.int32), ["type I32"]),  # AWQ and GPTQ pack eight numbers into one
        (
            lambda f: edit(
                f / "image" / "transformer" / "config.json", quantization_config={"quant_method": "fp8"}
            ),
            ["transformer/config.json has a quantization_config (fp8)"],
        ),
        (
            lambda f: edit(
                f / "vl" / "config.json", quantization_config={"quant_method": "compressed-tensors"}
            ),
            ["config.json has a quantization_config (compressed-tensors)", "A build with quantize int8"],
        ),
        (
            lambda f: edit(f / "image" / "model_index.json", _class_name="FluxPipeline"),
            ["'FluxPipeline'", "ZImagePipeline"],
        ),
        (lambda f: edit(f / "vl" / "config.json", architectures=["LlamaForCausalLM"]), ["LlamaForCausalLM"]),
        (lambda f: (f / "vl" / "config.json").write_text("{"), ["config.json cannot be read"]),
        (lambda f: (f / "vl" / "config.json").write_text("[]"), ["config.json is not a JSON object"]),
        (
            other_width,
            ["text encoder's hidden_size is 64", "cap_feat_dim is 64", "VL model's hidden_size is 128"],
        ),
    ],
)
def test_models_that_cannot_work_are_refused_without_loading(copy, damage, parts, monkeypatch):
    import transformers

    monkeypatch.setattr(
        transformers.PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded")
    )
    damage(copy)
    with pytest.raises(UsageError) as caught:
        resolve(copy)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_a_hub_id_without_a_hub_is_a_usage_error(tiny, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"models.image = 'nobody/nothing@abc'.*local folder"):
        resolve_models(ModelPaths(image="nobody/nothing@abc", vl=str(tiny / "vl")))


@pytest.mark.parametrize("layers", [[-13], [-8, -100]])
def test_layers_beyond_the_model(tiny_sources, layers):
    with pytest.raises(UsageError, match="has 12 blocks, allowed are -12 to -1"):
        tiny_sources.check_layers(layers)


def test_tiny_models_are_the_same_bytes_every_time(tiny, tmp_path):
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):  # nodes differ in cores; the hashes are part of every fingerprint
            torch.set_num_threads(threads)
            assert file_hashes(make_tiny_models(tmp_path / f"{threads}")) == file_hashes(tiny)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_tiny_models_are_kept_in_the_cache_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    shutil.copytree(tiny, tmp_path / f"tiny-{RECIPE}")
    assert own_folder("tiny") == tmp_path / f"tiny-{RECIPE}"
    assert resolve_models("tiny").image.id == "tiny/image"
