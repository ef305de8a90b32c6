import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from projector.data.align import (
    SINKHORN_ROUNDS,
    Alignment,
    area_pool,
    area_weights,
    masked_mean,
    position_mask,
    soft_targets,
    transport_plan,
)

lengths = st.integers(1, 40)


def pooled_by_hand(tokens: np.ndarray, length: int) -> np.ndarray:
    """Cut every token into `length` slices, so that each target position is a plain mean of whole slices."""
    return np.repeat(tokens, length, axis=0).reshape(length, len(tokens), -1).mean(axis=1)


@given(lengths, lengths)
def test_area_pooling_averages_what_each_position_covers(n, m):
    tokens = np.random.default_rng([n, m]).normal(size=(n, 3))
    np.testing.assert_allclose(
        area_pool(torch.from_numpy(tokens), m).numpy(), pooled_by_hand(tokens, m), atol=1e-12
    )


@given(lengths, lengths)
def test_area_pooling_keeps_the_mean_and_reads_every_token(n, m):
    weights = area_weights(torch.tensor([n]), torch.tensor([m]))[0].numpy()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=0), m / n, atol=1e-12)


def test_a_batch_of_weights_is_each_ones_own_with_zeros_around():
    sources, targets = torch.tensor([5, 2, 7]), torch.tensor([3, 4, 1])
    weights = area_weights(sources, targets)
    assert weights.shape == (3, 4, 7)
    for row, n, m in zip(weights, sources, targets, strict=True):
        torch.testing.assert_close(row[:m, :n], area_weights(n[None], m[None])[0])
        assert row[m:].eq(0).all()
        assert row[:, n:].eq(0).all()


def test_pooling_is_in_float32_even_of_bfloat16():
    tokens = torch.full((1000, 2), 13504.0, dtype=torch.bfloat16)
    pooled = area_pool(tokens, 7)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, torch.full((7, 2), 13504.0))


@pytest.mark.parametrize(("kind", "positions"), [("pool", [8, 5]), ("mean", [1, 1]), ("per_token", [20, 4])])
def test_the_caption_decides_the_positions(kind, positions):
    alignment = Alignment(kind, length=8)
    assert [alignment.positions(64, 20), alignment.positions(4, 5)] == positions


def test_per_token_takes_positions_as_they_are_but_spreads_queries():
    tokens = torch.arange(6.0)[:, None]
    alignment = Alignment("per_token", length=8)
    assert alignment.bring(tokens, 3).flatten().tolist() == [0, 1, 2]
    spread = alignment.bring(tokens, 3, own_positions=False).flatten()
    torch.testing.assert_close(spread, torch.tensor([0.5, 2.5, 4.5]))


def test_position_mask():
    assert position_mask(torch.tensor([0, 2]), 3).tolist() == [[False] * 3, [True, True, False]]


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 30.0))
def test_transport_moves_equal_mass_from_every_token_to_every_token(s, t, strength):
    torch.manual_seed(s * 100 + t)
    rows, columns = position_mask(torch.tensor([s, 1]), s), position_mask(torch.tensor([t, t]), t)
    plan = transport_plan(strength * torch.randn(2, s, t).double(), rows, columns)
    torch.testing.assert_close(plan[0].sum(1), torch.ones(s).double())
    torch.testing.assert_close(plan[1, 0], torch.full((t,), 1 / t).double(), atol=1e-6, rtol=1e-6)
    if strength < 3:  # the sharper, the slower the columns settle
        torch.testing.assert_close(plan[0].sum(0), torch.full((t,), s / t).double(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("strength", [1.0, 10.0, 100.0])
def test_transport_is_sinkhorns_in_the_logarithm(strength):
    torch.manual_seed(0)
    similarity = strength * torch.randn(1, 9, 7)
    similarity[0, 0, 0] = 250.0  # one pair of tokens that outdoes all others
    scores, u, v = similarity.double(), torch.zeros(1, 9).double(), torch.zeros(1, 7).double()
    for _ in range(SINKHORN_ROUNDS):
        v = -math.log(7) - (scores + u[:, :, None]).logsumexp(1)
        u = -math.log(9) - (scores + v[:, None]).logsumexp(2)
    expected = 9 * (scores + u[:, :, None] + v[:, None]).exp()
    mask = torch.ones(1, 9, dtype=torch.bool)
    found = transport_plan(similarity, mask, mask[:, :7])
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


def test_masked_tokens_take_no_part_in_the_transport():
    similarity = torch.randn(1, 6, 5)
    rows, columns = position_mask(torch.tensor([4]), 6), position_mask(torch.tensor([3]), 5)
    plan = transport_plan(similarity, rows, columns)
    alone = transport_plan(similarity[:, :4, :3], rows[:, :4], columns[:, :3])
    torch.testing.assert_close(plan[:, :4, :3], alone)
    assert plan[:, 4:].eq(0).all()
    assert plan[:, :, 3:].eq(0).all()


def test_soft_targets_find_the_tokens_that_belong_together():
    """Predictions that are the targets in another order, shrunk: each should be sent to its own."""
    targets = torch.eye(5)[None] * 4
    order = torch.tensor([3, 0, 4, 1, 2])
    mask = torch.ones(1, 5, dtype=torch.bool)
    found = soft_targets(0.1 * targets[:, order], targets, mask, mask)
    torch.testing.assert_close(found, targets[:, order], atol=0.2, rtol=0)


def test_soft_targets_of_equal_predictions_are_the_captions_mean():
    targets = torch.randn(2, 7, 4)
    target_mask = position_mask(torch.tensor([7, 3]), 7)
    output_mask = torch.ones(2, 5, dtype=torch.bool)
    found = soft_targets(torch.ones(2, 5, 4), targets, output_mask, target_mask)
    torch.testing.assert_close(
        found, masked_mean(targets, target_mask).expand(-1, 5, -1), atol=1e-4, rtol=1e-4
    )


def test_soft_training_holds_all_caption_tokens_and_evenly_spaced_image_tokens():
    vl, text = torch.randn(100, 4), torch.randn(30, 4)
    inputs, targets = Alignment("soft", 8).training_sides(vl, text, keeps_positions=True)
    assert inputs.equal(vl[[0, 14, 28, 42, 57, 71, 85, 99]])
    assert targets.equal(text)
    assert Alignment("soft", 8).training_sides(vl, text, keeps_positions=False)[0].equal(vl)
