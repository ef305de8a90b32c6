"""Encoder weights in 8 bits: each within half a step, states close to the full ones, half the bytes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from projector.inference.text_encoder import TextEncoder
from projector.making.generated import PairSettings
from projector.making.shard_maker import FusedMaker
from projector.models.int8 import Int8Linear
from ray_jobs.cli.run_options import BuildOptions
from ray_jobs.jobs.build import dataset_settings, pair_settings
from ray_jobs.planning.model_placement import needs
from shards.format.plan import make_plan
from shards.format.sample import Sample
from shards.prompts.builtin import builtin_prompts
from shards.prompts.prompt import Prompt

SETTINGS = PairSettings(
    height=64,
    width=64,
    steps=2,
    guidance=0.0,
    layers=(-8, -6),
    text_modes=("caption", "none"),
    vl_tokens="all",
    max_tokens=60,
    dtype="float32",
    batch_size=4,
    quantize="int8",
)
CAPTIONS = ["a red fox", "two\nlines", "the passing of time"]
# Of a state's norm; 2.6% at most on the tiny models, whose random weights spread like normal numbers.
MOST_ERROR = 0.05
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def encoders(tiny):
    torch.set_num_threads(1)
    where = {"device": "cpu", "dtype": torch.float32}
    return [
        TextEncoder.from_pretrained(str(tiny / "image"), quantize=quantize, **where)
        for quantize in ("none", "int8")
    ]


def made(tiny_sources, settings, **how):
    torch.set_num_threads(1)
    plan = make_plan(
        [Prompt(c) for c in CAPTIONS], seed=1, val_fraction=0, samples_per_shard=50, segments=(len(CAPTIONS),)
    )
    maker = FusedMaker.load(tiny_sources, settings, **how)
    samples = [sample for step in maker.steps(plan.shards[0].samples, (), {}) for sample in step.run()]
    assert all(isinstance(sample, Sample) for sample in samples)
    return maker, samples


def error(full, rounded):
    full, rounded = full.astype(np.float64), rounded.astype(np.float64)
    return np.linalg.norm(full - rounded) / np.linalg.norm(full)


def test_each_output_has_a_scale_of_its_own(encoders):
    """127 steps to the largest weight of a row, every weight within half of one, and the product with those weights."""
    drawn, layers = np.random.default_rng(0), 0
    for name, layer in encoders[0].model.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        layers += 1
        rounded = encoders[1].model.get_submodule(name)
        full = layer.weight.detach().numpy().astype(np.float64)
        step = np.abs(full).max(axis=1, keepdims=True) / 127
        held = rounded.weight.numpy().astype(np.float64) * step
        assert np.all(np.abs(held - full) <= 0.5001 * step), name
        inputs = drawn.standard_normal((5, full.shape[1]), dtype=np.float32)
        with torch.no_grad():
            outputs = rounded(torch.from_numpy(inputs)).numpy()
        np.testing.assert_allclose(outputs, inputs.astype(np.float64) @ held.T, atol=1e-5, err_msg=name)
    assert layers == 7 * len(encoders[0].model.layers)


def test_a_row_of_zeros_and_a_bias():
    layer = torch.nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0] = 0
    outputs = Int8Linear(layer)(torch.ones(1, 3))
    assert outputs[0, 0] == layer.bias[0]
    assert torch.isfinite(outputs).all()


def test_only_linear_layers_are_rounded(encoders):
    full, rounded = (encoder.model.state_dict() for encoder in encoders)
    for name, weight in full.items():
        kept = "embed" in name or "norm" in name
        assert rounded[name].dtype == (weight.dtype if kept else torch.int8), name
        assert not kept or torch.equal(rounded[name], weight), name


def test_a_sample_is_close_to_the_full_one_and_not_the_same(tiny_sources):
    _, full = made(tiny_sources, replace(SETTINGS, quantize="none"))
    _, rounded = made(tiny_sources, SETTINGS)
    for before, after in zip(full, rounded, strict=True):
        for name in ("text", "vl.caption.-8", "vl.none.-6"):
            if name == "text" or before.image == after.image:
                assert 0 < error(before.tensors[name], after.tensors[name]) < MOST_ERROR, name


def test_one_model_at_a_time_makes_the_same(tiny_sources):
    _, together = made(tiny_sources, SETTINGS)
    _, apart = made(tiny_sources, SETTINGS, one_at_a_time=True)
    for a, b in zip(together, apart, strict=True):
        assert a.image == b.image
        assert all(np.array_equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def test_what_it_is_reckoned_to_take(tiny_sources, encoders):
    wanted = needs(tiny_sources, replace(SETTINGS, dtype="float32"))
    full = needs(tiny_sources, replace(SETTINGS, dtype="float32", quantize="none"))
    assert wanted.image == full.image
    assert wanted.text < 0.6 * full.text
    # The last block, which is dropped, is reckoned with; scales are not.
    held = sum(weight.nbytes for weight in encoders[1].model.state_dict().values())
    assert 0.8 * wanted.text < held < wanted.text


def test_it_is_part_of_the_fingerprint_where_it_is_used(tiny_sources):
    options = [BuildOptions(quantize=quantize) for quantize in ("none", "int8")]
    without, with_it = (
        dataset_settings(given, builtin_prompts("en"), tiny_sources, pair_settings(given, on_gpu=False))
        for given in options
    )
    assert "quantize" not in without, "datasets begun before there was the option go on"
    assert with_it == without | {"quantize": "int8"}
