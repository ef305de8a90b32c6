"""`extract` for real: new hidden states of a built dataset's pictures, and nothing else new."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
import transformers

from projector.inference.copies import as_array
from projector.inference.vision_encoder import VisionLanguageEncoder
from projector.models.resolve import CACHE_VARIABLE, own_folder
from ray_jobs.__main__ import main
from ray_support import options_of, run_here, with_workers, without_module
from shards.dataset.dataset import Dataset
from shards.dataset.read import read_plan, read_samples
from shards.format.sample import open_image
from shards.stores.local import open_storage
from shards.tools.gc_and_repair import uncommit
from shards.tools.verify import verify

pytestmark = pytest.mark.ray


def extract_words(data, output, **changes):
    return options_of("extract", data=data, output=output, **{"layers": "-8,-6", "batch_size": 2} | changes)


def opened(root):
    return Dataset.open(open_storage(str(root)))


def bits(array):
    return array.dtype, array.shape, array.tobytes()


@pytest.fixture(scope="session")
def vl_alone(environment, tmp_path_factory):
    """A models folder from which the image model is gone."""
    folder = tmp_path_factory.mktemp("alone") / "models"
    shutil.copytree(own_folder("tiny"), folder)
    shutil.rmtree(folder / "image")
    return folder / "vl"


@pytest.fixture(scope="session")
def poisoned(head, tmp_path_factory):
    """Where no pipeline can be imported and no other model can be made or found."""
    folder = tmp_path_factory.mktemp("poison")
    (folder / "diffusers.py").write_text("raise ImportError('extract has no use for a pipeline')\n")
    extra = {"PYTHONPATH": str(folder), CACHE_VARIABLE: str(folder / "cache")}
    return with_workers(head.environment, extra)


@pytest.fixture(scope="session")
def extracted(undisturbed, vl_alone, poisoned, tmp_path_factory):
    """The undisturbed build's pictures, read again without any image model."""
    output = tmp_path_factory.mktemp("extracted") / "data"
    with without_module("diffusers"):
        done = run_here(extract_words(undisturbed, output, vl=vl_alone), poisoned)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0].startswith(f"24 samples of {undisturbed} in ")
    assert "extract: 24/24 samples (100%)" in done.stdout
    assert not Path(poisoned[CACHE_VARIABLE]).exists()
    return output


def pairs_of(undisturbed, extracted):
    return zip(read_samples(opened(undisturbed)), read_samples(opened(extracted)), strict=True)


def test_the_new_dataset_is_complete_and_sound(undisturbed, extracted):
    findings = verify(str(extracted))
    assert (findings.problems, findings.samples, findings.complete) == ([], 24, True)
    assert read_plan(opened(extracted)) == read_plan(opened(undisturbed))
    built, new = opened(undisturbed), opened(extracted)
    assert new.settings["source"] == {"fingerprint": built.fingerprint}
    assert new.settings["layers"] == [-8, -6]
    assert new.settings["models"]["image"] == built.settings["models"]["image"]
    assert new.settings["models"]["vl"]["files"] == built.settings["models"]["vl"]["files"]


def test_what_is_not_new_is_the_same_bit_for_bit(undisturbed, extracted):
    for before, after in pairs_of(undisturbed, extracted):
        assert (before.key, before.caption) == (after.key, after.caption)
        assert (before.image, before.image_format) == (after.image, after.image_format)
        new = {"vl.caption.-6", "vl.none.-6"}
        assert after.tensors.keys() - before.tensors.keys() == new
        # The layer that the build kept too: same model, pictures, batches and threads, so the very same bits.
        for name, tensor in before.tensors.items():
            assert bits(after.tensors[name]) == bits(tensor), name
        assert {**after.metadata, "layers": [-8]} == before.metadata


def test_a_new_layer_is_that_of_the_encoder_run_by_hand(undisturbed, extracted, vl_alone):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    encoder = VisionLanguageEncoder.from_pretrained(
        str(vl_alone), device="cpu", dtype=torch.float32, layers=(-6,), text_modes=("caption", "none")
    )
    for before, after in pairs_of(undisturbed, extracted):
        picture = open_image(before.image).convert("RGB")
        (states,) = encoder.encode([picture], [before.caption])
        for mode in ("caption", "none"):
            direct = as_array(states.states[mode][-6]).astype(np.float32)
            found = after.tensors[f"vl.{mode}.-6"].astype(np.float32)
            assert np.linalg.norm(found - direct) < 1e-2 * np.linalg.norm(direct)
    torch.set_num_threads(threads)


def test_run_again_it_makes_nothing(undisturbed, extracted, vl_alone, poisoned):
    before = {path: path.stat().st_mtime_ns for path in extracted.glob("*/*")}
    done = run_here(extract_words(undisturbed, extracted, vl=vl_alone), poisoned)
    assert done.returncode == 0, done.stderr
    assert "0 to make" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in extracted.glob("*/*")} == before


@pytest.mark.slow
def test_it_follows_a_source_that_grows_and_refuses_one_that_shrank(
    run_build, undisturbed, head, tmp_path, monkeypatch
):
    monkeypatch.setenv(CACHE_VARIABLE, head.environment[CACHE_VARIABLE])
    source, output = tmp_path / "source", tmp_path / "new"
    shutil.copytree(undisturbed, source)
    last = read_plan(opened(source)).shards[-1]
    uncommit(opened(source), [last.name])  # as if the build had been stopped before its last shard
    options = {"layers": -12, "text_modes": "none", "vl_tokens": "pooled:2", "actors": 1}
    first = run_here(extract_words(source, output, **options), head.environment)
    assert first.returncode == 0, first.stderr
    made = {path: path.read_bytes() for path in output.glob("*/pairs-*")}
    assert verify(str(output)).complete
    assert run_build(source).returncode == 0
    second = run_here(extract_words(source, output, **options), head.environment)
    assert second.returncode == 0, second.stderr
    assert "1 to make" in second.stdout
    assert made.items() <= {path: path.read_bytes() for path in output.glob("*/pairs-*")}.items()
    findings = verify(str(output))
    assert (findings.problems, findings.samples, findings.complete) == ([], 24, True)
    uncommit(opened(source), [last.name])
    refused = run_here(extract_words(source, output, **options), head.environment)
    assert refused.returncode == 2
    assert "was planned for 24; complete the source first" in refused.stderr


@pytest.mark.long
def test_a_damaged_source_stops_the_run_and_fails_no_sample(undisturbed, head, tmp_path):
    source, output = tmp_path / "source", tmp_path / "new"
    shutil.copytree(undisturbed, source)
    tar = source / opened(source).commits()[0].tar
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    done = run_here(extract_words(source, output, actors=1), head.environment)
    assert done.returncode == 1
    assert f"source {source}: " in done.stdout, done.stdout + done.stderr
    assert "has SHA-256" in done.stdout
    assert "run repair, then build" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(output.glob("failed/*"))
    assert verify(str(output)).problems == []


@pytest.fixture
def refusal(monkeypatch, environment, capsys):
    """The one line with which a command line is refused, before a model loads and before Ray starts."""
    monkeypatch.setenv(CACHE_VARIABLE, environment[CACHE_VARIABLE])
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("started Ray"))
    monkeypatch.setattr(
        transformers.PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded")
    )

    def refuse(data, output, **changes):
        assert main(extract_words(data, output, **changes)) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return refuse


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ""}, "extract.data is needed"),
        ({"output": ""}, "extract.output is needed"),
        ({"data": "/nonexistent"}, "no dataset there"),
        ({"layers": "-13"}, "extract.layers = [-13]: tiny/vl has 12 blocks, allowed are -12 to -1"),
        ({"layers": "3"}, "counts from the end"),
        ({"text_modes": "none,none"}, "twice"),
        ({"vl": "/nonexistent"}, "extract.vl = '/nonexistent': no such folder"),
        ({"readers": "graft", "image": "/nonexistent"}, "extract.image = '/nonexistent': no such folder"),
        (
            {"readers": "vl,graft", "image": "mini"},
            "extract.image = 'mini/image': its text encoder is not the one",
        ),
    ],
)
def test_bad_options(refusal, undisturbed, tmp_path, changes, message):
    options = {"data": undisturbed, "output": tmp_path / "new"} | changes
    assert message in refusal(**options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("inner", ["", "new"])
def test_the_source_itself_is_no_output(refusal, undisturbed, inner):
    assert "is, or lies in, the dataset that is read" in refusal(undisturbed, undisturbed / inner)
    assert not (undisturbed / "new").exists()


def test_an_output_that_holds_something_else(refusal, undisturbed, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    assert "thesis.tex" in refusal(undisturbed, tmp_path)


def test_a_source_of_another_format(refusal, undisturbed, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(undisturbed, source)
    description = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps({**description, "format_version": 3}))
    assert "format version 3, this program reads 1 and 2" in refusal(source, tmp_path / "new")


def test_a_source_without_shards_or_without_a_known_model(refusal, make_dataset, tmp_path):
    empty, _ = make_dataset(root=str(tmp_path / "empty"), shards=())
    assert "no shard is committed yet" in refusal(empty.storage.root, tmp_path / "new")
    unknown, _ = make_dataset(root=str(tmp_path / "unknown"))
    assert "extract.vl is needed" in refusal(unknown.storage.root, tmp_path / "new")
    told = refusal(unknown.storage.root, tmp_path / "new", vl="tiny")
    assert "its hidden size is 64" in told
    assert "use a model of width 8" in told
