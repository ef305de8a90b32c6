import pytest
import torch
from torch.nn import functional as F

from projector.training.losses import dimension_weights, masked_error, masked_std, spread_error
from shards.errors import UsageError


def each(mask):
    """Every pair counts alike."""
    return torch.ones(len(mask))


def test_equals_plain_mse_over_the_positions_that_exist():
    outputs, targets = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    mask = torch.rand(3, 5) < 0.6
    error = masked_error(outputs, targets, mask, torch.ones(8), each(mask)) / mask.sum()
    torch.testing.assert_close(error, F.mse_loss(outputs[mask], targets[mask]))


def test_what_lies_under_the_mask_does_not_matter_not_even_nan():
    outputs, targets = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    dirty = torch.where(mask[..., None], targets, torch.nan)
    error = masked_error(outputs, dirty, mask, torch.ones(4), each(mask))
    torch.testing.assert_close(error, masked_error(outputs, targets, mask, torch.ones(4), each(mask)))
    error.backward()
    assert outputs.grad.isfinite().all()
    assert outputs.grad[~mask].eq(0).all()


def test_raw_mse_is_the_error_in_raw_units():
    std = torch.tensor([0.5, 3.0, 100.0])
    outputs, targets = torch.randn(2, 3, 3), torch.randn(2, 3, 3)
    mask = torch.ones(2, 3, dtype=torch.bool)
    error = masked_error(outputs, targets, mask, dimension_weights("raw_mse", None, std), each(mask)) / 6
    torch.testing.assert_close(error, F.mse_loss(outputs * std, targets * std))


def test_named_weights_multiply():
    weights = dimension_weights("mse", {2: 10.0, 0: 0.0}, torch.ones(3))
    assert weights.tolist() == [0.0, 1.0, 10.0]


def test_a_weight_for_a_dimension_that_is_not_there():
    with pytest.raises(UsageError, match="dimension 396, but the embeddings have 64; use 0 to 63"):
        dimension_weights("mse", {396: 10.0}, torch.ones(64))


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        ("mse", lambda x, y: (x - y).square().mean(-1)),
        ("huber", lambda x, y: F.smooth_l1_loss(x, y, reduction="none").mean(-1)),
        ("cosine", lambda x, y: 1 - F.cosine_similarity(x, y, dim=-1)),
    ],
)
def test_every_loss_is_a_weighted_sum_over_positions(loss, reference):
    outputs, targets = 2 * torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    mask, pair_weights = torch.rand(3, 5) < 0.6, torch.tensor([1.0, 0.5, 3.0])
    error = masked_error(outputs, targets, mask, torch.ones(8), pair_weights, loss)
    expected = (reference(outputs, targets) * mask * pair_weights[:, None]).sum()
    torch.testing.assert_close(error, expected)


def test_the_spread_over_a_pairs_tokens_is_held():
    rows, mask = torch.randn(2, 6, 4, requires_grad=True), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 3:] = False
    expected = [rows[0].std(0, correction=0), rows[1, :3].std(0, correction=0)]
    torch.testing.assert_close(masked_std(rows, mask), torch.stack(expected), rtol=1e-4, atol=1e-5)
    same = spread_error(rows, rows.detach(), mask, mask, each(mask))
    assert float(same.detach()) == pytest.approx(0, abs=1e-9)
    flat = torch.zeros(2, 6, 4, requires_grad=True)
    error = spread_error(flat, rows.detach(), mask, mask, each(mask))
    per_pair = torch.stack(expected).square().mean(-1)
    torch.testing.assert_close(error, (per_pair * torch.tensor([6.0, 3.0])).sum(), rtol=1e-4, atol=1e-4)
    error.backward()
    assert flat.grad.isfinite().all()
