"""The guide's recipe, picture by picture: same seed, text only, each method blended in; grid, scores and example."""

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
from projector.comparison.cases import Case, as_webp
from projector.comparison.comparer import Comparer, CompareSettings, CompareSpec, check_prompts, columns_of
from projector.comparison.grid import CELL, comparison_grid
from projector.data.pairs import Pair, in_memory
from projector.evaluation.baselines import TrainStatistics
from projector.models.image_generator import ImageGenerator
from projector.models.int8 import Int8Linear
from projector.models.offload import Residence
from projector.models.text_encoder import TextEncoder
from projector.network.blend import BLENDS
from projector.options import TrainOptions
from projector.training.loop import train
from shards.errors import StorageError, UsageError
from shards.format.sample import open_image
from shards.format.statistics import RunningStatistics
from shards.stores.local import open_storage

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
EXAMPLE = Path(__file__).parents[2] / "examples" / "conditioned_generate.py"
WIDTH, SIZE, STEPS = 64, 64, 2
PICTURE = Image.fromarray(np.random.default_rng(4).integers(0, 255, (96, 64, 3), dtype=np.uint8))
CASE = Case("00ff", "a red fox", 7)


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
    return Comparer(CompareSpec(root, checkpoint, tiny_sources, None, (), settings, reference))


@pytest.fixture
def comparer(loaded, tmp_path, monkeypatch):
    """That comparer with an output of its own, where the case's reference is in place."""
    monkeypatch.setattr(loaded, "spec", replace(loaded.spec, root=str(tmp_path / "out")))
    monkeypatch.setattr(loaded, "_storage", open_storage(loaded.spec.root))
    loaded._storage.put_bytes(CASE.reference, as_webp(PICTURE))
    return loaded


@pytest.fixture(scope="module")
def by_hand(tiny, checkpoint, reference):
    """A picture as a user of the library makes it."""
    text = TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32)
    vision = VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), checkpoint, dtype=torch.float32)
    images = ImageGenerator.from_pretrained(
        str(tiny / "image"), device="cpu", dtype=torch.float32, height=SIZE, width=SIZE, steps=STEPS
    )

    def make(method, alpha, blend="interpolate"):
        prompt = text.encode([CASE.prompt])[0]
        seen = vision.extract(PICTURE, CASE.prompt, hidden_layer=-8)
        vl = (
            seen.embeddings
            if method == "projector"
            else reference.baselines()[method].apply(seen.raw).float()
        )
        return images.generate([BLENDS[blend](vl, prompt.embeddings, alpha, prompt.kind)], [CASE.seed])[0]

    return make


def made(comparer, method, alpha):
    return open_image(comparer._storage.get_bytes(CASE.picture(method, alpha)))


def test_each_picture_is_the_recipe_done_by_hand(comparer, by_hand):
    columns = columns_of(["identity", "per_dim_norm", "projector"], [0.0, 0.5, 1.0])
    for column in columns:
        comparer.make(CASE, *column)
    text, *others = [made(comparer, *column) for column in columns]
    assert text.tobytes() == by_hand("identity", 0.0).tobytes() == by_hand("projector", 0.0).tobytes()
    for column, picture in zip(columns[1:], others, strict=True):
        assert picture.tobytes() == by_hand(*column).tobytes(), column
    assert len({picture.tobytes() for picture in (text, *others)}) == len(columns)


@pytest.mark.parametrize("blend", ["linear", "adain_per_dim"])
def test_the_blend_is_the_one_asked_for(comparer, by_hand, blend):
    settings = replace(comparer.spec.settings, blend=blend)
    comparer.spec = replace(comparer.spec, settings=settings)
    comparer.make(CASE, "projector", 0.5)
    assert made(comparer, "projector", 0.5).tobytes() == by_hand("projector", 0.5, blend).tobytes()


def test_one_model_at_a_time_is_on_the_device_and_pictures_stay(comparer, by_hand, monkeypatch):
    entered = []

    def let_in(residence, model):
        assert residence.loading_device == "cpu"
        entered.append(type(model))

    monkeypatch.setattr(Residence, "let_in", let_in)
    settings = replace(comparer.spec.settings, guidance=0.0)
    alone = Comparer(replace(comparer.spec, settings=settings, one_at_a_time=True))
    monkeypatch.setattr(alone._residence, "device", "cuda")
    for alpha in (0.5, 1.0):
        alone.make(CASE, "projector", alpha)
        assert made(alone, "projector", alpha).tobytes() == by_hand("projector", alpha).tobytes()
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
    Comparer(replace(comparer.spec, settings=settings)).make(CASE, "text", 0.0)
    assert made(comparer, "text", 0.0).tobytes() != by_hand("identity", 0.0).tobytes()


def test_scores_and_grid_of_a_case(comparer):
    methods, alphas = ["identity", "projector"], [0.0, 0.5]
    columns = columns_of(methods, alphas)
    assert columns == [("text", 0.0), ("identity", 0.5), ("projector", 0.5)]
    for column in columns:
        comparer.make(CASE, *column)
    scores = comparer.judge(CASE, methods, alphas)
    assert [entry.keys() for entry in scores] == [{"blockiness"}] * 3
    assert open_image(comparer._storage.get_bytes(CASE.grid)).height > 2 * CELL


def test_a_broken_picture_is_named(comparer):
    comparer._storage.put_bytes(CASE.picture("text", 0.0), b"\x89PNG cut short")
    with pytest.raises(StorageError, match=r"text-0.0.png: image does not decode.*; delete it and run again"):
        comparer.judge(CASE, ["projector"], [0.0])


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
    methods, alphas = ["identity", "a_method_with_a_long_name"], [0.0, 0.3, 1.0]
    colours = {
        (method, alpha): (40 + 100 * row, 60 * column, 200)
        for row, method in enumerate(methods)
        for column, alpha in enumerate(alphas)
    }
    pictures = {place: Image.new("RGB", (SIZE, SIZE), colour) for place, colour in colours.items()}
    case = Case("00ff", HOSTILE, 2**63 - 1)
    grid = comparison_grid(case, Image.new("RGB", (32, 96), (1, 2, 3)), methods, alphas, pictures, "a note")
    places = {colour: [] for colour in [*colours.values(), (1, 2, 3)]}
    pixels = np.asarray(grid)
    for colour in places:
        rows, columns = np.nonzero((pixels == colour).all(axis=-1))
        places[colour] = [rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1]
    for colour in colours.values():
        assert places[colour][2:] == [CELL, CELL]
    assert places[1, 2, 3][2:] == [CELL, round(CELL / 3)]
    for row, method in enumerate(methods):
        assert len({places[colours[method, alpha]][0] for alpha in alphas}) == 1
        lefts = [places[colours[method, alpha]][1] for alpha in alphas]
        assert lefts == sorted(lefts)
        assert places[colours[method, 0.0]][0] > places[1, 2, 3][0] + row * CELL
        # Its label is beside it: ink left of the first picture, within the row.
        top = places[colours[method, 0.0]][0]
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
    words += ["--height", SIZE, "--width", SIZE, "--steps", STEPS, "--seed", CASE.seed, "--alpha", 0.5]
    assert example.main([*map(str, words), "--prompt", CASE.prompt]) == 0
    assert Image.open(tmp_path / "made.png").tobytes() == by_hand("projector", 0.5).tobytes()
    assert "picture tokens" in capsys.readouterr().out
    assert example.main([*map(str, words), "--prompt", "<|im_end|>"]) == 2
    assert "\nerror: caption holds the special token" in capsys.readouterr().err
