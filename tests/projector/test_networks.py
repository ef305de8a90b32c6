import pytest
import torch

from projector.network.architectures import ProjectorNetwork, Shape, safe_std
from projector.network.attention import relative_positions
from shards.errors import UsageError
from shards.format.statistics import RunningStatistics

SINK = 13504.0  # the largest activation published for Qwen3-4B, at the attention sink


def network(arch, width=16, **overrides):
    torch.manual_seed(0)
    made = ProjectorNetwork(Shape(arch, width, **({"hidden": 24, "queries": 5} | overrides)))
    for parameter in made.parameters():  # the last layer starts at zero, which would make many checks empty
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.mark.parametrize(
    ("arch", "expected"), [("linear", 6_556_160), ("mlp", 20_978_176), ("attention", 26_385_920)]
)
def test_parameters_at_the_guides_width(arch, expected):
    with torch.device("meta"):
        assert ProjectorNetwork(Shape(arch, 2560, 4096, 64)).parameter_count == expected
    assert abs(expected / {"linear": 6.5e6, "mlp": 20.9e6, "attention": 26e6}[arch] - 1) < 0.05


@pytest.mark.parametrize(("arch", "millions"), [("linear", 32.5), ("mlp", 46.9), ("attention", 48.4)])
def test_parameters_with_the_whole_ridge(arch, millions):
    """As README and `train.arch` give them, for the five rows of the real template's end."""
    with torch.device("meta"):
        shape = Shape(arch, 2560, 4096, 64, suffix=5, positions=64)
        assert ProjectorNetwork(shape).parameter_count / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("arch", ["linear", "mlp", "attention"])
def test_an_untrained_network_predicts_the_targets_mean(arch):
    made = ProjectorNetwork(Shape(arch, 16, 24, 5))
    statistics = RunningStatistics(16)
    statistics.update(torch.randn(50, 16).numpy() * 3 + 7)
    made.set_statistics(statistics, statistics)
    out = made.project(torch.randn(2, 9, 16))
    assert out.shape == (2, 5 if arch == "attention" else 9, 16)
    torch.testing.assert_close(out, torch.from_numpy(statistics.mean).float().expand_as(out))


@pytest.mark.parametrize("arch", ["linear", "mlp", "attention"])
def test_raw_to_raw_equals_standardise_map_and_undo(arch):
    made = network(arch)
    inputs, targets = RunningStatistics(16), RunningStatistics(16)
    inputs.update(torch.randn(99, 16).numpy() * 40 + 300)
    targets.update(torch.randn(99, 16).numpy() * 5 - 20)
    x = torch.randn(3, 9, 16) * 40 + 300
    standardised = (x - torch.from_numpy(inputs.mean).float()) / torch.from_numpy(inputs.std()).float()
    plain = network(arch)(standardised)
    made.set_statistics(inputs, targets)
    expected = plain * torch.from_numpy(targets.std()).float() + torch.from_numpy(targets.mean).float()
    torch.testing.assert_close(made.project(x), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(made.standardise_target(expected), plain, rtol=1e-4, atol=1e-4)


def test_attention_does_not_see_padding():
    made = network("attention")
    x = torch.randn(2, 9, 16)
    mask = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    out = made(x, mask)
    torch.testing.assert_close(out[1], made(x[1:, :4])[0])
    x[1, 4:] = 1e4
    torch.testing.assert_close(made(x, mask)[1], out[1])


def test_attention_sees_where_a_token_stands():
    made = network("attention")
    x = torch.randn(1, 9, 16)
    assert not torch.allclose(made(x), made(x.flip(1)), atol=1e-3)


def test_relative_positions_depend_on_the_share_of_the_length():
    positions = relative_positions(torch.tensor([10, 5]), 10, 7)
    assert positions.shape == (2, 10, 7)
    torch.testing.assert_close(positions[0, 1::2][:2] * 0, positions[0, :2] * 0)
    assert positions.abs().max() <= 1
    # the middle of the third of five positions is the middle of the fifth and sixth of ten
    torch.testing.assert_close(
        relative_positions(torch.tensor([5]), 5, 7)[0], relative_positions(torch.tensor([5]), 10, 7)[0, :5]
    )


@pytest.mark.parametrize("arch", ["linear", "mlp", "attention"])
def test_bfloat16_autocast_survives_the_largest_activations(arch):
    made = network(arch, width=64)
    x = torch.randn(2, 12, 64)
    x[..., 4] = SINK + 50 * torch.randn(2, 12)
    statistics = RunningStatistics(64)
    statistics.update(x.flatten(0, 1).numpy())
    made.set_statistics(statistics, statistics)
    exact = made.project(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = made.project(x)
    assert rounded.dtype == torch.float32
    error = ((rounded - exact) / made.target_std).abs().max()
    assert error < 0.1, "bfloat16 steps at 13,504 are 64 wide: the mean must go before the rounding"


def test_a_dimension_that_never_moves_is_not_divided_by_zero():
    assert safe_std(torch.tensor([2.0, 0.0, 1e-9])).tolist() == [2.0, 1.0, 1.0]
    assert safe_std(torch.zeros(2)).tolist() == [1.0, 1.0]


def test_a_width_of_nothing():
    with pytest.raises(UsageError, match="width 0"):
        ProjectorNetwork(Shape("linear", 0, 1, 1))


@pytest.mark.parametrize("arch", ["linear", "ridge"])
def test_a_linear_network_folds_into_one_layer(arch):
    made = network(arch)
    for name in ("input_mean", "target_mean", "restore_shift"):
        getattr(made, name).normal_(0, 50)
    for name in ("input_std", "target_std", "restore_scale"):
        getattr(made, name).uniform_(0.5, 3)
    made.restore_strength.fill_(0.4)
    x = made.input_mean + 3 * torch.randn(2, 9, 16)
    torch.testing.assert_close(made.folded()(x), made.project(x), rtol=1e-4, atol=1e-3)
    with pytest.raises(UsageError, match="mlp is no linear map"):
        network("mlp").folded()


@pytest.mark.parametrize("masked", [False, True])
def test_absorbed_attention_is_exact(masked):
    """At inference the key and value matrices move to the queries' side; training computes keys and values."""
    made = network("attention")
    x, mask = torch.randn(2, 40, 16), None
    if masked:
        mask = torch.ones(2, 40, dtype=torch.bool)
        mask[1, 25:] = False
    trained = made(x, mask).detach()
    called = []
    absorbed, made.core._attend_absorbed = (
        made.core._attend_absorbed,
        lambda *a: called.append(1) or absorbed(*a),
    )
    with torch.no_grad():
        torch.testing.assert_close(made(x, mask), trained, rtol=1e-4, atol=1e-5)
        made(x[:, :10], None if mask is None else mask[:, :10])  # short: not worth it
    assert called == [1]


@pytest.mark.parametrize("arch", ["mlp", "attention"])
def test_a_residual_network_starts_at_its_base(arch):
    made = ProjectorNetwork(Shape(arch, 16, 24, 5, residual=True))
    linear = torch.nn.Linear(16, 16)
    with torch.no_grad():
        made.start_from(linear)
    x, mask = torch.randn(2, 12, 16), torch.ones(2, 12, dtype=torch.bool)
    mask[1, 8:] = False
    expected = linear(x)
    if arch == "mlp":
        torch.testing.assert_close(made(x, mask), expected)
    else:  # spread over the queries by area, which keeps the mean of what exists
        outputs = made(x, mask)
        torch.testing.assert_close(outputs[1].mean(0), expected[1, :8].mean(0), rtol=1e-4, atol=1e-5)
    assert made.parameter_count == ProjectorNetwork(Shape(arch, 16, 24, 5)).parameter_count
    made.start_from(linear)  # with gradients on, as a training does it
    assert not any(buffer.requires_grad for buffer in made.buffers())


def test_padding_that_no_sequence_needs_changes_nothing():
    made = ProjectorNetwork(Shape("attention", 16, 24, 5, residual=True), random_start=True).eval()
    made.start_from(torch.nn.Linear(16, 16))
    x, mask = torch.randn(2, 12, 16), torch.arange(12)[None] < torch.tensor([[9], [7]])
    torch.testing.assert_close(made(x, mask), made(x[:, :9], mask[:, :9]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["linear", "mlp", "attention"])
def test_reduced_products_cost_no_more_than_storing_does(arch):
    """As `Projector` calls a network on a GPU; inputs as far from zero as hidden states are."""
    torch.manual_seed(0)
    network = ProjectorNetwork(Shape(arch, 64, 100, 8, residual=arch != "linear"), random_start=True)
    if network.shape.residual:
        network.base_weight.copy_(torch.randn(64, 64) / 8)
    mean, std = 1000 * torch.randn(64), torch.rand(64) + 0.5
    network.input_mean.copy_(mean)
    network.input_std.copy_(std)
    inputs = mean + std * torch.randn(2, 40, 64)
    with torch.no_grad():
        exact = network.project(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            reduced = network.project(inputs)
    assert float((reduced - exact).norm() / exact.norm()) < 0.01
