"""A comparison, picture by picture: same seed, text alone, each method in each mode; cases, grid, scores, example."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from projector import VLEmbeddingExtractor
from projector.comparison.cases import Case, Column, cases_of, part_of
from projector.comparison.comparer import Comparer, CompareSettings, CompareSpec, check_prompts
from projector.comparison.grid import CELL, comparison_grid
from projector.data.align import evenly
from projector.data.pairs import Pair, in_memory
from projector.evaluation.baselines import TrainStatistics
from projector.inference.image_generator import ImageGenerator
from projector.inference.text_encoder import TextEncoder
from projector.models.int8 import Int8Linear
from projector.models.offload import Residence
from projector.network.projector import Projector
from projector.options import TrainOptions
from projector.steering.modes import MODES, ReferenceRows, conditionings, projected, unprojected
from projector.training.loop import train
from shards.errors import StorageError, UsageError
from shards.format.sample import as_png, open_image
from shards.format.statistics import RunningStatistics
from shards.scenes.captions import attributes_named, canonical, scene_named, varied
from shards.scenes.scene import ATTRIBUTES, attributes, sample_scene
from shards.stores.local import open_storage

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
EXAMPLE = Path(__file__).parents[2] / "examples" / "conditioned_generate.py"
WIDTH, SIZE, STEPS = 64, 64, 2
PICTURE = Image.fromarray(np.random.default_rng(4).integers(0, 255, (96, 64, 3), dtype=np.uint8))
CASE, ALONE = Case("00ff", "a red fox", 7, "ab"), Case("00fe", "", 7, "ab")
SUFFIX = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On a busy machine, threads on such small tensors mostly wait for one another: 52 s instead of 1 s."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A linear projector on random pairs, far from the identity."""
    random = torch.Generator().manual_seed(0)
    kinds = torch.ones(6, dtype=torch.uint8)
    pairs = [
        Pair(
            f"k{i}",
            torch.randn(6, WIDTH, generator=random),
            kinds,
            5 * torch.randn(4, WIDTH, generator=random),
        )
        for i in range(8)
    ]
    folder = tmp_path_factory.mktemp("projector")
    options = TrainOptions(output=str(folder), objective="embedding", arch="linear", epochs=1, batch_size=4)
    train(options, in_memory(pairs), in_memory(pairs), device="cpu")
    return str(folder)


@pytest.fixture(scope="module")
def reference():
    """Statistics under which no baseline is the identity."""
    random = np.random.default_rng(0)
    known = TrainStatistics(RunningStatistics(WIDTH), RunningStatistics(WIDTH))
    known.inputs.update(random.normal(1, 3, (40, WIDTH)))
    known.targets.update(random.normal(-2, 50, (40, WIDTH)))
    return known


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, tiny_sources, checkpoint, reference):
    """A comparer whose models are loaded once for all tests."""
    settings = CompareSettings(SIZE, SIZE, STEPS, 0.0, 512, "float32", "interpolate")
    root = str(tmp_path_factory.mktemp("out"))
    return Comparer(CompareSpec(root, checkpoint, tiny_sources, None, (), settings, reference, SUFFIX))


@pytest.fixture
def comparer(loaded, tmp_path, monkeypatch):
    """That comparer with an output of its own, where the case's reference is in place."""
    monkeypatch.setattr(loaded, "spec", replace(loaded.spec, root=str(tmp_path / "out")))
    monkeypatch.setattr(loaded, "_storage", open_storage(loaded.spec.root))
    for case in (CASE, ALONE):
        loaded._storage.put_bytes(case.reference, as_png(PICTURE))
    return loaded


@pytest.fixture(scope="module")
def by_hand(tiny, checkpoint, reference):
    """A picture as a user of the library makes it."""
    text = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32)
    vision = VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), checkpoint, dtype=torch.float32)
    images = ImageGenerator.from_pretrained(
        str(tiny / "image"), device="cpu", dtype=torch.float32, height=SIZE, width=SIZE, steps=STEPS
    )

    grafted = VLEmbeddingExtractor.from_pretrained(
        str(tiny / "vl"), dtype=torch.float32, language=str(tiny / "image")
    )

    def make(method, mode, value=1.0, blend="interpolate"):
        prompt = text.encode([CASE.prompt])[0]
        if method == "text":
            return images.generate([prompt.embeddings], [CASE.seed])[0]
        raw = vision.extract(PICTURE, None if mode == "alone" else CASE.prompt, hidden_layer=-8).raw
        projector = Projector.from_pretrained(checkpoint)
        if method == "projector":
            rows = projected(projector, raw, SUFFIX)
        elif method == "graft":
            beside = None if mode == "alone" else CASE.prompt
            raw = grafted.extract(PICTURE, beside, hidden_layer=-8).raw
            rows = ReferenceRows(projector.network.text_prefix, evenly(raw, 64), SUFFIX, raw)
        else:
            rows = unprojected(projector, raw, reference.baselines()[method].apply, SUFFIX)
        first, second = conditionings(rows, mode, prompt.embeddings, prompt.kind, value=value, blend=blend)
        references = None if second is None else [second]
        return images.generate([first], [CASE.seed], references=references, weight=value)[0]

    return make


def made(comparer, column, case=CASE):
    return open_image(comparer._storage.get_bytes(case.picture(column)))


def test_a_cases_pictures():
    methods, modes = ["identity", "projector"], list(MODES)
    assert ALONE.columns(methods, modes, [0.0, 0.5]) == [(method, "alone", 1) for method in methods]
    assert ALONE.columns(methods, ["concat"], [0.5]) == []
    columns = CASE.columns(methods, modes, [0.0, 0.5, 1.0])
    assert columns[:3] == [("text", "alone", 1), ("identity", "concat", 1), ("projector", "concat", 1)]
    assert len(columns) == 1 + 2 + 3 * 2 * 2
    assert CASE.columns(methods, ["alone"], [0.5]) == columns[:1]
    assert CASE.picture(columns[0]) == "pictures/00ff/text.alone.1.png"
    assert CASE.picture(Column("projector", "blend", 0.3)) == "pictures/00ff/projector.blend.0.3.png"


def test_each_picture_is_the_recipe_done_by_hand(comparer, by_hand):
    columns = CASE.columns(
        ["identity", "graft", "per_dim_norm", "projector"], ["concat", "guidance", "blend"], [0.5]
    )
    columns += CASE.columns(["projector"], ["interpolate"], [0.5])[1:]
    for column in columns:
        comparer.make(CASE, column)
        assert made(comparer, column).tobytes() == by_hand(*column).tobytes(), column
    assert len({made(comparer, column).tobytes() for column in columns}) == len(columns)


def test_a_picture_without_a_prompt(comparer, by_hand):
    columns = ALONE.columns(["identity", "projector", "graft"], ["alone"], [])
    for column in columns:
        comparer.make(ALONE, column)
        assert made(comparer, column, ALONE).tobytes() == by_hand(*column).tobytes(), column
    # Under guidance 1 only the reference's velocities count: the same picture, the text left behind.
    comparer.make(CASE, Column("projector", "guidance", 1.0))
    guided = np.asarray(made(comparer, Column("projector", "guidance", 1.0)), np.int16)
    assert np.abs(guided - np.asarray(made(comparer, columns[1], ALONE), np.int16)).max() <= 2


@pytest.mark.parametrize("blend", ["linear", "adain_per_dim"])
def test_the_blend_is_the_one_asked_for(comparer, by_hand, blend):
    settings = replace(comparer.spec.settings, blend=blend)
    comparer.spec = replace(comparer.spec, settings=settings)
    column = Column("projector", "blend", 0.5)
    comparer.make(CASE, column)
    assert made(comparer, column).tobytes() == by_hand(*column, blend).tobytes()


def test_one_model_at_a_time_is_on_the_device_and_pictures_stay(comparer, by_hand, monkeypatch):
    entered = []

    def let_in(residence, model):
        assert residence.loading_device == "cpu"
        entered.append(type(model))

    monkeypatch.setattr(Residence, "let_in", let_in)
    settings = replace(comparer.spec.settings, guidance=0.0)
    alone = Comparer(replace(comparer.spec, settings=settings, one_at_a_time=True))
    monkeypatch.setattr(alone._residence, "device", "cuda")
    for value in (0.5, 1.0):
        column = Column("projector", "blend", value)
        alone.make(CASE, column)
        assert made(alone, column).tobytes() == by_hand(*column).tobytes()
    assert entered == [TextEncoder, VLEmbeddingExtractor, ImageGenerator, ImageGenerator]


def test_weights_are_rounded_as_those_that_made_the_pairs(comparer, checkpoint, tmp_path):
    rounded = Path(shutil.copytree(checkpoint, tmp_path / "rounded"))
    config = json.loads((rounded / "config.json").read_text())
    config["dataset"]["quantize"] = "int8"
    (rounded / "config.json").write_text(json.dumps(config))
    found = Comparer(replace(comparer.spec, checkpoint=str(rounded)))
    assert any(isinstance(module, Int8Linear) for module in found._text.model.modules())
    assert any(isinstance(module, Int8Linear) for module in found._vision._encoder.model.modules())


def test_guidance_steers_away_from_the_empty_prompt(comparer, by_hand):
    settings = replace(comparer.spec.settings, guidance=3.0)
    column = Column("text", "alone", 1.0)
    Comparer(replace(comparer.spec, settings=settings)).make(CASE, column)
    assert made(comparer, column).tobytes() != by_hand(*column).tobytes()


def test_scores_and_grid_of_a_case(comparer):
    for case, height in ((CASE, 2), (ALONE, 1)):
        columns = case.columns(["projector"], ["alone", "concat"], [])
        for column in columns:
            comparer.make(case, column)
        scores = comparer.judge(case, columns)
        assert [entry.keys() for entry in scores] == [{"blockiness"}] * len(columns)
        assert open_image(comparer._storage.get_bytes(case.grid)).height > height * CELL


def test_pictures_of_the_miniature_world_are_judged_by_what_they_show(comparer):
    comparer.spec = replace(comparer.spec, attributes=True)
    case = replace(CASE, prompt="a small red ring")
    comparer._storage.put_bytes(case.picture(Column("text", "alone", 1.0)), as_png(PICTURE))
    (entry,) = comparer.judge(case, [Column("text", "alone", 1.0)])
    assert entry.keys() == {"adherence", "fidelity", "blockiness"}
    assert entry["fidelity"] == 1.0  # it is the reference


def test_a_broken_picture_is_named(comparer):
    column = Column("text", "alone", 1.0)
    comparer._storage.put_bytes(CASE.picture(column), b"\x89PNG cut short")
    with pytest.raises(
        StorageError, match=r"text\.alone\.1\.png: image does not decode.*; delete it and run again"
    ):
        comparer.judge(CASE, [column])


def test_cases_of_a_reference_share_the_noise_and_are_named_by_picture_and_prompt():
    cases = cases_of(PICTURE, ["a", "b", "a", ""], 3, alone=True)
    assert [case.prompt for case in cases] == ["", "a", "b"]
    assert len({(case.seed, case.group) for case in cases}) == 1
    assert len({case.name for case in cases}) == 3
    other = cases_of(PICTURE.rotate(180), ["a"], 3, alone=False)
    assert [case.prompt for case in other] == ["a"]
    assert not {other[0].name, other[0].seed, other[0].group} & {
        part for case in cases for part in (case.name, case.seed, case.group)
    }
    assert cases_of(PICTURE, ["a"], 4, alone=False)[0].seed != cases[0].seed


@pytest.mark.parametrize("objects", [1, 2])
def test_part_of_a_scenes_caption_names_some_of_its_attributes(objects):
    generator = np.random.default_rng(0)
    chosen = set()
    for seed in range(20):
        scene = sample_scene(generator, objects)
        caption = varied(scene, generator)
        assert scene_named(caption) == scene
        part = part_of(caption, seed)
        assert part == part_of(caption, seed)
        named, all_named = attributes_named(part), attributes(scene)
        chosen.add(frozenset(name.split(" ")[0] for name in named))
        assert len({name.split(" ")[0] for name in named}) == 3
        if objects == 1 or "place" in named:  # else the order of words alone tells two things apart
            assert named.items() <= all_named.items()
    assert len(chosen) > 5
    assert frozenset().union(*chosen) == set(ATTRIBUTES)
    assert scene_named(canonical(scene).replace("background", "red background")) is not None
    assert scene_named("a red ring") is None


@pytest.mark.parametrize(
    ("caption", "part"),
    [
        ("A red fox in the snow, at dusk, grainy", "A red fox in the snow"),
        ("A fox of 3.5 kg: photographed", "A fox of 3.5 kg"),
        ("一只红狐，在雪中", "一只红狐"),
        ("a fox", "a fox"),
        (", fox", ", fox"),
    ],
)
def test_part_of_another_caption_is_its_first_clause(caption, part):
    assert part_of(caption, 0) == part


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("fox " * 600, "tokens with its template, at most 512 allowed"),
        ("<|im_end|> ignore", "special token '<|im_end|>'"),
        ("\n", None),
        ("<script>alert(1)</script> ../../x; $(rm -rf)", None),
    ],
)
def test_prompts_are_checked_without_a_model(tiny_sources, prompt, message):
    if message is None:
        check_prompts([prompt], tiny_sources, 512)
        return
    with pytest.raises(UsageError) as caught:
        check_prompts(["a fox", prompt], tiny_sources, 512)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_special_token_that_the_vl_model_alone_knows_is_refused(tiny_sources, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_sources.vl.path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|seen|>"]})
    tokenizer.save_pretrained(tmp_path)
    sources = replace(tiny_sources, vl=replace(tiny_sources.vl, path=str(tmp_path)))
    check_prompts(["a <|seen|> fox"], tiny_sources, 512)
    with pytest.raises(UsageError, match=r"special token '<\|seen\|>'"):
        check_prompts(["a <|seen|> fox"], sources, 512)


HOSTILE = "<b>x</b>\n\n\x07‮ " + "W" * 3000 + " 狐狸 🦊"


def test_a_grid_shows_each_picture_in_its_row_and_column():
    methods = ["identity", "a_method_with_a_long_name"]
    places = [("concat", 1.0), ("blend", 0.3), ("blend", 1.0)]
    colours = {Column("text", "alone", 1.0): (250, 10, 10)} | {
        Column(method, *place): (40 + 100 * row, 60 * number, 200)
        for row, method in enumerate(methods)
        for number, place in enumerate(places)
    }
    pictures = {column: Image.new("RGB", (SIZE, SIZE), colour) for column, colour in colours.items()}
    case = Case("00ff", HOSTILE, 2**63 - 1, "ab")
    grid = comparison_grid(case, Image.new("RGB", (32, 96), (1, 2, 3)), pictures, "a note")
    pixels = np.asarray(grid)
    boxes = {}
    for colour in [*colours.values(), (1, 2, 3)]:
        rows, columns = np.nonzero((pixels == colour).all(axis=-1))
        boxes[colour] = [rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1]
    assert all(boxes[colour][2:] == [CELL, CELL] for colour in colours.values())
    assert boxes[1, 2, 3][2:] == [CELL, round(CELL / 3)]
    assert boxes[250, 10, 10][0] == boxes[1, 2, 3][0]
    for row, method in enumerate(methods):
        of_row = [boxes[colours[Column(method, *place)]] for place in places]
        assert len({box[0] for box in of_row}) == 1
        lefts = [box[1] for box in of_row]
        assert lefts == sorted(lefts)
        assert of_row[0][0] > boxes[1, 2, 3][0] + (row + 1) * CELL
        # Its label is beside it: ink left of the first picture, within the row.
        top = of_row[0][0]
        assert (pixels[top : top + CELL, : lefts[0]] < 100).any()


def test_the_example_makes_the_same_picture(tiny, checkpoint, by_hand, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("conditioned_generate", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    PICTURE.save(tmp_path / "fox; rm -rf.png")
    words = [
        "--image",
        tmp_path / "fox; rm -rf.png",
        "--projector",
        checkpoint,
        "--output",
        tmp_path / "made.png",
    ]
    words += ["--image-model", tiny / "image", "--vl-model", tiny / "vl", "--device", "cpu"]
    words += ["--height", SIZE, "--width", SIZE, "--steps", STEPS, "--seed", CASE.seed]
    for mode, value in (("concat", 1.0), ("blend", 0.5)):
        asked = ["--prompt", CASE.prompt, "--mode", mode, "--alpha", str(value)]
        assert example.main([*map(str, words), *asked]) == 0
        expected = by_hand("projector", mode, value)
        assert Image.open(tmp_path / "made.png").tobytes() == expected.tobytes()
        assert "picture tokens" in capsys.readouterr().out
    assert example.main([*map(str, words), "--prompt", "<|im_end|>"]) == 2
    assert "\nerror: caption holds the special token" in capsys.readouterr().err
