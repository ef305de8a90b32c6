"""`export`: a folder that loads, tells everything that is asked of it, and nothing of the machine that made it."""

import json
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image, PngImagePlugin

from projector import Projector
from projector.data.pairs import Pair, in_memory
from projector.options import TrainOptions
from projector.training.loop import train
from ray_jobs.__main__ import main
from ray_support import ROOT

HOSTILE = '</p><script>alert("x")</script> | `a` [b](javascript:c)\n---\nlicense: mine\n# h'


def methods(error):
    return {"mse_standardized": error, "per_dim_correlation": 0.25, "intervals": {"mse_standardized": [0, 1]}}


@pytest.fixture
def run(tmp_path):
    """A run folder: a projector trained with hostile provenance, its evaluation, and its pictures."""
    return make_run(tmp_path / "run")


def make_run(folder, arch="linear"):
    random = torch.Generator().manual_seed(0)
    kind = torch.ones(3, dtype=torch.uint8)
    pairs = in_memory(
        [
            Pair(f"k{i}", torch.randn(3, 8, generator=random), kind, torch.randn(4, 8, generator=random))
            for i in range(8)
        ]
    )
    models = {
        "image": {"id": "Tongyi-MAI/Z-Image-Turbo", "revision": "abc123"},
        "vl": {"id": HOSTILE, "revision": ""},
        "other": "tiny/vl",
    }
    pairs.provenance.update(root=str(folder / "data"), fingerprint="f00d", models=models)
    options = TrainOptions(
        data=str(folder / "data"),
        output=str(folder / "mlp"),
        arch=arch,
        epochs=1,
        batch_size=4,
        objective="embedding",
    )
    train(options, pairs, pairs, device="cpu")
    evaluation = {
        "pairs": 4,
        "dataset": {"root": str(folder / "data"), "fingerprint": "f00d"},
        "methods": {"identity": methods(7.5), "projector": methods(0.125), HOSTILE: methods(3.0), "odd": 3},
    }
    (folder / "mlp" / "eval.json").write_text(json.dumps(evaluation))
    grids = folder / "mlp" / "compare" / "grids"
    grids.mkdir(parents=True)
    secret = PngImagePlugin.PngInfo()
    secret.add_text("place", str(folder))
    Image.new("RGB", (3000, 40), "red").save(grids / "one.png", pnginfo=secret)
    cases = [{"case": "one", "prompt": HOSTILE, "grid": "grids/one.png"}]
    comparison = {"checkpoint": str(folder / "mlp"), "cases": cases}
    (folder / "mlp" / "compare" / "compare.json").write_text(json.dumps(comparison))
    return folder


def export(run, output, *more, program=False):
    words = ["export", "--export.checkpoint", str(run / "mlp"), "--export.output", str(output), *more]
    return main([*words, *([] if program else ["--export.program", "false"])])


def names(folder):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_projector_of_random_models_says_so_and_is_not_offered_for_publishing(run, tmp_path, capsys):
    config = json.loads((run / "mlp" / "config.json").read_text())
    config["base_models"]["vl"] = {"id": "tiny/vl", "revision": ""}
    (run / "mlp" / "config.json").write_text(json.dumps(config))
    assert export(run, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "hf upload" not in told
    assert "random test models" in told
    body = (tmp_path / "out" / "README.md").read_text().partition("\n# ")[2]
    assert body.split("\n\n")[1].startswith("> **Made with random test models.**")


def test_the_folder_holds_all_forms_and_nothing_of_the_machine(run, tmp_path, capsys):
    assert export(run, tmp_path / "out", "--export.onnx", "true", program=True) == 0
    files = {"README.md", "config.json", "eval.json", "linear.safetensors", "model.safetensors"}
    assert names(tmp_path / "out") == files | {"projector.onnx", "projector.pt2", "pictures/01.webp"}
    trained, exported = (Projector.from_pretrained(str(folder)) for folder in (run / "mlp", tmp_path / "out"))
    x = torch.randn(5, 8)
    assert torch.equal(trained(x), exported(x))
    assert exported.config["dataset"]["fingerprint"] == "f00d"
    assert exported.config["base_models"] == trained.config["base_models"]
    assert f"to publish: hf upload YOU/REPOSITORY {tmp_path / 'out'} .\n" in capsys.readouterr().out
    alone = (tmp_path / "out" / "model.safetensors").rename(tmp_path / "alone.safetensors")
    assert torch.equal(trained(x), Projector.from_pretrained(alone)(x))
    alone.rename(tmp_path / "out" / "model.safetensors")
    assert "random test models" not in (tmp_path / "out" / "README.md").read_text()
    for name in names(tmp_path / "out"):
        path = tmp_path / "out" / name
        parts = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts += [archive.read(inner) for inner in archive.namelist()]
        for secret in (str(tmp_path), str(ROOT), socket.gethostname()):
            assert not any(secret.encode() in part for part in parts), (name, secret)


def test_what_a_killed_export_left_is_not_published(run, tmp_path):
    (tmp_path / "out" / "pictures").mkdir(parents=True)
    for left in (".tmp-0123", "pictures/.tmp-4567"):
        (tmp_path / "out" / left).write_bytes(b"weights")
    assert export(run, tmp_path / "out") == 0
    assert not [name for name in names(tmp_path / "out") if ".tmp-" in name]


def test_the_card_is_the_hubs_and_hostile_text_is_text(run, tmp_path):
    assert export(run, tmp_path / "out", "--export.license", "cc-by-4.0") == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.base_model == ["Tongyi-MAI/Z-Image-Turbo"]
    assert yaml.safe_load(card.content.split("---\n")[1])["pipeline_tag"] == "image-to-image"
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    assert "<script" not in page
    assert 'href="javascript' not in page
    assert page.count("<h1>") == 1
    rows = [row for row in card.text.splitlines() if row.startswith("| this projector | ")]
    assert rows == ["| this projector | 0.125 | 0.25 |"]
    assert card.text.index("| this projector") < card.text.index("| identity | 7.5")
    for part in (
        "pictures/01.webp",
        "f00d",
        "abc123",
        "linear.safetensors",
        "from projector import Projector",
    ):
        assert part in card.text


def test_the_hub_reads_figures_and_dataset_from_the_card(run, tmp_path, capsys):
    evaluation = json.loads((run / "mlp" / "eval.json").read_text())
    evaluation["methods"]["projector"]["r2"] = float("nan")
    evaluation |= {"split": "val", "pairs": 60, "groups": 12}
    (run / "mlp" / "eval.json").write_text(json.dumps(evaluation))
    names = ("--export.repository", "someone/cats", "--export.dataset", "someone/pairs")
    assert export(run, tmp_path / "out", *names) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.datasets == ["someone/pairs"]
    assert card.data.model_name == "cats"
    found = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert found == {"mse_standardized": 0.125, "per_dim_correlation": 0.25}
    assert {each.dataset_type for each in card.data.eval_results} == {"someone/pairs"}
    assert {each.dataset_split for each in card.data.eval_results} == {"validation"}
    assert 'from_pretrained("someone/cats")' in card.text
    assert "60 val pairs, best first. They are 12 groups, each of one picture or caption" in card.text
    assert f"hf upload someone/cats {tmp_path / 'out'} ." in capsys.readouterr().out
    assert export(run, tmp_path / "out", "--export.repository", "a b/c") == 2


def test_methods_stand_by_what_pictures_show_where_that_is_known(run, tmp_path):
    evaluation = json.loads((run / "mlp" / "eval.json").read_text())
    methods = evaluation["methods"]
    methods["projector"] |= {"mse_standardized": 9.0, "velocity_error": 0.1, "fidelity": 0.9}
    methods["identity"] |= {"velocity_error": 0.5, "fidelity": 0.3}
    (run / "mlp" / "eval.json").write_text(json.dumps(evaluation))
    assert export(run, tmp_path / "out") == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.text.index("| this projector | 0.9 | 0.1 | 9 |") < card.text.index(
        "| identity | 0.3 | 0.5 | 7.5"
    )
    assert "fidelity" in {each.metric_type for each in card.data.eval_results}


def test_pictures_are_made_anew_where_there_are_any(run, tmp_path):
    assert export(run, tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "pictures" / "01.webp") as picture:
        assert max(picture.size) == 1600
    (run / "mlp" / "compare").rename(run / "elsewhere")
    assert export(run, tmp_path / "out") == 0
    assert "pictures/01.webp" not in names(tmp_path / "out")
    assert "## Pictures" not in (tmp_path / "out" / "README.md").read_text()
    assert export(run, tmp_path / "out", "--export.pictures", str(run / "elsewhere")) == 0
    assert "pictures/01.webp" in names(tmp_path / "out")


@pytest.mark.parametrize("grid", ["../../etc/passwd", "grids/none.png", "compare.json", 7])
def test_a_grid_that_is_none_is_refused(run, tmp_path, capsys, grid):
    content = {"checkpoint": "mlp", "cases": [{"case": "a", "prompt": "b", "grid": grid}]}
    (run / "mlp" / "compare" / "compare.json").write_text(json.dumps(content))
    assert export(run, tmp_path / "out") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_exporting_again_leaves_nothing_stale_and_touches_nothing_foreign(run, tmp_path, capsys):
    assert export(run, tmp_path / "out", program=True) == 0
    assert export(run, tmp_path / "out") == 0
    assert "projector.pt2" not in names(tmp_path / "out")
    (tmp_path / "out" / "credentials").write_text("secret")
    assert export(run, tmp_path / "out") == 2
    assert "holds 'credentials', which no export wrote" in capsys.readouterr().err


def test_what_is_not_evaluated_or_compared_has_a_card_nevertheless(run, tmp_path):
    (run / "mlp" / "eval.json").unlink()
    (run / "mlp" / "compare" / "compare.json").unlink()
    assert export(run, tmp_path / "out") == 0
    assert names(tmp_path / "out") == {"README.md", "config.json", "linear.safetensors", "model.safetensors"}
    assert "It was not evaluated." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--export.checkpoint", "", "--export.output", "x"], "export.checkpoint is needed"),
        (["--export.checkpoint", "{run}/mlp"], "export.output is needed"),
        (["--export.checkpoint", "{run}/none", "--export.output", "{run}/out"], "no projector there"),
        (["--export.checkpoint", "{run}/mlp", "--export.output", "{run}/mlp"], "is the checkpoint itself"),
        (["--export.checkpoint", "{run}/mlp", "--export.output", "{run}/out", "--export.pictures", "{run}"],
         "no compare.json there"),
        (["--export.license", "a\nb: c"], "license"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(run, capsys, words, message):
    assert main(["export", *(word.replace("{run}", str(run)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


BUILD = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"
TWO_LINES = """
import sys
from projector import Projector, VLEmbeddingExtractor, blend_interpolate
projector = Projector.from_pretrained(sys.argv[1])
import torch
print(tuple(projector(torch.ones(5, 8)).shape), projector.__class__.__module__, sys.modules["projector"].__file__)
print(sorted({name.split(".")[0] for name in sys.modules} & {"ray", "diffusers", "ray_jobs"}))
"""


@pytest.mark.long
def test_the_folder_and_the_installed_project_are_all_it_takes(run, tmp_path):
    """A fresh environment that sees the dependencies alone, the project from a wheel, nothing of this checkout."""
    assert export(run, tmp_path / "out") == 0
    source = tmp_path / "source"
    source.mkdir()
    for name in ("shards", "projector", "ray_jobs", "pyproject.toml", "README.md"):
        (source / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-W", "ignore", "-c", BUILD, str(tmp_path)], cwd=source, check=True,
                   capture_output=True)  # fmt: skip
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(packages)
    (packages / "dependencies.pth").write_text(str(Path(torch.__file__).parent.parent) + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "out").rename(empty / "folder")
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-I", "-W", "ignore", "-c", TWO_LINES, "folder"],
        cwd=empty,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"(5, 8) projector.network.projector {packages / 'projector' / '__init__.py'}",
        "[]",
    ]
