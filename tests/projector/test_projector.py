import json
import os

import pytest
import torch
from safetensors.torch import load, save

from projector.network.architectures import ProjectorNetwork, Shape
from projector.network.checkpoint import put_network
from projector.network.projector import Projector
from shards.errors import StorageError, UsageError
from shards.format.statistics import RunningStatistics
from shards.stores.local import open_storage

WIDTH = 16


def projector(arch="mlp"):
    torch.manual_seed(1)
    network = ProjectorNetwork(Shape(arch, WIDTH, 24, 5))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    statistics = RunningStatistics(WIDTH)
    statistics.update(torch.randn(40, WIDTH).numpy() * 9 + 2)
    network.set_statistics(statistics, statistics)
    config = {"format": 1, "arch": arch, "width": WIDTH, "layer": -6, "text_mode": "none", "tokens": "image"}
    return Projector(network, config | {"network": network.shape.as_json()})


@pytest.mark.parametrize("arch", ["linear", "mlp", "attention"])
def test_save_load_identical_output(tmp_path, arch):
    made = projector(arch)
    made.save_pretrained(str(tmp_path))
    loaded = Projector.from_pretrained(str(tmp_path))
    x = torch.randn(9, WIDTH)
    assert torch.equal(loaded(x), made(x))
    assert loaded.config == made.config
    assert (loaded.layer, loaded.text_mode, loaded.tokens, loaded.width) == (-6, "none", "image", WIDTH)
    assert loaded.keeps_positions == (arch != "attention")
    assert "-6" in repr(loaded)


@pytest.mark.parametrize("arch", ["linear", "mlp", "attention"])
def test_same_rank_and_dtype_out_as_in(arch):
    made, x = projector(arch), torch.randn(2, 9, WIDTH)
    outputs = 5 if arch == "attention" else 9
    assert made(x).shape == (2, outputs, WIDTH)
    torch.testing.assert_close(made(x[0]), made(x)[0], rtol=1e-5, atol=1e-5)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert made(x.to(dtype)).dtype == dtype
    assert not made(x).requires_grad


def test_masked_positions_do_not_reach_attention():
    made, x = projector("attention"), torch.randn(9, WIDTH)
    mask = torch.tensor([True] * 6 + [False] * 3)
    torch.testing.assert_close(made(x, mask), made(x[:6]))


@pytest.mark.parametrize("shape", [(9, 8), (16,), (1, 2, 9, 16), (0, 16)])
def test_embeddings_that_do_not_fit(shape):
    with pytest.raises(UsageError, match=r"do not fit; this projector takes \(seq, 16\)"):
        projector()(torch.randn(shape))


def test_embeddings_that_are_no_floats():
    with pytest.raises(UsageError, match="pass a float dtype"):
        projector()(torch.ones(2, WIDTH, dtype=torch.int64))


def test_folders_that_hold_no_projector(tmp_path):
    with pytest.raises(UsageError, match=r"no projector there \(config.json is missing\)"):
        Projector.from_pretrained(str(tmp_path))
    projector().save_pretrained(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model.safetensors is missing"):
        Projector.from_pretrained(str(tmp_path))
    projector("linear").save_pretrained(str(tmp_path / "other"))
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"does not fit config.json"):
        Projector.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"format": 1}', "does not describe a projector"),
        ('{"format": 2}', "format 2, this program reads 1"),
        ("[1, 2]", "it is no JSON object"),
        ("null", "it is no JSON object"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_configs_that_are_none(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        Projector.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layer", 8, "layer is 8, expected counted from the end"),
        ("layer", None, "layer is None"),
        ("width", 32, "width is 32, expected 16, that of the weights"),
        ("text_mode", "both", "text_mode is 'both', expected one of caption, none, mixed"),
        ("text_mode", [], r"text_mode is \[\]"),
        ("tokens", "vision", "tokens is 'vision', expected one of image, all, text"),
        ("dataset", {"vl_tokens": "pooled:0"}, "vl_tokens is 'pooled:0', expected all or pooled:N"),
        ("dataset", "a folder", "vl_tokens is 'a folder'"),
        ("template", {"vl_limit": "high"}, "vl_limit is 'high', expected a number"),
        ("template", [3], r"vl_limit is \[3\]"),
        ("network", {"arch": "mlp"}, "does not describe a projector"),
        ("network", [], "does not describe a projector"),
        (
            "network",
            {"arch": "transformer", "width": 16, "hidden": 24, "queries": 5},
            "'transformer' is unknown",
        ),
        (
            "network",
            {"arch": "mlp", "width": 16, "hidden": -24, "queries": 5},
            "does not describe a projector",
        ),
        (
            "network",
            {"arch": "mlp", "width": "16", "hidden": 24, "queries": 5},
            "does not describe a projector",
        ),
        ("network", {"arch": "mlp", "width": 10**9, "hidden": 10**9, "queries": 5}, "the network has"),
    ],
)
def test_descriptions_that_do_not_say_what_the_weights_are_for(tmp_path, key, value, message):
    made = projector()
    Projector(made.network, made.config | {key: value}).save_pretrained(str(tmp_path))
    with pytest.raises(UsageError, match=message):
        Projector.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("core.0.weight"), "core.0.weight is missing"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "'extra' is no tensor of this network"),
        (
            lambda tensors: tensors.update(input_mean=torch.ones(8)),
            r"input_mean is \(8,\) torch.float32, .* \(16,\)",
        ),
        (lambda tensors: tensors.update(input_mean=torch.ones(16).half()), "input_mean is .* torch.float16"),
        (lambda tensors: tensors["core.2.bias"].fill_(float("nan")), "core.2.bias holds NaN"),
        (lambda tensors: tensors["input_std"].zero_(), "input_std holds numbers that are not above 0"),
    ],
)
def test_weights_that_are_not_the_networks(tmp_path, damage, message):
    projector().save_pretrained(str(tmp_path))
    path = tmp_path / "model.safetensors"
    tensors = load(path.read_bytes())
    damage(tensors)
    path.write_bytes(save(tensors))
    with pytest.raises(UsageError, match=message):
        Projector.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_weights_that_were_cut_short(tmp_path, cut):
    projector().save_pretrained(str(tmp_path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UsageError, match=r"model.safetensors does not fit config.json"):
        Projector.from_pretrained(str(tmp_path))


def test_a_pickle_is_no_weights(tmp_path):
    projector().save_pretrained(str(tmp_path))
    torch.save(projector().network.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"model.safetensors does not fit config.json"):
        Projector.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path, name):
    projector().save_pretrained(str(tmp_path))
    put_network(open_storage(str(tmp_path)), projector().network)  # without the description in its head
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises((UsageError, StorageError)) as caught:
        Projector.from_pretrained(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_is_readable_json(tmp_path):
    projector().save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["network"]["hidden"] == 24


def test_the_templates_constants_go_before_projected_tokens(tmp_path):
    network = ProjectorNetwork(Shape("linear", 8, 1, 1, prefix=2))
    network.text_prefix.copy_(torch.arange(16.0).view(2, 8))
    config = projector().config | {"width": 8, "network": network.shape.as_json()}
    Projector(network, config).save_pretrained(str(tmp_path))
    whole = Projector.from_pretrained(str(tmp_path)).with_template(torch.ones(3, 8, dtype=torch.bfloat16))
    assert whole.dtype == torch.bfloat16
    assert whole.float().equal(torch.cat([torch.arange(16.0).view(2, 8), torch.ones(3, 8)]))
