import pytest
import torch
from torch.nn import functional as F

from projector.losses import dimension_weights, masked_squared_error
from shards.errors import UsageError


def test_equals_plain_mse_over_the_positions_that_exist():
    outputs, targets = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    mask = torch.rand(3, 5) < 0.6
    error = masked_squared_error(outputs, targets, mask, torch.ones(8)) / mask.sum()
    torch.testing.assert_close(error, F.mse_loss(outputs[mask], targets[mask]))


def test_what_lies_under_the_mask_does_not_matter_not_even_nan():
    outputs, targets = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    dirty = torch.where(mask[..., None], targets, torch.nan)
    error = masked_squared_error(outputs, dirty, mask, torch.ones(4))
    torch.testing.assert_close(error, masked_squared_error(outputs, targets, mask, torch.ones(4)))
    error.backward()
    assert outputs.grad.isfinite().all()
    assert outputs.grad[~mask].eq(0).all()


def test_raw_mse_is_the_error_in_raw_units():
    std = torch.tensor([0.5, 3.0, 100.0])
    outputs, targets = torch.randn(2, 3, 3), torch.randn(2, 3, 3)
    mask = torch.ones(2, 3, dtype=torch.bool)
    error = masked_squared_error(outputs, targets, mask, dimension_weights("raw_mse", None, std)) / 6
    torch.testing.assert_close(error, F.mse_loss(outputs * std, targets * std))


def test_named_weights_multiply():
    weights = dimension_weights("mse", {2: 10.0, 0: 0.0}, torch.ones(3))
    assert weights.tolist() == [0.0, 1.0, 10.0]


def test_a_weight_for_a_dimension_that_is_not_there():
    with pytest.raises(UsageError, match="dimension 396, but the embeddings have 64; use 0 to 63"):
        dimension_weights("mse", {396: 10.0}, torch.ones(64))
