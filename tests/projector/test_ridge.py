import numpy as np
import pytest
import torch
from synthetic import Synthetic

from projector.closed_form.ridge import PENALTIES, NormalEquations, Spectrum, fit_ridge
from projector.data.align import Alignment
from projector.data.packed import Held, statistics_of
from projector.data.world import World
from projector.network.architectures import ProjectorNetwork, Shape

WIDTH = 12
ALONE = World(0, 1, torch.device("cpu"))


def rows(seed, count):
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, WIDTH)) @ np.diag(np.linspace(0.1, 2, WIDTH))
    mix = np.random.default_rng(99).normal(size=(WIDTH, WIDTH))
    return x, x @ mix + 3 * random.normal(size=(count, WIDTH))


def equations(x, y, blocks=3):
    made = NormalEquations.empty(WIDTH)
    for part in np.array_split(np.arange(len(x)), blocks):
        made.update(torch.from_numpy(x[part]), torch.from_numpy(y[part]), torch.ones(len(part)))
    return made


@pytest.mark.parametrize("penalty", [0.0, 0.01, 1.0, 30.0])
def test_exact_against_numpy(penalty):
    x, y = rows(0, 60)
    made = equations(x, y)
    covariance = x.T @ x / 60
    ridge = penalty * np.trace(covariance) / WIDTH * np.eye(WIDTH)
    expected = np.linalg.solve(covariance + ridge, x.T @ y / 60)
    np.testing.assert_allclose(
        Spectrum.of(made).solve(made, penalty).numpy(), expected, rtol=1e-9, atol=1e-12
    )


def test_the_error_of_every_penalty_is_that_of_the_solution_it_names():
    x, y = rows(0, 30)
    held_x, held_y = rows(1, 20)
    made, held = equations(x, y), equations(held_x, held_y)
    spectrum = Spectrum.of(made)
    for penalty, error in zip(PENALTIES, spectrum.validation_errors(made, held), strict=True):
        prediction = held_x @ spectrum.solve(made, penalty).numpy()
        assert error == pytest.approx(((prediction - held_y) ** 2).mean(), rel=1e-9)


def test_more_dimensions_than_rows():
    x, y = rows(0, 5)
    weights = Spectrum.of(equations(x, y)).solve(equations(x, y), 0.1)
    assert weights.isfinite().all()


@pytest.mark.parametrize("kind", ["pool", "mean", "per_token"])
def test_the_fitted_network_is_the_ridge_solution_raw_to_raw(kind):
    world = Synthetic(WIDTH, image_tokens=10, text_tokens=(3, 8), latent=3)
    alignment = Alignment(kind, 5)

    def load(source):
        pairs = source.read(0, source.count)
        return Held.load(pairs, alignment, keeps_positions=True, width=WIDTH, dtype=torch.float32)

    train_set, val_set = load(world.source(40)), load(world.source(30, first=500))
    network = ProjectorNetwork(Shape("ridge", WIDTH, 1, 1))
    network.set_statistics(
        statistics_of(train_set.inputs, network.shape.width),
        statistics_of(train_set.targets, network.shape.width),
    )
    found = fit_ridge(network, train_set, val_set, alignment, ALONE)

    x, y = train_set.inputs.values.double().numpy(), train_set.targets.values.double().numpy()
    z, w = (x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0)
    covariance = z.T @ z / len(z)
    penalty = found["penalty"] * np.trace(covariance) / WIDTH
    expected = np.linalg.solve(covariance + penalty * np.eye(WIDTH), z.T @ w / len(z))
    held = val_set.inputs.values.double().numpy()
    prediction = ((held - x.mean(0)) / x.std(0)) @ expected * y.std(0) + y.mean(0)
    with torch.no_grad():
        outputs = network.project(torch.from_numpy(held).float()[None])[0].numpy()
    np.testing.assert_allclose(outputs, prediction, rtol=1e-3, atol=1e-3)


def test_soft_matching_finds_content_that_positions_hide():
    """Image tokens show concepts in another order than the caption names them: only their match tells which."""
    world = Synthetic(64, image_tokens=24, text_tokens=(6, 16), latent=6, image_signal=0.8)
    train_pairs, val_pairs = world.source(150), world.source(40, first=5000)

    def spread_within_a_sample(kind):
        alignment = Alignment(kind, 24)
        sets = [
            Held.load(iter(s), alignment, keeps_positions=True, width=64) for s in (train_pairs, val_pairs)
        ]
        network = ProjectorNetwork(Shape("ridge", 64, 1, 1))
        network.set_statistics(
            statistics_of(sets[0].inputs, network.shape.width),
            statistics_of(sets[0].targets, network.shape.width),
        )
        fit_ridge(network, *sets, alignment, ALONE)
        with torch.no_grad():
            outputs = [network.project(pair.vl[None])[0] / network.target_std for pair in val_pairs]
        return float(torch.stack([tokens.var(0).mean() for tokens in outputs]).mean())

    assert spread_within_a_sample("soft") > 2 * spread_within_a_sample("pool")
