"""Copies between the CPU and a device that leave both of them at work.

torch waits for all that a GPU has been given at each copy to or from ordinary memory. With pinned memory it need not.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch

from shards.format.sample import Array


def onto(device: torch.device | str, values: torch.Tensor) -> torch.Tensor:
    """Copy values of the CPU to a device, behind the work that it has; the caller does not wait."""
    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class Arriving(Mapping[str, Array]):
    """Arrays by name, some of them on their way from a device: the first look at one of those waits for all of them.

    Args:
        here: arrays that are there.
        coming: tensors of a device, whose copies begin at once; see `as_array` for what they become.
    """

    def __init__(self, here: Mapping[str, Array], coming: Mapping[str, torch.Tensor]) -> None:
        self._here = dict(here)
        self._coming = {name: _stored(tensor).to("cpu", non_blocking=True) for name, tensor in coming.items()}
        self._arrived = _event(next(iter(coming.values())).device) if coming else None

    def __getitem__(self, name: str) -> Array:
        if name in self._here:
            return self._here[name]
        tensor = self._coming[name]
        if self._arrived is not None:
            self._arrived.synchronize()
        return as_array(tensor)

    def __contains__(self, name: object) -> bool:
        return name in self._here or name in self._coming  # Mapping's own would look, and wait

    def __iter__(self) -> Iterator[str]:
        return iter([*self._here, *self._coming])

    def __len__(self) -> int:
        return len(self._here) + len(self._coming)


def _event(device: torch.device) -> Any:
    """What is over when the device has done all that it was given so far; None where the CPU is the device."""
    if device.type != "cuda":
        return None
    # Whoever waits sleeps: the CPU has other work.
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def as_array(tensor: torch.Tensor) -> Array:
    """A tensor as a numpy array of the CPU: bfloat16, rounded to nearest even, where it is of floating point."""
    stored = _stored(tensor).cpu()
    if stored.dtype != torch.bfloat16:
        return stored.numpy()
    bits = stored.contiguous().view(torch.uint16).numpy()
    array: Array = np.ascontiguousarray(bits).view(ml_dtypes.bfloat16)
    return array


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
