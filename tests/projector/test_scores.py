"""Scores: SigLIP fed as it was trained, intervals that hold for few references, scorers of users kept in check."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from projector.comparison.scores import SiglipScorer, interval, load_scorers, resolve_scorer, score_pictures
from projector.models.resolve import file_hashes
from projector.models.tiny_siglip import make_tiny_siglip
from shards.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
RANDOM = np.random.default_rng(2)
PICTURES = [Image.fromarray(RANDOM.integers(0, 255, (80, 112, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_siglip(tmp_path_factory.mktemp("siglip") / "tiny")


@pytest.fixture(scope="module")
def siglip(folder):
    return SiglipScorer.from_pretrained(str(folder), device="cpu")


def test_pictures_reach_the_model_as_they_are_described(siglip):
    """Squeezed to a square by bilinear interpolation, to [-1, 1], as preprocessor_config.json says."""
    square = PICTURES[0].resize((64, 64), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(square, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = siglip.model.get_image_features(pixel_values=pixels).pooler_output[0]
    found = siglip.embed_pictures(PICTURES[:2])
    torch.testing.assert_close(found[0], expected / expected.norm())
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2))


def test_text_is_lower_case_cut_at_the_models_length_and_padded_on_the_right(siglip, monkeypatch):
    seen = []
    features = siglip.model.get_text_features
    monkeypatch.setattr(
        siglip.model, "get_text_features", lambda **inputs: seen.append(inputs) or features(**inputs)
    )
    torch.testing.assert_close(siglip.embed_text("A Red FOX"), siglip.embed_text("a red fox"))
    long = siglip.embed_text("fox " * 300)
    torch.testing.assert_close(long, siglip.embed_text("fox " * 500))
    assert [set(inputs) for inputs in seen] == [{"input_ids"}] * 4  # no mask: it was trained without
    assert {inputs["input_ids"].shape for inputs in seen} == {(1, 64)}
    padding = siglip.tokenizer.pad_token_id
    assert seen[0]["input_ids"][0, 0] != padding
    assert seen[0]["input_ids"][0, -1] == padding


def test_scores_are_cosines_with_prompt_and_reference(siglip):
    scores = score_pictures(PICTURES, "a red fox", PICTURES[1], siglip, {})
    seen, text = siglip.embed_pictures(PICTURES), siglip.embed_text("a red fox")
    assert scores[1]["style_similarity"] == pytest.approx(1, abs=1e-6)
    for index, entry in enumerate(scores):
        assert entry["text_alignment"] == pytest.approx(float(seen[index] @ text), abs=1e-6)
        assert entry["style_similarity"] == pytest.approx(float(seen[index] @ seen[1]), abs=1e-6)
        assert entry.keys() == {"text_alignment", "style_similarity", "blockiness"}
    assert scores[0]["style_similarity"] < 0.999


def test_without_a_model_the_grid_score_remains():
    assert [entry.keys() for entry in score_pictures(PICTURES, "x", PICTURES[0], None, {})] == [
        {"blockiness"}
    ] * 3


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module of scorers."""
    (tmp_path / "scores_of_a_user.py").write_text(
        "constant = 3\n"
        "def width(image, prompt): return image.width + len(prompt)\n"
        "def broken(image, prompt): raise RuntimeError('no\\nweights')\n"
        "def nan(image, prompt): return float('nan')\n"
        "def words(image, prompt): return 'good'\n"
    )
    (tmp_path / "breaks_on_import.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "scores_of_a_user"
    sys.modules.pop("scores_of_a_user", None)


def test_a_users_scorer_sees_picture_and_prompt(module):
    scorers = load_scorers([f"{module}:width"])
    assert score_pictures(PICTURES[:1], "abc", PICTURES[0], None, scorers)[0][f"{module}:width"] == 112 + 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("width", "expected module:attribute"),
        (":width", "expected module:attribute"),
        ("no_such_module_here:width", r"cannot be imported \(ModuleNotFoundError"),
        ("scores_of_a_user:absent", r"cannot be imported \(AttributeError"),
        ("breaks_on_import:x", r"cannot be imported \(ZeroDivisionError"),
        ("scores_of_a_user:constant", "is int, not a callable"),
    ],
)
def test_scorers_that_are_none(module, name, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_scorers([name])
    assert str(caught.value).startswith(f"compare.scorers = {name!r}")


@pytest.mark.parametrize(
    ("name", "message"),
    [("broken", r"failed \(RuntimeError: no weights\)"), ("nan", "returned nan"), ("words", "failed")],
)
def test_scorers_that_fail(module, name, message):
    scorers = load_scorers([f"{module}:{name}"])
    with pytest.raises(UsageError, match=message):
        score_pictures(PICTURES[:1], "abc", PICTURES[0], None, scorers)


@pytest.mark.parametrize("count", [2, 3, 4, 11, 12, 40, 400])
def test_intervals_are_students(count):
    values = RANDOM.normal(3, 2, count)
    found = interval(values)
    expected = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx(expected, rel=1e-3)
    assert found["mean"] == pytest.approx(values.mean())


def test_one_reference_has_no_interval():
    assert interval([0.5]) == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_the_tiny_model_is_marked_and_made_once_alike(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("Z_IMAGE_PROJECTOR_CACHE", str(tmp_path))
    found = resolve_scorer("tiny")
    assert "mean nothing" in found.id
    assert found.files == file_hashes(folder) == resolve_scorer("tiny").files


def altered(folder, tmp_path, **config):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | config))
    return copy


def test_models_that_cannot_score(folder, tmp_path):
    with pytest.raises(
        UsageError, match=r"compare.scorer = .*no such folder.*compare.scorer none does without"
    ):
        resolve_scorer(str(tmp_path / "none"))
    copy = altered(folder, tmp_path, model_type="siglip2")
    with pytest.raises(UsageError, match="holds a model of type 'siglip2'; a SigLIP of fixed resolution"):
        resolve_scorer(str(copy))
    shutil.copy(folder / "config.json", copy)
    assert resolve_scorer(str(copy)).id == "model"
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"missing \*.safetensors; pytorch_model.bin is pickled"):
        resolve_scorer(str(copy))
