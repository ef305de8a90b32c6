"""Encoder weights of one byte instead of two: room for all models on a smaller device, at an error that
`benchmarks/int8.py` measures.

torchao has the same rounding; installed, it is imported by diffusers in every process of every job, two seconds each.
"""

from typing import Literal

import torch
from torch import nn

Quantize = Literal["none", "int8"]
LARGEST = 127  # of 8 bits with a sign, used alike on both sides of zero


class Int8Linear(nn.Module):
    """A linear layer whose weights are 8-bit numbers with one scale for each output; activations stay as they are.

    Args:
        linear: the layer that is rounded, (O, I) weights, in the dtype of its activations.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        full = linear.weight.detach().float()
        scale = full.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
        self.register_buffer("weight", (full / scale).round().to(torch.int8))
        self.register_buffer("scale", scale[:, 0].to(linear.weight.dtype))
        self.bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(…, I) to (…, O), in the dtype of the inputs, which holds every 8-bit number exactly."""
        outputs = nn.functional.linear(inputs, self.weight.to(inputs.dtype)) * self.scale
        return outputs if self.bias is None else outputs + self.bias


def quantize_weights(model: nn.Module, quantize: Quantize) -> None:
    """Round the weights of a model's linear layers in place; embeddings, norms and convolutions stay.

    Args:
        model: loaded in the dtype of its activations.
        quantize: `int8`, or `none`, which changes nothing.
    """
    if quantize == "none":
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
