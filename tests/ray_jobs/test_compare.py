"""`compare` for real on a built dataset: its pictures, what it lists for others, and how it grows."""

import json
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from compare_support import compare_words
from projector.comparison.cases import part_of
from ray_support import run_here
from shards.dataset.dataset import Dataset
from shards.dataset.read import read_samples
from shards.format.sample import open_image
from shards.stores.local import open_storage

METHODS = ("identity", "per_dim_norm", "graft", "projector")


@pytest.fixture(scope="module")
def compared(head, checkpoint, tmp_path_factory):
    """What a comparison left, and what it printed."""
    folder = tmp_path_factory.mktemp("compared") / "first"
    done = run_here(compare_words(checkpoint, output=folder, actors=1), head.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def content_of(folder):
    return json.loads((folder / "compare.json").read_text())


def made_of(case):
    """The pictures of a case at alphas 0 and 0.5: (method, mode, value)."""
    if not case["prompt"]:
        return [(method, "alone", 1) for method in METHODS]
    dialled = [("concat", 1), ("guidance", 0.5), ("blend", 0.5)]
    return [("text", "alone", 1), *((method, *place) for place in dialled for method in METHODS)]


@pytest.mark.ray
def test_a_comparison(compared, undisturbed, checkpoint):
    folder, printed = compared
    trained_on = json.loads((checkpoint / "config.json").read_text())["dataset"]
    assert (trained_on["picture"], trained_on["quantize"]) == ({"height": 64, "width": 64}, "none")
    total = 2 * (4 + 2 * 13)
    assert printed.startswith(f"2 references, 6 cases, {total} pictures, to {folder}, on 1 node")
    assert f"compare: {total}/{total} pictures (100%)" in printed
    result = content_of(folder)
    told = [result[name] for name in ("modes", "alphas", "blend", "checkpoint", "references")]
    modes = ["alone", "concat", "guidance", "blend"]
    assert told == [modes, [0, 0.5], "interpolate", str(checkpoint), 2]
    assert "mean nothing" in result["scorer"]
    assert {name: list(found) for name, found in result["methods"].items()} == {
        "text": ["alone"],
        **dict.fromkeys(METHODS, modes),
    }
    assert result["methods"]["projector"]["guidance"].keys() == {"0.5"}
    assert result["methods"]["projector"]["concat"]["1"].keys() == {
        "text_alignment",
        "style_similarity",
        "adherence",
        "fidelity",
        "blockiness",
    }
    assert {mode: list(found) for mode, found in result["differences"].items()} == {
        "alone": ["1"],
        "concat": ["1"],
        "guidance": ["0.5"],
        "blend": ["0.5"],
    }
    samples = list(read_samples(Dataset.open(open_storage(str(undisturbed))), split="test", tensors=()))
    for number, case in enumerate(result["cases"]):
        own, other = (samples[(number // 3 + step) % 2] for step in (0, 1))
        assert case["prompt"] == ("", other.caption, part_of(other.caption, 0))[number % 3]
        assert case["reference"] == f"pictures/{case['case']}/reference.png"
        kept = open_image((folder / case["reference"]).read_bytes()).convert("RGB")
        assert kept.tobytes() == open_image(own.image).convert("RGB").tobytes()
        assert case["seed"] == result["cases"][number - number % 3]["seed"]
        found = [(entry["method"], entry["mode"], entry["value"]) for entry in case["pictures"]]
        assert found == made_of(case)
        assert open_image((folder / case["grid"]).read_bytes()).width > 3 * 256


@pytest.mark.ray
def test_every_picture_is_listed_for_others_to_judge(compared):
    folder, _ = compared
    cases = json.loads((folder / "cases.json").read_text())
    assert cases == [
        {name: entry[name] for name in ("method", "mode", "value", "file")}
        | {name: case[name] for name in ("case", "reference", "prompt")}
        for case in content_of(folder)["cases"]
        for entry in case["pictures"]
    ]
    for entry in cases:
        value = f"{entry['value']:g}"
        name = f"{entry['method']}.{entry['mode']}.{value}.png"
        assert entry["file"] == f"pictures/{entry['case']}/{name}"
        assert open_image((folder / entry["file"]).read_bytes()).size == (64, 64)


@pytest.mark.ray
def test_tensorboard_shows_the_grids(compared):
    folder, _ = compared
    shown = EventAccumulator(str(folder / "tensorboard"))
    shown.Reload()
    grids = {
        f"compare/{case['case']}": (folder / case["grid"]).read_bytes()
        for case in content_of(folder)["cases"]
    }
    assert len(grids) == 6
    assert {tag: shown.Images(tag)[0].encoded_image_string for tag in shown.Tags()["images"]} == grids


@pytest.mark.ray
@pytest.mark.long
def test_only_what_is_not_there_is_made_when_it_is_run_again_or_grows(head, compared, checkpoint, tmp_path):
    before, after = compared[0], tmp_path / "after"
    shutil.copytree(before, after)
    next(after.glob("pictures/*/projector.blend.0.5.png")).unlink()
    again = compare_words(checkpoint, output=after, actors=1, alphas="0,0.5,1", scorer="none")
    done = run_here(again, head.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compare: 92/92 pictures (100%)" in done.stdout
    known, now = (
        {path.relative_to(folder): path for path in folder.glob("pictures/*/*.*.*.png")}
        for folder in (before, after)
    )
    assert (len(known), len(now)) == (60, 92)
    made_again = [name for name in known if known[name].stat().st_mtime_ns != now[name].stat().st_mtime_ns]
    assert [name.name for name in made_again] == ["projector.blend.0.5.png"]
    assert all(known[name].read_bytes() == now[name].read_bytes() for name in known)
    result = content_of(after)
    assert (result["scorer"], result["alphas"]) == ("none", [0, 0.5, 1])
    assert result["methods"]["projector"]["blend"]["1"].keys() == {"blockiness"}
    assert result["differences"] == {}
