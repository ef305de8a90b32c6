"""ComfyUI's nodes: by the form of its conditioning, and, where COMFYUI_PATH names a checkout, inside its real code."""

import importlib.util
import json
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from workflow_picture import draw

from projector import Projector, VLEmbeddingExtractor
from projector.models.tiny import make_tiny_models
from projector.steering.references import steered
from ray_support import ROOT, blocks
from shards.errors import UsageError
from steering_support import a_picture, a_steering_projector

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def as_image(picture):
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(1, picture.height, picture.width, 3).float() / 255


@pytest.fixture(scope="module")
def nodes():
    """The folder, imported as ComfyUI imports a custom node."""
    spec = importlib.util.spec_from_file_location(
        "custom_node_of_the_test",
        ROOT / "comfyui" / "__init__.py",
        submodule_search_locations=[str(ROOT / "comfyui")],
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return {name: made() for name, made in module.NODE_CLASS_MAPPINGS.items()}


@pytest.fixture(scope="module")
def tiny(common_folder):
    return make_tiny_models(common_folder / "tiny")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return a_steering_projector(tiny, tmp_path_factory.mktemp("p"))


@pytest.fixture(scope="module")
def held(nodes, folder):
    return nodes["LoadZImageProjector"].load(str(folder / "model.safetensors"))[0]


@pytest.fixture(scope="module")
def extractor(tiny, folder):
    return VLEmbeddingExtractor.from_pretrained(str(tiny / "vl"), str(folder), dtype=torch.float32)


@pytest.fixture
def reference(nodes, held, tiny, monkeypatch):
    """Two pictures as the node reads them from a folder; ComfyUI says where."""
    comfy, management = ModuleType("comfy"), ModuleType("comfy.model_management")
    management.get_torch_device = lambda: torch.device("cpu")
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)
    image = torch.cat([as_image(a_picture(3)), as_image(a_picture(4))])
    return nodes["ReadZImageReference"].read(held, image, vision=str(tiny / "vl"))[0]


def test_a_projector_of_the_graft_takes_the_text_encoder_too(nodes, tiny, tmp_path, reference):
    folder = a_steering_projector(tiny, tmp_path / "graft", reader="graft")
    (grafted,) = nodes["LoadZImageProjector"].load(str(folder))
    places = {"vision": str(tiny / "vl"), "language": str(tiny / "image")}
    (found,) = type(nodes["ReadZImageReference"])().read(grafted, as_image(a_picture(3)), **places)
    extractor = VLEmbeddingExtractor.from_pretrained(
        places["vision"], str(folder), dtype=torch.float32, language=places["language"]
    )
    torch.testing.assert_close(found.states[0], extractor.extract(a_picture(3)).raw)
    assert not torch.allclose(found.states[0], reference.states[0], atol=0.1)
    with pytest.raises(UsageError, match="pictures that the graft read; connect Z-Image's text encoder"):
        nodes["ReadZImageReference"].read(grafted, as_image(a_picture(3)), clip=object())


@pytest.fixture
def conditioning(folder):
    shape = Projector.from_pretrained(folder).network.shape
    rows = torch.randn(1, shape.prefix + 5 + shape.suffix, 64, generator=torch.Generator().manual_seed(1))
    return [[rows, {"pooled_output": None, "attention_mask": torch.ones(1, rows.shape[1], dtype=torch.long)}]]


@pytest.mark.parametrize("mode", ["concat", "blend"])
def test_conditioning_is_the_librarys(nodes, folder, reference, extractor, conditioning, mode):
    raw = [extractor.extract(a_picture(seed)).raw for seed in (3, 4)]
    torch.testing.assert_close(list(reference.states), raw)
    (((found, values),),) = nodes["ApplyZImageReference"].apply(
        conditioning, reference, mode=mode, alpha=0.3, weight=0.5
    )
    expected = steered(
        Projector.from_pretrained(folder),
        raw,
        conditioning[0][0][0],
        weights=[0.5, 0.5],
        mode=mode,
        alpha=0.3,
    )
    torch.testing.assert_close(found[0], expected)
    assert values["attention_mask"].shape == found.shape[:2]
    assert values["attention_mask"].all()
    assert "start_percent" not in values
    assert conditioning[0][1]["attention_mask"].shape[1] == conditioning[0][0].shape[1]


def test_a_chain_of_nodes_is_several_references(nodes, folder, reference, conditioning):
    single = [type(reference)(reference.projector, (states,)) for states in reference.states]
    apply = nodes["ApplyZImageReference"].apply
    ((first, _),) = apply(*apply(conditioning, single[0]), single[1])[0]
    ((both, _),) = apply(conditioning, reference)[0]
    torch.testing.assert_close(first, both)


def test_a_reference_acts_in_its_part_of_the_sampling(nodes, reference, conditioning):
    apply = nodes["ApplyZImageReference"].apply
    (entries,) = apply(conditioning, reference, start=0.25, end=0.5)
    lengths = [tensor.shape[1] for tensor, _ in entries]
    ranges = [(values["start_percent"], values["end_percent"]) for _, values in entries]
    assert lengths == [lengths[0], lengths[0] + 12, lengths[0]]
    assert ranges == [(0.0, 0.25 - 1e-5), (0.25, 0.5), (0.5 + 1e-5, 1.0)]
    (again,) = apply(entries, reference, start=0.5, end=1.0)
    assert [tensor.shape[1] for tensor, _ in again] == [lengths[0], lengths[0] + 12, lengths[0] + 12]


def test_a_mask_keeps_the_prompt_outside_of_it(nodes, reference, conditioning):
    apply = nodes["ApplyZImageReference"].apply
    mask = torch.tensor([[0.0, 0.25], [1.0, 1.0]])
    (entries,) = apply(conditioning, reference, mask=mask, end=0.5)
    rows = conditioning[0][0].shape[1]
    assert [tensor.shape[1] for tensor, _ in entries] == [rows + 12, rows, rows]
    assert [values.get("mask") is None for _, values in entries] == [False, False, True]
    torch.testing.assert_close(entries[0][1]["mask"], mask[None])
    torch.testing.assert_close(entries[1][1]["mask"], 1 - mask[None])
    assert [(values["start_percent"], values["end_percent"]) for _, values in entries] == [
        (0.0, 0.5),
        (0.0, 0.5),
        (0.5 + 1e-5, 1.0),
    ]
    assert "mask" not in conditioning[0][1]


def test_masks_in_a_chain_divide_the_picture(nodes, reference, conditioning):
    apply = nodes["ApplyZImageReference"].apply
    left = torch.tensor([[1.0, 0.0]])
    (first,) = apply(conditioning, reference, mask=left)
    (both,) = apply(first, reference, mask=1 - left)
    (halves,) = apply(first, reference, mask=torch.full((1, 3, 5), 0.5))
    rows = conditioning[0][0].shape[1]
    assert [tensor.shape[1] for tensor, _ in both] == [rows + 12, rows + 12]
    torch.testing.assert_close(
        torch.cat([values["mask"] for _, values in both]), torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    )
    assert [tensor.shape[1] - rows for tensor, _ in halves] == [24, 12, 12, 0]
    torch.testing.assert_close(sum(values["mask"] for _, values in halves), torch.ones(1, 1, 2))


@pytest.mark.parametrize(("share", "entries"), [(0.0, [0]), (1.0, [12])])
def test_an_empty_side_of_a_mask_is_no_entry(nodes, reference, conditioning, share, entries):
    (found,) = nodes["ApplyZImageReference"].apply(conditioning, reference, mask=torch.full((4, 4), share))
    assert [tensor.shape[1] - conditioning[0][0].shape[1] for tensor, _ in found] == entries


def test_an_empty_prompt_is_the_pictures_alone(nodes, folder, reference, conditioning):
    projector = Projector.from_pretrained(folder)
    shape = projector.network.shape
    bare = [[conditioning[0][0][:, : shape.prefix + shape.suffix], {}]]
    (((found, values),),) = nodes["ApplyZImageReference"].apply(bare, reference)
    torch.testing.assert_close(found[0], steered(projector, reference.states))
    assert values == {}


def test_what_does_not_fit_is_said(nodes, held, reference, conditioning):
    apply, read = nodes["ApplyZImageReference"].apply, nodes["ReadZImageReference"].read
    with pytest.raises(UsageError, match="encode the prompt with Z-Image's text encoder"):
        apply([[torch.zeros(1, 77, 768), {}]], reference)
    with pytest.raises(UsageError, match="expected 0 <= start < end <= 1"):
        apply(conditioning, reference, start=0.5, end=0.5)
    with pytest.raises(UsageError, match=r"mask of shape \(1, 1, 2, 2\); expected"):
        apply(conditioning, reference, mask=torch.ones(1, 1, 2, 2))
    masked = [[conditioning[0][0], {"mask": torch.ones(2, 4, 4)}]]
    with pytest.raises(UsageError, match="mask of 3 pictures on a conditioning with a mask of 2"):
        apply(masked, reference, mask=torch.ones(3, 4, 4))
    with pytest.raises(UsageError, match="clip and vision are empty"):
        read(held, as_image(a_picture()))
    with pytest.raises(UsageError, match="name is empty"):
        nodes["LoadZImageProjector"].load(" ")


def test_the_workflow_wires_our_nodes_as_they_are(nodes):
    workflow = json.loads((ROOT / "comfyui" / "workflow_api.json").read_text())
    ours = {number: node for number, node in workflow.items() if node["class_type"] in nodes}
    assert len({node["class_type"] for node in ours.values()}) == len(nodes)
    for node in workflow.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in workflow
    for node in ours.values():
        kind = type(nodes[node["class_type"]])
        known = kind.INPUT_TYPES()
        assert (
            set(known["required"])
            <= set(node["inputs"])
            <= set(known["required"]) | set(known.get("optional", {}))
        )
        for name, (type_, *_) in {**known["required"], **known.get("optional", {})}.items():
            value = node["inputs"].get(name)
            source = workflow[value[0]]["class_type"] if isinstance(value, list) else ""
            if source in nodes:
                assert (type_,) == type(nodes[source]).RETURN_TYPES


def test_the_readme_puts_the_folder_where_comfyui_finds_it(tmp_path):
    (command,) = [text for _, text in blocks("README.md") if "custom_nodes" in text]
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    (tmp_path / "comfyui").symlink_to(ROOT / "comfyui")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    (found,) = (tmp_path / "ComfyUI" / "custom_nodes").iterdir()
    assert (found / "__init__.py").samefile(ROOT / "comfyui" / "__init__.py")


def test_the_page_of_the_folder_names_every_node_and_what_it_takes(nodes):
    page = (ROOT / "comfyui" / "README.md").read_text().partition("## Nodes")[2].partition("\n## ")[0]
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == set(nodes)
    for name, node in nodes.items():
        known = type(node).INPUT_TYPES()
        plain = [key for key, (kind, *_) in {**known["required"], **known.get("optional", {})}.items()
                 if isinstance(kind, list) or kind in ("STRING", "FLOAT", "CLIP", "MASK")]  # fmt: skip
        assert [key for key in plain if f"`{key}`" not in rows[name]] == []


def test_the_page_quotes_what_the_nodes_say():
    page = (ROOT / "comfyui" / "README.md").read_text().partition("## When it does not work")[2]
    messages = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    sources = ("comfyui/steering_nodes.py", "comfyui/clip_reading.py", "projector/models/resolve.py")
    said = "".join((ROOT / source).read_text() for source in sources)
    assert len(messages) > 3
    assert [part for message in messages for part in message.split("…") if part.strip() not in said] == []


def test_the_picture_on_the_page_is_of_the_workflow():
    drawn = draw(json.loads((ROOT / "comfyui" / "workflow_api.json").read_text()))
    assert (ROOT / "comfyui" / "workflow.svg").read_text() == drawn
    assert "](workflow.svg)" in (ROOT / "comfyui" / "README.md").read_text()


@pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH names no checkout of ComfyUI")
def test_inside_a_real_comfyui(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "comfyui_script.py"), str(ROOT), str(tmp_path)],
        cwd=os.environ["COMFYUI_PATH"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(
            [os.environ["COMFYUI_PATH"], str(ROOT), os.environ.get("PYTHONPATH", "")]
        )},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    for found in ("prompt", "states", "both", "first", "blend", "picture", "masked"):
        assert told[found] < 1e-3, found
    assert max(told["graft"], told["after_graft"]) < 1e-3
    assert told["graft_changes"] > 0.01
    assert min(told["changes"]) > 3e-3  # a shorter time and a mask make other pictures
    assert told["ranges"] == [[0.0, 0.6], [0.6 + 1e-5, 1.0]]
    assert [rows == marked for rows, marked in told["rows"]] == [True, True]
    assert told["saved"] == 4
