"""Ridge from all inputs to all outputs, against the plain solution with every row written out."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from projector.closed_form.whole_ridge import PENALTIES, fit_whole
from projector.closed_form.whole_start import fixed_wordings
from projector.data.pairs import Conditioning
from projector.data.world import World
from projector.inference.text_encoder import TextEncoder
from projector.models.resolve import resolve_models
from projector.network.architectures import ProjectorNetwork, Shape
from projector.network.whole_map import WholeMap, spread_over
from shards.scenes.captions import canonical, varied
from shards.scenes.scene import sample_scene
from whole_ridge_support import fit_together

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
PAIRS, POSITIONS, ROWS, WIDTH = 40, 3, 4, 5
ALIKE = torch.ones(PAIRS, dtype=torch.float64)


@pytest.fixture(scope="module")
def world():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(PAIRS, POSITIONS, WIDTH, generator=generator) + 2
    turn = 0.3 * torch.randn(POSITIONS * WIDTH, ROWS * WIDTH, generator=generator)
    targets = inputs.flatten(1) @ turn + torch.randn(PAIRS, ROWS * WIDTH, generator=generator) + 1
    return inputs, targets.view(PAIRS, ROWS, WIDTH)


def plain(x, y, penalty):
    """Weights and intercept of ridge by its normal equations."""
    centred = x - x.mean(0)
    square = centred.T @ centred + penalty * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(square, centred.T @ (y - y.mean(0)))
    return weights, y.mean(0) - x.mean(0) @ weights


def applied(found, inputs):
    narrow = torch.einsum("npd,pdr->nr", inputs, found.down)
    return torch.einsum("nr,rqe->nqe", narrow, found.up) + found.bias


def mean_eigenvalue(x):
    centred = x - x.mean(0)
    return float(torch.linalg.eigvalsh(centred @ centred.T).clamp(min=0).mean())


def test_the_penalty_is_the_best_with_each_pair_left_out(world):
    inputs, targets = world
    x, y = inputs.flatten(1).double(), targets.flatten(1).double()
    errors = []
    for penalty in PENALTIES:
        total = 0.0
        for left in range(PAIRS):
            others = [place for place in range(PAIRS) if place != left]
            weights, shift = plain(x[others], y[others], penalty * mean_eigenvalue(x))
            total += float((x[left] @ weights + shift - y[left]).square().sum())
        errors.append(total)
    found = fit_whole(inputs, targets, torch.arange(PAIRS), ALIKE, ROWS * WIDTH, ALONE)
    assert found.penalty == PENALTIES[int(np.argmin(errors))]


@pytest.mark.parametrize("rank", [3, 6, ROWS * WIDTH])
def test_the_map_is_ridge_cut_to_its_best_rank(world, rank):
    inputs, targets = world
    x, y = inputs.flatten(1).double(), targets.flatten(1).double()
    found = fit_whole(inputs, targets, torch.arange(PAIRS), ALIKE, rank, ALONE)
    weights, _ = plain(x, y, found.penalty * mean_eigenvalue(x))
    fitted = (x - x.mean(0)) @ weights
    directions = torch.linalg.svd(fitted, full_matrices=False)[2][:rank]
    expected = fitted @ directions.T @ directions + y.mean(0)
    torch.testing.assert_close(applied(found, inputs).flatten(1).double(), expected, rtol=1e-4, atol=1e-4)
    assert found.down.shape == (POSITIONS, WIDTH, rank)


def test_a_pair_of_weight_two_counts_as_two(world):
    inputs, targets = world
    weights = 1.0 + (torch.arange(PAIRS) % 3 == 0)
    x, y = inputs.flatten(1).double(), targets.flatten(1).double()
    twice = weights.long()
    found = fit_whole(inputs, targets, torch.arange(PAIRS), weights.double(), ROWS * WIDTH, ALONE)
    centred = x - (weights.double() @ x) / weights.sum()
    scaled = centred * (weights / weights.mean()).sqrt()[:, None]
    mean = float(torch.linalg.eigvalsh(scaled @ scaled.T).clamp(min=0).mean())
    # The penalty is of weights of mean 1; repeated pairs have them as they are.
    penalty = found.penalty * mean * float(weights.mean())
    turn, shift = plain(x.repeat_interleave(twice, 0), y.repeat_interleave(twice, 0), penalty)
    torch.testing.assert_close(
        applied(found, inputs).flatten(1).double(), x @ turn + shift, rtol=1e-4, atol=1e-4
    )
    errors = []
    for share in PENALTIES:
        total = 0.0
        for left in range(PAIRS):
            kept = twice.clone()
            kept[left] = 0
            turn, shift = plain(
                x.repeat_interleave(kept, 0),
                y.repeat_interleave(kept, 0),
                share * mean * float(weights.mean()),
            )
            total += float(weights[left] * (x[left] @ turn + shift - y[left]).square().sum())
        errors.append(total)
    assert found.penalty == PENALTIES[int(np.argmin(errors))]


@pytest.mark.parametrize("alike", ["inputs", "targets", "one pair"])
def test_what_does_not_vary_is_mapped_to_the_mean(world, alike):
    inputs, targets = world
    inputs = inputs[:1].expand_as(inputs) if alike == "inputs" else inputs
    targets = targets[:1].expand_as(targets) if alike == "targets" else targets
    count = 1 if alike == "one pair" else PAIRS
    found = fit_whole(inputs[:count], targets[:count], torch.arange(count), ALIKE[:count], 6, ALONE)
    expected = targets[:count].mean(0).expand_as(targets)
    torch.testing.assert_close(applied(found, world[0]), expected, rtol=1e-5, atol=1e-5)
    whole = WholeMap(WIDTH, POSITIONS, 6, ROWS)
    whole.set(found.down, found.up, found.bias)
    torch.testing.assert_close(whole(world[0], None), expected, rtol=1e-5, atol=1e-5)
    whole(world[0], None).square().sum().backward()
    assert whole.up.grad.abs().max() > 0, "a map that gives the mean can still learn"


def test_a_network_starts_at_the_map(world):
    inputs, targets = world
    found = fit_whole(inputs, targets, torch.arange(PAIRS), ALIKE, 6, ALONE)
    network = ProjectorNetwork(Shape("attention", WIDTH, 0, queries=3, suffix=1, positions=POSITIONS))
    network.whole.set(found.down, found.up, found.bias)
    with torch.no_grad():
        rows, ends = network._rows_and_ends(inputs, None)
        assert torch.equal(rows, network(inputs))
    torch.testing.assert_close(torch.cat([rows, ends], 1), applied(found, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["linear", "mlp"])
def test_networks_with_positions_get_the_maps_rows_at_theirs(arch, world):
    inputs, targets = world
    network = ProjectorNetwork(Shape(arch, WIDTH, 7, queries=3, suffix=1, positions=POSITIONS))
    placed = network.standardised(inputs, None)
    found = fit_whole(placed, targets, torch.arange(PAIRS), ALIKE, 6, ALONE)
    network.whole.set(found.down, found.up, found.bias)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with torch.no_grad():
        rows, ends = network._rows_and_ends(placed, None)
        some, _ = network._rows_and_ends(network.standardised(inputs[:2], mask), mask)
    torch.testing.assert_close(torch.cat([rows, ends], 1), applied(found, placed), rtol=1e-4, atol=1e-5)
    lone = network.standardised(inputs[1:2, :1], None).expand(1, 3, -1)  # one input stands at all places
    expected = applied(found, lone)[0, :3].mean(0)  # and hears the mean of the rows
    torch.testing.assert_close(some[1, 0], expected, rtol=1e-4, atol=1e-5)


def test_inputs_are_spread_without_their_padding():
    x = torch.randn(2, 12, WIDTH)
    mask = torch.arange(12)[None] < torch.tensor([[12], [6]])
    placed = spread_over(torch.where(mask[..., None], x, float("nan")), mask, 3)
    torch.testing.assert_close(placed[0], x[0].view(3, 4, WIDTH).mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(placed[1], x[1, :6].view(3, 2, WIDTH).mean(1), rtol=1e-5, atol=1e-6)


def test_two_workers_find_what_one_does(world, tmp_path):
    inputs, targets = world
    jobs = [(rank, 2, str(tmp_path / "meeting"), inputs, targets, ALIKE, 6) for rank in range(2)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers:
        first, second = (applied(found, inputs) for found in workers.map(fit_together, jobs))
    alone = applied(fit_whole(inputs, targets, torch.arange(PAIRS), ALIKE, 6, ALONE), inputs)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=1e-5, atol=1e-5)


def test_a_scene_is_learnt_in_its_fixed_wording_and_other_captions_in_their_own():
    folder = resolve_models("tiny").image.path
    generator = np.random.default_rng(0)
    scene = sample_scene(generator, 1)
    own = torch.randn(7, 64)
    items = [Conditioning(own, 0, varied(scene, generator)), Conditioning(own, 1, "two dogs in the rain")]
    first, second = fixed_wordings(items, folder)
    encoder = TextEncoder.from_pretrained(folder, device="cpu", dtype=torch.float32)
    assert torch.equal(first, encoder.encode([canonical(scene)])[0].embeddings)
    assert second is own
