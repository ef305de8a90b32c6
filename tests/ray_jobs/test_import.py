"""`import` for real: other people's pictures and captions as a dataset, by the text encoder and the VL model alone."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
import transformers

from import_support import coco_content, encoded, laion_samples, tar_of, write_coco, write_laion
from projector.inference.copies import as_array
from projector.inference.text_encoder import TextEncoder
from projector.models.resolve import CACHE_VARIABLE, own_folder
from ray_jobs.__main__ import main
from ray_support import ROOT, bytes_of, kill, options_of, run_here, with_workers, without_module
from s3_support import use
from shards.dataset.dataset import Dataset
from shards.dataset.failed_samples import failures, retryable
from shards.dataset.read import read_samples
from shards.stores.local import open_storage
from shards.tools.gc_and_repair import collect_garbage
from shards.tools.verify import verify

pytestmark = pytest.mark.ray
PICTURES = 24


def import_words(output, **changes):
    options = {
        "samples_per_shard": 2,
        "val_fraction": 0.25,
        "layers": -8,
        "max_side": 44,
        "batch_size": 2,
    } | changes
    return options_of("import", output=output, **options)


def import_command(output, **changes):
    return [sys.executable, "-m", "ray_jobs", *import_words(output, **changes)]


def run_alone(environment, output, **changes):
    """In a process of its own."""
    return subprocess.run(
        import_command(output, **changes),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def opened(root):
    return Dataset.open(open_storage(str(root)))


@pytest.fixture(scope="session")
def readers_alone(environment, tmp_path_factory):
    """Options that name models from which everything but text encoder and VL model is gone."""
    folder = tmp_path_factory.mktemp("readers")
    shutil.copytree(own_folder("tiny") / "vl", folder / "vl")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(own_folder("tiny") / "image" / part, folder / "image" / part)
    return {"models.image": folder / "image", "models.vl": folder / "vl"}


@pytest.fixture(scope="session")
def poisoned(head, tmp_path_factory):
    """Where no pipeline can be imported and no other model can be made or found."""
    folder = tmp_path_factory.mktemp("poison")
    (folder / "diffusers.py").write_text("raise ImportError('import has no use for a pipeline')\n")
    return with_workers(
        head.environment, {"PYTHONPATH": f"{folder}:{ROOT}", CACHE_VARIABLE: str(folder / "cache")}
    )


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """Options that name a small COCO."""
    content, files = coco_content(PICTURES)
    return {"kind": "coco", **write_coco(tmp_path_factory.mktemp("coco"), content, files)}


@pytest.fixture(scope="session")
def imported(coco, poisoned, readers_alone, tmp_path_factory):
    """That COCO, imported by one actor without anything disturbing it."""
    output = tmp_path_factory.mktemp("imported") / "data"
    with without_module("diffusers"):
        done = run_here(import_words(output, actors=1, **coco, **readers_alone), poisoned)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(
        f"the source holds {PICTURES} samples to take; left out: 48 further caption\n"
    )
    assert f"import: {PICTURES}/{PICTURES} samples (100%)" in done.stdout
    assert not Path(poisoned[CACHE_VARIABLE]).exists()
    return output


def test_the_dataset_is_complete_and_sound(imported):
    findings = verify(str(imported))
    assert (findings.problems, findings.samples, findings.complete) == ([], PICTURES, True)
    dataset = opened(imported)
    assert collect_garbage(dataset, dry_run=True) == []
    assert set(dataset.settings["models"]) == {"text", "vl"}
    assert dataset.settings["import"]["kind"] == "coco"
    assert str(imported.parent.parent) not in json.dumps(dataset.settings)  # no place of this machine


def test_pictures_captions_and_conditioning(imported, readers_alone):
    encoder = TextEncoder.from_pretrained(
        str(readers_alone["models.image"]), device="cpu", dtype=torch.float32
    )
    samples = list(read_samples(opened(imported)))
    assert len(samples) == PICTURES
    for sample in samples:
        number = int(sample.metadata["source"]["picture"].removesuffix(".jpg"))
        assert sample.caption == f"picture {number}, told 0"
        fits = number % 3 == 2
        assert (sample.image_format, sample.image == encoded(number)) == ("jpg", fits)
        (by_hand,) = encoder.encode([sample.caption])
        found, expected = (
            array.astype(np.float32) for array in (sample.tensors["text"], as_array(by_hand.embeddings))
        )
        assert np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected)


@pytest.mark.slow
def test_it_trains_beside_a_generated_one(run_job, imported, undisturbed, tmp_path):
    done = run_job(
        "train",
        data=undisturbed,
        also=json.dumps({str(imported): 0.5}),
        output=tmp_path / "run",
        objective="embedding",
        epochs=2,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pairs, chosen, tested = (
        sum(commit.samples for commit in opened(imported).commits() if commit.split == split)
        for split in ("train", "val", "test")
    )
    assert pairs + chosen + tested == PICTURES
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert f'"pairs": {pairs}' in json.dumps(config)
    done = run_job("evaluate", checkpoint=tmp_path / "run", data=imported, output=tmp_path / "eval")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "eval" / "eval.json").read_text())["pairs"] == tested


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_in_the_same_bytes(
    imported, coco, environment, head, readers_alone, tmp_path
):
    output = tmp_path / "data"
    with subprocess.Popen(
        import_command(output, actors=1, **coco, **readers_alone),
        env=environment,
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while not list(output.glob("_commit/*.json")):
            assert process.poll() is None
            time.sleep(0.01)
        kill(process)
    made = {path: path.stat().st_ino for path in output.glob("_commit/*.json")}
    assert 0 < len(made) < len(list(imported.glob("_commit/*.json")))
    done = run_here(import_words(output, actors=2, **coco, **readers_alone), head.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert bytes_of(output) == bytes_of(imported)
    assert {path: path.stat().st_ino for path in made} == made
    assert verify(str(output)).problems == []


@pytest.mark.slow
def test_it_grows_and_leaves_the_first_as_they_were(imported, coco, head, readers_alone, tmp_path):
    output = tmp_path / "data"
    options = {**coco, **readers_alone, "actors": 1}
    assert run_here(import_words(output, samples=10, **options), head.environment).returncode == 0
    before = bytes_of(output)
    grown = run_here(import_words(output, samples=20, append="true", **options), head.environment)
    assert grown.returncode == 0, grown.stdout + grown.stderr
    assert before.items() <= bytes_of(output).items()
    ids = {sample.metadata["id"] for sample in read_samples(opened(output), image=False, tensors=())}
    assert len(ids) == 20
    assert verify(str(output)).problems == []


@pytest.mark.long
def test_corrupt_pictures_are_written_down_once(head, readers_alone, tmp_path):
    folder = write_laion(tmp_path / "laion", per_tar=20)
    broken = list(laion_samples(range(40, 44)))
    broken[0] = ("000000040.jpg", encoded(40)[:-200])
    broken[3] = ("000000041.jpg", b"<html>moved</html>")
    broken[6] = ("000000042.jpg", b"")
    (folder / "00002.tar").write_bytes(tar_of(broken))
    options = {
        "kind": "webdataset",
        "source": folder,
        "actors": 1,
        "max_failed_fraction": 0.2,
        **readers_alone,
    }
    done = run_here(import_words(tmp_path / "data", **options), head.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "complete: 41 samples, 3 failed" in done.stdout
    rows = failures(opened(tmp_path / "data"))
    assert {(row["stage"], row["error_class"]) for row in rows} == {("image", "ImageError")}
    assert sorted(row["caption"] for row in rows) == ["picture 40", "picture 41", "picture 42"]
    assert retryable(opened(tmp_path / "data"), max_attempts=9) == []
    findings = verify(str(tmp_path / "data"))
    assert (findings.problems, findings.complete) == ([], True)


@pytest.mark.long
def test_failures_that_come_again_are_named_and_not_answered_with_run_it_again(head, readers_alone, tmp_path):
    for number in range(30):
        data = encoded(number) if number % 2 else b"<html>moved</html>"
        (tmp_path / f"{number:02d}.jpg").write_bytes(data)
        (tmp_path / f"{number:02d}.txt").write_text(f"picture {number}\n")
    words = import_words(tmp_path / "data", kind="folder", source=tmp_path, actors=1, **readers_alone)
    done = run_here(words, head.environment)
    assert done.returncode == 1, done.stdout + done.stderr
    first, second, *_, last = done.stdout.splitlines()
    assert first == "the source holds 30 samples to take"
    assert second.startswith("of 16 pictures looked at 8 cannot be used: image does not decode: is HTML; ")
    assert "most failed by: image does not decode: is HTML; PNG, JPEG" in last
    assert last.count(".jpg, ") == 2 + 1
    assert last.endswith(
        "mend them in the source, or raise import.max_failed_fraction and import.max_consecutive_failures "
        "to leave them out."
    )


@pytest.mark.slow
@pytest.mark.server
def test_from_s3_to_s3(moto, environment, readers_alone, tmp_path, monkeypatch):
    use(monkeypatch, moto.env)
    bucket = moto.new_bucket()
    for path in write_laion(tmp_path / "laion").iterdir():
        moto.client.upload_file(str(path), bucket, f"laion/{path.name}")
    source, output = f"s3://{bucket}/laion/{{00000..00001}}.tar", f"s3://{bucket}/data"
    options = {"kind": "webdataset", "captions": "all", "min_similarity": 0.21, **readers_alone}
    done = run_alone(environment | moto.env, output, source=source, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert moto.secret_key not in done.stdout + done.stderr
    findings = verify(output)
    assert (findings.problems, findings.samples, findings.complete) == ([], 7, True)
    captions = {sample.caption for sample in read_samples(opened(output), image=False, tensors=())}
    assert captions == {f"picture {number}" for number in range(1, 8)}


@pytest.fixture
def refusal(monkeypatch, environment, capsys):
    """The one line with which a command line is refused, before a model loads and before Ray starts."""
    monkeypatch.setenv(CACHE_VARIABLE, environment[CACHE_VARIABLE])
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("started Ray"))
    monkeypatch.setattr(
        transformers.PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded")
    )

    def refuse(output, **changes):
        assert main(import_words(output, **changes)) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return refuse


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ""}, "import.source is needed"),
        ({"kind": "zip"}, "import.kind = 'zip'"),
        ({"images": ""}, "import.images is needed"),
        (
            {"images": "pcis"},
            "pcis': 24 of 24 pictures cannot be used: the source has no such",
        ),
        ({"source": "/nonexistent.json"}, "import.source = '/nonexistent.json': no such file"),
        ({"layers": "-13"}, "import.layers = [-13]: tiny/vl has 12 blocks, allowed are -12 to -1"),
        ({"samples": 25}, "import.samples = 25: the source holds 24 to take"),
        (
            {"language": "en"},
            "import.language = ['en']: the source has no column language or lang; it has id",
        ),
        (
            {"caption_column": "alt"},
            "import.caption_column = 'alt': the source has no such column; it has id, file",
        ),
        ({"max_side": 8}, "import.max_side = '8'"),
        ({"max_aspect": 0.5}, "import.max_aspect = '0.5'"),
        ({"captions": "some"}, "import.captions = 'some'"),
        (
            {"models.image": "/nonexistent", "models.vl": "x"},
            "import.models.image = '/nonexistent': no such folder",
        ),
        ({"height": 64}, "unknown option --import.height"),
    ],
)
def test_bad_options(refusal, coco, tmp_path, changes, message):
    assert message in refusal(tmp_path / "new", **coco | changes)
    assert not (tmp_path / "new").exists()


def test_an_output_that_holds_something_else(refusal, coco, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    assert "thesis.tex" in refusal(tmp_path, **coco)


def test_the_configuration_it_would_run_with(capsys, coco, tmp_path, monkeypatch):
    words = import_words(tmp_path, **coco, language="en,de")
    assert main([*words, "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "run.yaml").write_text(printed)
    assert main(["import", "--config", str(tmp_path / "run.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert "kind: coco" in printed
    assert "- de" in printed
