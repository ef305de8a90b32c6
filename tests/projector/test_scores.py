"""Scores: SigLIP fed as it was trained, intervals that hold for few references, scorers of users kept in check."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from projector.comparison.cases import Case, Column
from projector.comparison.outcome import by_method, differences, table_of
from projector.comparison.scores import SiglipScorer, interval, load_scorers, resolve_scorer, score_pictures
from projector.evaluation.attributes import attribute_scores
from projector.models.resolve import file_hashes
from projector.models.tiny_siglip import make_tiny_siglip
from shards.errors import UsageError
from shards.scenes.captions import canonical
from shards.scenes.draw import draw_scene
from shards.scenes.scene import Scene, Thing

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
RANDOM = np.random.default_rng(2)
# Student's 97.5% quantiles by number of values, from SciPy 1.17 (see test_intervals.py).
STUDENTS = {2: 12.7062, 3: 4.302653, 4: 3.182446, 11: 2.228139, 12: 2.200985, 40: 2.022691, 400: 1.965927}
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
        assert (entry["adherence"], entry["fidelity"]) == (entry["text_alignment"], entry["style_similarity"])
        assert len(entry) == 5
    assert scores[0]["style_similarity"] < 0.999


def test_without_a_prompt_nothing_is_asked_about_one(siglip, module):
    scorers = load_scorers([f"{module}:broken"])
    (entry,) = score_pictures(PICTURES[:1], "", PICTURES[1], siglip, scorers)
    assert entry.keys() == {"style_similarity", "fidelity", "blockiness"}


def scene_of(**changes):
    """A scene with one thing; `changes` of its attributes."""
    named = {
        "background": "white",
        "shape": "ring",
        "colour": "red",
        "size": "large",
        "pattern": "solid",
        "place": "left",
    } | changes
    return Scene(named.pop("background"), (Thing(**named),))


def drawn(scene):
    return Image.fromarray(draw_scene(scene))


@pytest.mark.parametrize(
    ("shown", "adherence", "fidelity"),
    [
        ({}, 0.0, 1.0),
        ({"colour": "blue", "shape": "star"}, 1.0, 1.0),
        ({"colour": "blue"}, 0.5, 1.0),
        ({"colour": "blue", "shape": "star", "background": "dusk", "place": "right"}, 1.0, 1 / 3),
    ],
)
def test_attributes_are_those_that_the_prompt_changes_and_those_it_leaves(shown, adherence, fidelity):
    # "large" is named and the reference's own: neither changed nor left to the reference.
    prompt, reference = "a large blue star", drawn(scene_of())
    (found,) = attribute_scores([drawn(scene_of(**shown))], prompt, reference)
    assert found == pytest.approx({"adherence": adherence, "fidelity": fidelity})


def test_what_cannot_be_asked_is_absent():
    reference = drawn(scene_of())
    assert attribute_scores([reference], "", reference) == [{"fidelity": 1.0}]
    assert attribute_scores([reference], "a large ring", reference) == [{"fidelity": 1.0}]
    other = scene_of(colour="blue", place="right")
    assert attribute_scores([drawn(other)], canonical(other), reference) == [{"adherence": 1.0}]


def test_two_things_are_looked_for_where_the_prompt_names_two():
    things = (
        Thing("ring", "red", "small", "solid", "left"),
        Thing("star", "blue", "small", "solid", "right"),
    )
    both = Scene("white", things)
    (found,) = attribute_scores([drawn(both)], "a red ring and a blue star", drawn(both))
    assert found == {"fidelity": 1.0}
    prompt = canonical(both)
    (found,) = attribute_scores([drawn(both)], prompt, drawn(scene_of(place="top", pattern="dots")))
    assert found["adherence"] == 1.0


def test_attributes_take_the_place_of_siglips_scores(siglip):
    scores = score_pictures(PICTURES[:1], "a red ring", drawn(scene_of()), siglip, {}, attributes=True)
    assert scores[0].keys() == {
        "text_alignment",
        "style_similarity",
        "fidelity",
        "blockiness",
    }  # the reference is a red ring: the prompt changes nothing


def cases(groups):
    return [Case(f"{number:x}", "p", 1, group) for number, group in enumerate(groups)]


def test_scores_are_summed_up_over_references():
    text, ours = Column("text", "alone", 1.0), Column("projector", "blend", 0.5)
    given = [
        [{"s": value}, {"s": 10 * value, "t": 1.0} if value < 5 else {"s": 10 * value}]
        for value in (1.0, 2.0, 3.0, 5.0)
    ]
    found = by_method(table_of(cases("abcc"), [[text, ours]] * 4, given))
    half = (
        STUDENTS[3] * np.std([1, 2, 4], ddof=1) / np.sqrt(3)
    )  # two cases of the third reference are one value
    mean = 7 / 3
    assert found["text"]["alone"]["1"]["s"] == pytest.approx(
        {"mean": mean, "low": mean - half, "high": mean + half}
    )
    assert found["projector"]["blend"]["0.5"]["s"]["mean"] == pytest.approx(10 * mean)
    assert found["projector"]["blend"]["0.5"]["t"] == {"mean": 1, "low": 1, "high": 1}


def test_the_projector_is_held_against_the_best_of_the_others_on_the_same_references():
    columns = [
        Column("text", "alone", 1.0),
        *(Column(name, "concat", 1.0) for name in ("identity", "per_dim_norm", "projector")),
    ]

    def entry(adherence, fidelity):
        return {"adherence": adherence, "fidelity": fidelity, "blockiness": 9.0}

    given = [
        [entry(0.9, 0.2), entry(0.3, 0.3), entry(0.6, 0.6), entry(0.8, 0.7)],
        [entry(0.9, 0.2), entry(0.9, 0.1), entry(0.4, 0.8), entry(0.7, 0.8)],
    ]
    table = table_of(cases("ab"), [columns] * 2, given)
    found = differences(table)
    assert found.keys() == {"concat"}
    assert found["concat"]["1"]["baseline"] == "per_dim_norm"
    expected = {"adherence": interval([0.2, 0.3]), "fidelity": interval([0.1, 0.0])}
    for name, wanted in expected.items():
        assert found["concat"]["1"][name] == pytest.approx(wanted | {"better": False})
    assert found["concat"]["1"].keys() == {"baseline", *expected}
    del table[columns[2]]
    assert differences(table)["concat"]["1"]["baseline"] == "text"
    only = {columns[3]: table[columns[3]]}
    assert differences(only) == {}


def test_a_picture_alone_is_not_held_against_the_text():
    columns = [Column("text", "alone", 1.0), *(Column(n, "alone", 1.0) for n in ("identity", "projector"))]
    given = [[{"fidelity": 0.9}, {"fidelity": 0.2}, {"fidelity": 0.8}]]
    assert differences(table_of(cases("a"), [columns], given))["alone"]["1"] == {
        "baseline": "identity",
        "fidelity": pytest.approx({"mean": 0.6, "low": 0.6, "high": 0.6, "better": False}),
    }


def leads(modes, *, lead, references=8, spread=0.1, seed=0):
    """Differences to `identity` of a projector that leads by as much in every mode, in units of adherence."""
    random = np.random.default_rng(seed)
    columns = [Column(name, mode, 1.0) for mode in modes for name in ("identity", "projector")]
    given = [
        [
            {"adherence": 0.5 + (lead + random.normal(0, spread)) * (column.method == "projector")}
            for column in columns
        ]
        for _ in range(references)
    ]
    found = differences(table_of(cases("abcdefgh"[:references]), [columns] * references, given))
    return {mode: by_value["1"]["adherence"] for mode, by_value in found.items()}


def test_intervals_of_differences_hold_for_all_modes_together():
    """Sixteen modes that change nothing: one of them is called better by luck in 2.5% of worlds, not in a third."""
    modes = [f"mode {number}" for number in range(16)]
    lucky = [
        any(found["better"] for found in leads(modes, lead=0, seed=seed).values()) for seed in range(200)
    ]
    assert np.mean(lucky) <= 0.05
    one = leads(modes[:1], lead=0)[modes[0]]
    assert 2 * (one["high"] - one["mean"]) == pytest.approx(one["high"] - one["low"])
    of_many = leads(modes, lead=0)[modes[0]]
    assert of_many["high"] - of_many["low"] > 1.2 * (one["high"] - one["low"])


def test_better_is_said_where_the_interval_lies_above_0():
    for lead, better in ((0.5, True), (0.0, False), (-0.5, False)):
        for found in leads(["concat", "blend"], lead=lead).values():
            assert found["better"] == (found["low"] > 0) == better
    for found in leads(["concat"], lead=0.5, spread=0).values():  # no spread, no interval
        assert (found["low"] > 0, found["better"]) == (True, False)


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
    assert str(caught.value).startswith(f"scorers = {name!r}")


@pytest.mark.parametrize(
    ("name", "message"),
    [("broken", r"failed \(RuntimeError: no weights\)"), ("nan", "returned nan"), ("words", "failed")],
)
def test_scorers_that_fail(module, name, message):
    scorers = load_scorers([f"{module}:{name}"])
    with pytest.raises(UsageError, match=message):
        score_pictures(PICTURES[:1], "abc", PICTURES[0], None, scorers)


@pytest.mark.parametrize("count", STUDENTS)
def test_intervals_are_students(count):
    values = RANDOM.normal(3, 2, count)
    found = interval(values)
    half = STUDENTS[count] * values.std(ddof=1) / np.sqrt(count)
    assert (found["low"], found["high"]) == pytest.approx(
        (values.mean() - half, values.mean() + half), rel=1e-3
    )
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
    with pytest.raises(UsageError, match=r"scorer = .*no such folder.*scorer none does without"):
        resolve_scorer(str(tmp_path / "none"))
    copy = altered(folder, tmp_path, model_type="siglip2")
    with pytest.raises(UsageError, match="holds a model of type 'siglip2'; a SigLIP of fixed resolution"):
        resolve_scorer(str(copy))
    shutil.copy(folder / "config.json", copy)
    assert resolve_scorer(str(copy)).id == "model"
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"missing \*.safetensors; pytorch_model.bin is pickled"):
        resolve_scorer(str(copy))
