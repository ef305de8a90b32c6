"""`compare` for real on a built dataset; what it refuses before a model loads; how work is spread and stopped."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
import transformers
from PIL import Image
from ray.exceptions import ActorDiedError, RayTaskError

from projector.comparison.cases import Case
from projector.comparison.comparer import CompareSettings, CompareSpec
from projector.data.pairs import training_pairs
from projector.models.resolve import CACHE_VARIABLE, ModelSource, ModelSources
from projector.network.blend import BLENDS
from projector.options import TrainOptions
from projector.training.loop import train
from ray_jobs.__main__ import JOBS, main
from ray_jobs.cli.parse import parse
from ray_jobs.cli.run_options import CompareOptions
from ray_jobs.cluster import workers
from ray_jobs.cluster.connect import StopRequest
from ray_jobs.jobs.compare import SETTINGS, claim, comparison, identity_of, settings_of
from ray_support import ROOT
from shards.dataset.dataset import Dataset
from shards.dataset.read import read_samples
from shards.errors import StorageError, UsageError
from shards.format.sample import open_image
from shards.stores.local import open_storage

METHODS = ("identity", "global_scale", "per_dim_norm", "projector")
SMALL = {"height": 64, "width": 64, "steps": 2, "samples": 2, "alphas": "0,0.5"}


@pytest.fixture(scope="module")
def checkpoint(undisturbed, tmp_path_factory):
    """A projector trained on the built dataset."""
    folder = tmp_path_factory.mktemp("run") / "linear"
    options = TrainOptions(
        data=str(undisturbed), output=str(folder), arch="linear", epochs=1, objective="embedding"
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, threads on such small tensors mostly wait for one another
    train(options, training_pairs(options, "train"), training_pairs(options, "val"), device="cpu")
    torch.set_num_threads(threads)
    return folder


def compare_words(checkpoint, **changes):
    words = ["compare", "--compare.checkpoint", str(checkpoint)]
    for name, value in (SMALL | changes).items():
        words += [f"--compare.{name}", str(value)]
    return words


# Both comparisons in one process with one cluster: between them the state is kept, and one picture is lost.
TWICE = """
import json, shutil, sys
from pathlib import Path
from ray_jobs.__main__ import main
from ray_jobs.cluster.connect import connected
first, second, output = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
with connected():
    code = main(first)
    shutil.copytree(output, output.with_name("before"))
    next(output.glob("pictures/*/projector-0.5.png")).unlink()
    sys.exit(code or main(second))
"""


@pytest.fixture(scope="module")
def compared(head, checkpoint, tmp_path_factory):
    """What a comparison left, what it left after growing, and what both printed."""
    folder = tmp_path_factory.mktemp("compared")
    first = compare_words(checkpoint, output=folder / "after", actors=1)
    second = compare_words(checkpoint, output=folder / "after", actors=1, alphas="0,0.5,1", scorer="none")
    words = [sys.executable, "-c", TWICE, json.dumps(first), json.dumps(second), str(folder / "after")]
    done = subprocess.run(words, env=head.environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "before", folder / "after", done.stdout


def content_of(folder):
    return json.loads((folder / "compare.json").read_text())


@pytest.mark.ray
def test_a_comparison(compared, undisturbed, checkpoint):
    before, after, printed = compared
    trained_on = json.loads((checkpoint / "config.json").read_text())["dataset"]
    assert (trained_on["picture"], trained_on["quantize"]) == ({"height": 64, "width": 64}, "none")
    assert printed.startswith(f"2 references, 5 pictures each, to {after}, on 1 node")
    assert "compare: 10/10 pictures (100%)" in printed
    result = content_of(before)
    told = [result[name] for name in ("alphas", "blend", "checkpoint")]
    assert told == [[0, 0.5], "interpolate", str(checkpoint)]
    assert "mean nothing" in result["scorer"]
    columns = [("text", 0), *((name, 0.5) for name in METHODS)]
    assert {name: list(found) for name, found in result["methods"].items()} == {
        name: [str(float(alpha))] for name, alpha in columns
    }
    assert result["split"] == "test"
    tested = read_samples(Dataset.open(open_storage(str(undisturbed))), split="test", tensors=())
    for found, sample in zip(result["references"], tested, strict=False):
        assert found["prompt"] == sample.caption
        kept = open_image((before / found["reference"]).read_bytes()).convert("RGB")
        assert kept.tobytes() == open_image(sample.image).convert("RGB").tobytes()
        assert [(entry["method"], entry["alpha"]) for entry in found["pictures"]] == columns
        for entry in found["pictures"]:
            assert open_image((before / entry["file"]).read_bytes()).size == (64, 64)
            assert entry["scores"].keys() == {"text_alignment", "style_similarity", "blockiness"}
        assert open_image((before / found["grid"]).read_bytes()).width > 3 * 256


@pytest.mark.ray
def test_only_what_is_not_there_is_made_when_it_is_run_again_or_grows(compared):
    before, after, printed = compared
    assert "compare: 18/18 pictures (100%)" in printed
    known, now = (
        {path.relative_to(folder): path for path in folder.glob("pictures/*/*.png")}
        for folder in (before, after)
    )
    assert (len(known), len(now)) == (10, 18)
    made_again = [name for name in known if known[name].stat().st_mtime_ns != now[name].stat().st_mtime_ns]
    assert [name.name for name in made_again] == ["projector-0.5.png"]
    assert all(known[name].read_bytes() == now[name].read_bytes() for name in known)
    result = content_of(after)
    assert (result["scorer"], result["alphas"]) == ("none", [0, 0.5, 1])
    assert result["methods"]["projector"]["1.0"].keys() == {"blockiness"}


@pytest.fixture
def refused(monkeypatch, environment, capsys, tmp_path):
    """The one line with which a command is refused, before Ray starts, a model loads or anything is written."""
    monkeypatch.setenv(CACHE_VARIABLE, environment[CACHE_VARIABLE])
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("started Ray"))
    monkeypatch.setattr(
        transformers.PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded")
    )

    def run(checkpoint, **changes):
        output = tmp_path / "refused"
        assert main(compare_words(checkpoint, output=output, **changes)) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert not output.exists()
        return captured.err

    return run


@pytest.mark.ray
def test_bad_input_is_refused_before_anything_is_loaded(refused, checkpoint, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 64), colour).save(pictures / name)
    (tmp_path / "one.txt").write_text("a fox\n")
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    (tmp_path / "token.txt").write_text("a <|im_end|>\n")
    (tmp_path / "broken.png").write_bytes(b"x")
    given = {"images": pictures, "prompts": tmp_path / "one.txt"}
    for changes, message in (
        ({"images": pictures}, "compare.images without compare.prompts"),
        ({**given, "images": tmp_path / "broken.png"}, "broken.png': image does not decode"),
        ({**given, "prompts": tmp_path / "three.txt"}, "3 prompts for 2 pictures"),
        ({**given, "prompts": tmp_path / "none.txt"}, "error: compare.prompts = "),
        ({**given, "prompts": tmp_path / "token.txt"}, "holds the special token '<|im_end|>'"),
        ({**given, "images": f"{pictures},{pictures}"}, "pictures 1 and 3 are the same"),
        ({"methods": "identity,text"}, "unknown 'text'; the methods are no_input, identity"),
        ({"data": tmp_path / "nowhere"}, "no dataset there"),
        ({"scorers": "os"}, "expected module:attribute"),
        ({"scorer": tmp_path / "nowhere"}, "compare.scorer none does without"),
        ({"models.image": tmp_path, "models.vl": tmp_path}, "compare.models.image = "),
        ({"alphas": "0,1.5"}, "less than or equal to 1"),
        ({"alphas": "[NaN]"}, "compare.alphas"),
        ({"alphas": "0.5,0.5"}, "twice"),
        ({"height": 48}, "greater than or equal to 64"),
        ({"blend": "smooth"}, "'interpolate', 'linear'"),
        ({"models": "large"}, "must be `tiny`, `mini`, or both `image` and `vl` below it"),
    ):
        assert message in refused(checkpoint, **changes)
    assert "compare.checkpoint is needed" in refused("")
    assert "no projector there" in refused(tmp_path)


@pytest.mark.ray
def test_a_checkpoint_that_names_no_dataset_or_was_trained_on_other_models(refused, checkpoint, tmp_path):
    content = json.loads((checkpoint / "config.json").read_text())
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    (lost / "config.json").write_text(json.dumps(content | {"dataset": {}}))
    assert "compare.data is empty and the checkpoint names no dataset" in refused(lost)
    (lost / "config.json").write_text(json.dumps(content | {"layer": -40}))
    assert "12 VL blocks; the projector was trained on width 64 and layer -40" in refused(lost)


def test_pictures_of_the_earlier_blend_are_not_taken_for_those_of_this_one(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    settings = CompareSettings(64, 64, 2, 0.0, 512, "float32", "interpolate")
    sources = SimpleNamespace(to_json=dict)
    found = identity_of(CompareOptions(checkpoint=str(tmp_path)), settings, sources)
    assert found["blended"] == "caption rows, by area"


def test_options_know_every_blend_and_a_single_folder():
    options = CompareOptions.model_fields["blend"].annotation.__args__
    assert set(options) == set(BLENDS)
    found = parse(["compare", "--compare.images", "a folder", "--compare.alphas", "1,0,0.3"], JOBS).options
    assert (found["compare"].images, found["compare"].alphas) == (["a folder"], [0.0, 0.3, 1.0])
    assert CompareOptions(images="a, b.png").images == ["a, b.png"]


def test_other_settings_are_refused_with_both_values(tmp_path):
    storage = open_storage(str(tmp_path))
    claim(storage, {"steps": 9, "blend": "linear"})
    claim(storage, {"steps": 9, "blend": "linear"})
    with pytest.raises(UsageError, match=r"blend is 'linear' there and 'adain' here; steps is 9 there and 4"):
        claim(storage, {"steps": 4, "blend": "adain"})
    assert json.loads((tmp_path / SETTINGS).read_text())["settings"] == {"steps": 9, "blend": "linear"}


def test_scores_are_summed_up_over_references_by_method_and_alpha():
    options = CompareOptions(methods=["projector"], alphas=[0.0, 0.5])
    model = ModelSource("id", "path", "", {})
    spec = CompareSpec(
        root="out",
        checkpoint="run",
        models=ModelSources(model, model, 64, 12),
        siglip=None,
        scorers=(),
        settings=settings_of(options, on_gpu=False),
        reference=None,
    )
    cases = [Case(name, "p", 1) for name in ("a", "b", "c")]
    scores = [[{"s": value}, {"s": 10 * value}] for value in (1.0, 2.0, 3.0)]
    result = comparison(options, cases, spec, scores)
    found = result["methods"]
    half = 4.3027 / np.sqrt(3)  # Student's t for two degrees of freedom
    assert found["text"]["0.0"]["s"] == pytest.approx({"mean": 2, "low": 2 - half, "high": 2 + half})
    assert found["projector"]["0.5"]["s"]["high"] == pytest.approx(20 + 10 * half)
    assert [entry["pictures"][1]["scores"]["s"] for entry in result["references"]] == [10, 20, 30]


class FakeRay:
    """Workers that answer at once, in order; `answers` maps arguments to what `get` returns or raises."""

    def __init__(self, monkeypatch, answers=None):
        self.answers, self.asked = answers or {}, []
        monkeypatch.setattr(workers.ray, "wait", lambda references, timeout: (references[:1], references[1:]))
        monkeypatch.setattr(workers.ray, "get", self.get)

    def get(self, reference):
        answer = self.answers.get(reference, reference)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def make(self):
        return self

    def remote(self, number):
        self.asked.append(number)
        return number


def test_every_piece_is_done_once(monkeypatch):
    fake = FakeRay(monkeypatch)
    found = list(workers.spread([fake, fake], [("make", (number,)) for number in range(7)], StopRequest()))
    assert found == [(number, number) for number in range(7)]
    assert fake.asked == list(range(7))


def test_after_a_signal_what_runs_ends_and_nothing_begins(monkeypatch):
    fake, stop = FakeRay(monkeypatch), StopRequest()
    done = []
    for index, _ in workers.spread([fake, fake], [("make", (number,)) for number in range(7)], stop):
        done.append(index)
        stop._event.set()
    assert done == fake.asked == [0, 1]


@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [
        (UsageError("prompt too long"), UsageError, "^prompt too long$"),
        (StorageError("bucket is gone"), StorageError, "^bucket is gone$"),
        (MemoryError("no\nroom"), StorageError, "a worker failed: MemoryError: no room; run it again"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_one_line(monkeypatch, cause, kind, message):
    fake = FakeRay(monkeypatch, {0: RayTaskError("make", "Traceback\n …", cause)})
    with pytest.raises(kind, match=message):
        list(workers.spread([fake], [("make", (0,))], StopRequest()))


def test_a_worker_that_dies_for_good(monkeypatch):
    fake = FakeRay(monkeypatch, {0: ActorDiedError()})
    with pytest.raises(StorageError, match="a worker failed: ActorDiedError"):
        list(workers.spread([fake], [("make", (0,))], StopRequest()))
