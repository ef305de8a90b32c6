"""ComfyUI's single files become a folder that `build` takes: the same tensors and pictures, or one line of refusal."""

import json
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from projector.models import single_files
from projector.models.resolve import own_folder, resolve_models
from projector.models.single_files import SingleFiles, convert_single_files, main
from projector.options import ModelPaths
from ray_support import blocks
from shards.errors import UsageError
from single_file_support import write_single_files

MINI = own_folder("mini") / "image"
PARTS = ("transformer", "text_encoder", "vae")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_single_files(MINI, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The miniature pipeline without a weight."""
    folder = tmp_path_factory.mktemp("settings") / "image"
    shutil.copytree(MINI, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def tensors(folder):
    return {
        (part, name): tensor
        for part in PARTS
        for file in (folder / part).glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def words(files, output, settings):
    named = {f"--{part.replace('_', '-')}": path for part, path in files.items()} | {"--settings": settings}
    return [str(output), *(str(word) for pair in named.items() for word in pair)]


def test_the_folder_is_that_which_the_files_were_made_of(files, settings, tmp_path, capsys):
    assert main(words(files, tmp_path / "models" / "made", settings)) == 0
    made = tmp_path / "models" / "made"
    assert capsys.readouterr().out == f"{made}: for --models.image\n"
    found, expected = tensors(made), tensors(MINI)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    for file in settings.rglob("*.*"):
        assert (made / file.relative_to(settings)).read_bytes() == file.read_bytes()
    assert [path.name for path in made.parent.iterdir()] == ["made"]


def test_the_command_on_the_page_runs(files, settings, tmp_path, monkeypatch):
    (command,) = [text for _, text in blocks("docs/real-models.md") if "single_files" in text]
    monkeypatch.chdir(tmp_path)
    for part, folder in (
        ("transformer", "diffusion_models"),
        ("text_encoder", "text_encoders"),
        ("vae", "vae"),
    ):
        place = tmp_path / "ComfyUI" / "models" / folder
        place.mkdir(parents=True)
        (place / files[part].name).symlink_to(files[part])
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "projector.models.single_files"]
    assert main([*words[3:], "--settings", str(settings)]) == 0
    assert tensors(tmp_path / "models" / "Z-Image-Turbo").keys() == tensors(MINI).keys()


def test_shards_make_the_same_pictures_and_build_takes_them(files, settings, tmp_path, monkeypatch):
    from diffusers import ZImagePipeline

    monkeypatch.setattr(single_files, "SHARD_BYTES", 300_000)
    convert_single_files(SingleFiles(**files), tmp_path / "made", str(settings))
    assert len(list((tmp_path / "made" / "transformer").glob("*.safetensors"))) > 2
    resolve_models(ModelPaths(image=str(tmp_path / "made"), vl=str(MINI.parent / "vl")))
    pictures = [
        ZImagePipeline.from_pretrained(folder, dtype=torch.float32)(
            "a red circle",
            num_inference_steps=2,
            guidance_scale=0.0,
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        for folder in (MINI, tmp_path / "made")
    ]
    assert torch.equal(*pictures)


def test_files_under_diffusers_names_are_taken_as_they_are(files, settings, tmp_path):
    own = files | {"vae": MINI / "vae" / "diffusion_pytorch_model.safetensors"}
    convert_single_files(SingleFiles(**own), tmp_path / "made", str(settings))
    assert tensors(tmp_path / "made").keys() == tensors(MINI).keys()


def changed(path, output, change):
    state = load_file(path)
    change(state)
    save_file(state, output)
    return output


def quantised(state):
    state["layers.0.attention.qkv.weight"] = state["layers.0.attention.qkv.weight"].to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("part", "spoil", "message"),
    [
        ("transformer", quantised, "it holds tensors of type F8_E4M3; quantised weights are not loaded"),
        (
            "text_encoder",
            lambda state: state.update({"model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}),
            "model.layers.0.mlp.up_proj.weight_scale is of quantised weights, which are not loaded",
        ),
        (
            "transformer",
            lambda state: state.pop("layers.1.attention.qkv.weight"),
            r"layers.1.attention.to_q.weight has the shape None, transformer/config.json of .* has \(96, 96\)",
        ),
        (
            "vae",
            lambda state: state.update({"decoder.conv_in.weight": torch.ones(2, 2)}),
            r"decoder.conv_in.weight has the shape \(2, 2\), vae/config.json of the settings has \(96, 16, 3, 3\)",
        ),
        (
            "text_encoder",
            lambda state: state.update({"visual.weight": torch.ones(2)}),
            r"visual.weight has the shape \(2,\), text_encoder/config.json of the settings has None; give the file and",
        ),
    ],
)
def test_a_file_of_something_else_is_refused_before_anything_is_written(
    files, settings, tmp_path, part, spoil, message
):
    given = files | {part: changed(files[part], tmp_path / "other.safetensors", spoil)}
    with pytest.raises(UsageError, match=f"^{part} = .*{message}"):
        convert_single_files(SingleFiles(**given), tmp_path / "made", str(settings))
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


def test_another_models_file_is_named_by_what_it_lacks(files, settings, tmp_path):
    given = files | {"transformer": files["vae"], "vae": files["text_encoder"]}
    for part in ("transformer", "vae"):
        with pytest.raises(UsageError, match=rf"^{part} = .* has the shape None, {part}/config.json"):
            convert_single_files(
                SingleFiles(**(files | {part: given[part]})), tmp_path / "made", str(settings)
            )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.ckpt", b"PK", "it is pickled weights, which are never loaded; give a .safetensors file"),
        ("x.gguf", b"GGUF" + b"\0" * 40, "it is no safetensors file"),
        ("x.safetensors", b"\2", "it has 1 bytes, no safetensors file has so few"),
        ("x.safetensors", None, "no such file; give the .safetensors file that ComfyUI loads"),
    ],
)
def test_what_is_no_weights_is_one_line(files, settings, tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(words(files | {"vae": tmp_path / name}, tmp_path / "made", settings)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"vae = '{tmp_path / name}': {message}" in error
    assert not (tmp_path / "made").exists()


def test_settings_and_folder_that_do_not_fit(files, settings, tmp_path, monkeypatch):
    given = SingleFiles(**files)
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists; choose another folder, or remove it"):
        convert_single_files(given, tmp_path / "there", str(settings))
    other = shutil.copytree(settings, tmp_path / "other")
    (other / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(UsageError, match=r"no scheduler/scheduler_config.json there"):
        convert_single_files(given, tmp_path / "made", str(other))
    (other / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(UsageError, match="holds a 'FluxPipeline'; a ZImagePipeline is needed"):
        convert_single_files(given, tmp_path / "made", str(other))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(UsageError, match=r"GB are needed, 0.0 GB are free; make room"):
        convert_single_files(given, tmp_path / "made", str(settings))
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written: .*; choose another folder"):
        convert_single_files(given, tmp_path / "file" / "made", str(settings))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other", "there"]
