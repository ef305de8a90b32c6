"""What `compare` refuses before a model loads, and what it makes of options, pictures and prompts."""

import json
from types import SimpleNamespace

import pytest
import ray
import transformers
from PIL import Image

from compare_support import compare_words
from projector.comparison.cases import Case
from projector.comparison.comparer import CompareSettings, CompareSpec
from projector.models.resolve import CACHE_VARIABLE, ModelSource, ModelSources
from projector.network.architectures import ProjectorNetwork, Shape
from projector.network.blend import BLENDS
from projector.network.projector import Projector
from projector.steering.modes import MODES
from ray_jobs.__main__ import JOBS, main
from ray_jobs.cli.parse import parse
from ray_jobs.cli.run_options import CompareOptions
from ray_jobs.jobs import compare_outcome
from ray_jobs.jobs.compare import SETTINGS, claim, identity_of, listed, settings_of
from ray_jobs.jobs.compare_inputs import cases_to_make, known_of, modes_of, scorer_of
from ray_jobs.jobs.compare_outcome import comparison, put_grids
from shards.errors import UsageError
from shards.stores.local import open_storage


def test_without_tensorboard_a_comparison_goes_without(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_outcome, "find_spec", lambda name: None)
    put_grids(open_storage(str(tmp_path)), [Case("a", "", 1, "a")])
    assert list(tmp_path.iterdir()) == []


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
        ({"scorer": tmp_path / "nowhere"}, "; scorer none does without"),
        ({"models.image": tmp_path, "models.vl": tmp_path}, "compare.models.image = "),
        ({"alphas": "0,1.5"}, "less than or equal to 1"),
        ({"alphas": "[NaN]"}, "compare.alphas"),
        ({"alphas": "0.5,0.5"}, "twice"),
        ({"modes": "concat,mix"}, "'alone', 'concat', 'guidance', 'blend' or 'interpolate'"),
        ({"modes": "concat,concat"}, "twice"),
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
    assert found["rows"] == "of the whole conditioning"


def test_options_know_every_blend_every_mode_and_a_single_folder():
    options = CompareOptions.model_fields["blend"].annotation.__args__
    assert set(options) == set(BLENDS)
    assert CompareOptions(modes=list(MODES)).modes == list(MODES)
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


def learnt_from(picture):
    """A projector whose training pictures had this size."""
    network = ProjectorNetwork(Shape("linear", 8, 0, 4))
    return Projector(network, {"dataset": {"picture": picture}})


@pytest.mark.parametrize(
    ("picture", "given", "size"),
    [
        ({"height": 96, "width": 128}, {}, (96, 128)),
        ({"height": 96, "width": 128}, {"width": 512}, (96, 512)),
        ({"height": 32, "width": 32}, {}, (64, 64)),  # what can be judged
        ({"max_side": 640}, {}, (1024, 1024)),
        ({"max_side": 640}, {"models": "mini"}, (64, 64)),
        ({}, {}, (1024, 1024)),
    ],
)
def test_pictures_are_as_large_as_those_of_the_training(picture, given, size):
    settings = settings_of(CompareOptions(**given), learnt_from(picture), on_gpu=False)
    assert (settings.height, settings.width) == size


def test_what_becomes_of_scores():
    options = CompareOptions(methods=["projector"], alphas=[0.0, 0.5])
    model = ModelSource("id", "path", "", {})
    spec = CompareSpec(
        root="out",
        checkpoint="run",
        models=ModelSources(model, model, 64, 12),
        siglip=None,
        scorers=(),
        settings=settings_of(options, learnt_from({}), on_gpu=False),
        reference=None,
        attributes=True,
    )
    work = [
        (case, case.columns(options.methods, ["alone", "blend"], options.alphas))
        for case in (Case("a0", "", 1, "a"), Case("a1", "p", 1, "a"), Case("b1", "p", 2, "b"))
    ]
    scores = [
        [{"fidelity": 0.5}],
        [{"adherence": 0.5, "fidelity": 0.1}, {"adherence": 0.75, "fidelity": 0.2}],
        [{"adherence": 0.6, "fidelity": 0.1}, {"adherence": 0.6, "fidelity": 0.4}],
    ]
    result = comparison(options, ["alone", "blend"], work, spec, scores)
    assert (result["scorer"], result["references"]) == ("attributes read from pixels", 2)
    assert result["methods"]["projector"]["alone"]["1"]["fidelity"]["mean"] == 0.5
    assert result["methods"]["text"]["alone"]["1"]["adherence"]["mean"] == pytest.approx(0.55)
    difference = result["differences"]["blend"]["0.5"]
    assert (difference["baseline"], difference["fidelity"]["mean"]) == ("text", pytest.approx(0.2))
    assert [entry["file"] for entry in listed(work)] == [
        "pictures/a0/projector.alone.1.png",
        "pictures/a1/text.alone.1.png",
        "pictures/a1/projector.blend.0.5.png",
        "pictures/b1/text.alone.1.png",
        "pictures/b1/projector.blend.0.5.png",
    ]


@pytest.fixture
def given(tmp_path):
    """Options of a comparison of a user's two pictures."""
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)
    (tmp_path / "prompts.txt").write_text("a fox\na hen\n")

    def options(**changes):
        usual = {"images": [str(tmp_path)], "prompts": str(tmp_path / "prompts.txt")}
        return CompareOptions(**usual | changes)

    return options


def pretend(**what):
    """A projector as far as its description is asked for."""
    usual = {"tokens": "image", "text_mode": "none", "picture_size": {}, "config": {}}
    return SimpleNamespace(**usual | what)


def test_a_users_pictures_have_a_case_each_and_one_without_a_prompt(given, tmp_path):
    def prompts_of(modes, **changes):
        cases = cases_to_make(given(**changes), pretend(), modes)
        return [(case.prompt, picture.getpixel((0, 0))[0]) for case, picture in cases]

    red, blue = 255, 0
    assert prompts_of(["alone", "concat"]) == [("", red), ("a fox", red), ("", blue), ("a hen", blue)]
    assert prompts_of(["blend"]) == [("a fox", red), ("a hen", blue)]
    assert prompts_of(["alone"], prompts=None) == [("", red), ("", blue)]
    twice = [str(tmp_path / "a.png")] * 2
    assert prompts_of(["alone", "concat"], images=twice) == [("", red), ("a fox", red), ("a hen", red)]


def test_modes_that_make_sense():
    captions = pretend(tokens="text", text_mode="caption")
    assert modes_of(CompareOptions(), pretend()) == ["alone", "concat", "guidance", "blend"]
    assert modes_of(CompareOptions(), captions) == ["concat", "guidance", "blend"]
    assert modes_of(CompareOptions(modes=["interpolate"]), captions) == ["interpolate"]
    with pytest.raises(UsageError, match="alone has no prompt, and the projector takes tokens 'text'"):
        modes_of(CompareOptions(modes=["alone"]), captions)


@pytest.mark.ray
def test_the_templates_end_comes_from_the_data_where_the_projector_has_none(checkpoint):
    projector = Projector.from_pretrained(str(checkpoint))
    options = CompareOptions(methods=["identity", "projector"])
    assert known_of(options, projector, ["concat", "blend", "interpolate"]) == (None, None)
    statistics, suffix = known_of(options, projector, ["alone"])
    assert statistics is None
    assert suffix.shape == (projector.config["template"]["suffix_tokens"], projector.width)
    assert len(suffix)
    projector.config["dataset"] = {}
    with pytest.raises(
        UsageError, match=r"compare\.data is empty.*compare\.modes concat,blend, which need none"
    ):
        known_of(options, projector, ["guidance"])


def test_the_miniature_models_are_scored_by_their_own_siglip():
    assert scorer_of(CompareOptions(models="mini")).id == "mini/siglip"
