"""Which models are on the device: all of a run, or only the one at work."""

from typing import Protocol

import torch


class Movable(Protocol):
    """Models that move between device and memory as one."""

    def to(self, device: str) -> object:
        """Move all weights."""


class Residence:
    """Lets models onto this process's device.

    Args:
        one_at_a_time: keep the others in the machine's memory; otherwise all are loaded onto the device and stay.
    """

    def __init__(self, *, one_at_a_time: bool = False) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._alone = one_at_a_time
        self._inside: Movable | None = None

    @property
    def loading_device(self) -> str:
        """Where models are loaded to."""
        return "cpu" if self._alone else self.device

    def let_in(self, model: Movable) -> None:
        """Make sure that a model is on the device; the one before it leaves first."""
        if not self._alone or model is self._inside:
            return
        if self._inside is not None:
            self._inside.to("cpu")
            torch.cuda.empty_cache()
        self._inside = None  # if the next move fails, nobody is inside
        model.to(self.device)
        self._inside = model
