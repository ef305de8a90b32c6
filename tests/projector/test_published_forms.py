"""The forms in which a projector is published: each gives the projector's own outputs, and none holds more."""

import io
import json
import zipfile

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load
from torch.nn import functional

from projector.network import publishing as export
from projector.network.architectures import ProjectorNetwork, Shape
from projector.network.projector import Projector
from projector.network.publishing import folded_bytes, onnx_bytes, program_bytes, program_of, without_places
from shards.errors import UsageError
from shards.format.statistics import RunningStatistics

WIDTH = 16
SHAPES = [(1, 1), (2, 5), (1, 9), (3, 64)]  # shorter and longer than twice attention's queries, and as traced
# Architecture, whether it starts at ridge, and rows of the template's end: with any, inputs carry their positions.
CASES = [
    ("linear", False, 0),
    ("mlp", True, 0),
    ("attention", False, 0),
    ("attention", True, 0),
    ("linear", False, 4),
    ("mlp", False, 4),
    ("attention", False, 4),
]


def raw(*shape):
    """Hidden states as they are: means hundreds of times some dimensions' spread, and first a sink's 13,504."""
    x = torch.randn(*shape, WIDTH) * torch.logspace(-1, 2, WIDTH) + 40
    x[..., 0, 4] = 13_504.0
    return x


@pytest.fixture(scope="module")
def made():
    """Projectors by architecture and whether they start at ridge, with their programs; tracing takes a second."""
    found = {}
    for arch, residual, suffix in CASES:
        torch.manual_seed(1)
        network = ProjectorNetwork(
            Shape(arch, WIDTH, 24, 5, residual=residual, suffix=suffix, positions=9 * (suffix > 0)),
            random_start=True,
        )
        if network.whole is not None:
            network.whole.set(*(torch.randn_like(each) / 9 for each in network.whole.parameters()))
        statistics = RunningStatistics(WIDTH)
        statistics.update(raw(200)[1:].numpy())
        network.set_statistics(statistics, statistics)
        if residual:
            network.start_from(torch.nn.Linear(WIDTH, WIDTH))
        outputs = RunningStatistics(WIDTH)
        outputs.update(torch.randn(50, WIDTH).numpy() / 2 + 1)
        network.set_restoration(outputs, statistics, 0.5)
        projector = Projector(network, {})
        found[arch, residual, suffix] = (projector, program_of(projector.network))
    return found


@torch.no_grad()
def expected_of(projector, x):
    network = projector.network
    return network.conditioning(x)[0] if network.shape.suffix else projector(x)


@pytest.mark.parametrize("case", CASES)
def test_the_program_gives_whole_conditionings_or_projected_rows(made, case):
    projector, program = made[case]
    loaded = torch.export.load(io.BytesIO(program_bytes(program))).module()
    for shape in SHAPES:
        x = raw(*shape)
        torch.testing.assert_close(loaded(x), expected_of(projector, x), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("case", [CASES[1], CASES[3]])  # the other two are parts of these
def test_onnx_gives_the_projectors_outputs(made, case):
    projector, program = made[case]
    data = onnx_bytes(program)
    session = onnxruntime.InferenceSession(data)
    for shape in SHAPES:
        x = raw(*shape)
        found = session.run(["embeddings"], {"vl": x.numpy()})[0]
        np.testing.assert_allclose(found, expected_of(projector, x).numpy(), rtol=1e-4, atol=1e-2)
    assert b"networks.py" not in data


@pytest.mark.parametrize("case", CASES)
def test_the_programs_file_holds_no_pickle_and_no_path(made, case):
    with zipfile.ZipFile(io.BytesIO(program_bytes(made[case][1]))) as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    weights = json.loads(files["data/weights/model_weights_config.json"])["config"]
    assert weights
    assert not any(entry["use_pickle"] for entry in weights.values())
    assert json.loads(files["data/constants/model_constants_config.json"])["config"] == {}
    assert files["data/sample_inputs/model.pt"] == b""
    assert not [name for name, data in files.items() if b".py" in data or data[:2] in (b"PK", b"\x80\x02")]


def test_one_plain_layer_is_the_whole_linear_projector(made):
    projector, _ = made["linear", False, 0]
    layer = load(folded_bytes(projector.network))
    x = raw(3, 9)[:, 1:]  # without the sink, which projectors are not given
    expected = projector(x)
    off = (
        functional.linear(x, layer["weight"], layer["bias"]) - expected
    ).abs() / projector.network.target_std
    assert float(off.max()) < 1e-3
    assert sorted(layer) == ["bias", "weight"]
    with pytest.raises(UsageError, match="mlp is no linear map"):
        folded_bytes(made["mlp", True, 0][0].network)


def test_a_missing_onnx_is_said_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(UsageError, match=r"pip install 'z-image-projector\[onnx\]'"):
        export.check_onnx()


def test_places_are_left_out_wherever_they_stand():
    content = {
        "dataset": {"root": "/home/me/d", "fingerprint": "f", "also": [{"root": "s3://b", "pairs": 3}]},
        "options": {"data": "/d", "output": "/o", "cache": "/c", "also": {"/secret": 0.5}, "arch": "mlp"},
        "list": [{"checkpoint": "/x", "kept": [1]}],
    }
    assert without_places(content) == {
        "dataset": {"fingerprint": "f", "also": [{"pairs": 3}]},
        "options": {"arch": "mlp"},
        "list": [{"kept": [1]}],
    }


def test_a_network_with_positions_folds_into_no_layer(made):
    projector, _ = made["linear", False, 4]
    with pytest.raises(UsageError, match="linear with positions is no linear map"):
        folded_bytes(projector.network)
