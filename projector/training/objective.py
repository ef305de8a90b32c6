"""What training minimises and what it is judged by, as sums over pairs that add up over batches and workers.

B batch, S inputs, M outputs, L aligned positions, D hidden.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from projector.data.align import Alignment, area_weights, masked_mean, soft_targets
from projector.data.packed import Batch
from projector.options import Loss
from projector.training.losses import masked_error, spread_error


@dataclass(frozen=True)
class Objective:
    """A loss under an alignment."""

    alignment: Alignment
    """Which output answers for which target."""
    loss: Loss
    """How far an output is from its target."""
    weights: Tensor
    """(D,) from `dimension_weights`."""
    std_weight: float
    """Of the term that holds a pair's spread."""
    keeps_positions: bool
    """Whether the network's output i belongs to its input i."""

    def positions(self, inputs: Tensor, targets: Tensor, queries: int) -> Tensor:
        """How many positions of each pair the loss looks at.

        Args:
            inputs: (N,) lengths of the VL sides.
            targets: (N,) lengths of the text sides.
            queries: outputs of a network that does not keep positions.

        Returns:
            (N,) int64.
        """
        if self.alignment.kind not in ("soft", "statistics"):
            return targets
        return inputs if self.keeps_positions else torch.full_like(inputs, queries)

    def error(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """Sum of the errors over all positions of a batch that the loss looks at.

        Args:
            outputs: (B, M, D) standardised, float32.
            targets: (B, L, D) standardised, float32.
            batch: where they come from.

        Returns:
            scalar, with gradient.
        """
        exists = self._exists(outputs, batch)
        spread = outputs.new_zeros(())
        if self.std_weight:
            spread = spread_error(outputs, targets, exists, batch.target_mask, batch.weights)
        mask = batch.target_mask
        if self.alignment.kind in ("soft", "statistics"):
            targets, mask = soft_targets(outputs, targets, exists, mask), exists
        else:
            outputs = self._at_targets(outputs, mask)
        errors = masked_error(outputs, targets, mask, self.weights, batch.weights, self.loss)
        return errors + self.std_weight * spread

    def judge(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """Like `error` on held-out pairs, but between means where no match may flatter.

        Returns:
            (2,) float64: sum of the errors, and what they are to be divided by.
        """
        if self.alignment.compares_means:
            exists = self._exists(outputs, batch)
            outputs, targets = masked_mean(outputs, exists), masked_mean(targets, batch.target_mask)
            mask = exists[:, :1]
        else:
            mask = batch.target_mask
            outputs = self._at_targets(outputs, mask)
        errors = masked_error(outputs, targets, mask, self.weights, batch.weights, self.loss)
        return torch.stack([errors, (mask.sum(1) * batch.weights).sum()]).double()

    def _at_targets(self, outputs: Tensor, mask: Tensor) -> Tensor:
        """Outputs (B, M, D) at the targets' positions (B, L, D): fixed ones are spread over them by area."""
        if self.keeps_positions:
            return outputs
        lengths = mask.sum(1)
        shape = mask.shape[1], outputs.shape[1]  # known without a look at the device
        return area_weights(torch.full_like(lengths, outputs.shape[1]), lengths, shape).float() @ outputs

    def _exists(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(B, M) bool: which outputs exist; all of them where the network has positions of its own."""
        if self.keeps_positions:
            return batch.input_mask
        return torch.ones_like(outputs[..., 0], dtype=torch.bool)
