"""How much of a picture's structure sits on the image model's patch grid; needs no model.

A patch grid shows as edges that repeat every 16 pixels. Edge strength, averaged along the grid's lines, is then a
train of pulses of that period, and its spectrum stands out at the period's harmonics against the bins beside them,
wherever the grid begins. Only odd harmonics are looked at: JPEG's blocks of 8 pixels and the 12 pixels of a grid in
a picture made smaller put nothing there. Grids of 32 or 48 pixels lie on this one and count like it.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PERIOD = 16  # pixels of one token of the DiT: VAE factor 8 times its patch of 2
HARMONICS = (1, 3, 5, 7)
NEIGHBOURS = 3  # bins on each side at most
SMALLEST = 4 * PERIOD  # below, no bin lies between two harmonics
# Squared grey levels, in both parts of the ratio. Steps of 2 levels out of 255 on every grid line, which nobody
# sees, double a flat picture's score; smaller ones, such as those of rounding, hardly count.
FLOOR = 0.25


def blockiness(picture: Image.Image) -> float:
    """Edge strength at the 16-pixel period over that at neighbouring periods.

    Args:
        picture: at the size the image model made it; both sides at least 64 pixels.

    Returns:
        about 1 without a grid (0.5 to 1.8 on noise), rising in proportion to the squared height of the grid's steps.

    Raises:
        ValueError: the picture is too small.
    """
    if min(picture.size) < SMALLEST:
        raise ValueError(
            f"{picture.width} x {picture.height} pixels; at least {SMALLEST} each way are needed"
        )
    grey = np.asarray(picture.convert("L"), np.float64)
    return float(np.mean([_along_rows(grey), _along_rows(grey.T)]))


def _along_rows(grey: NDArray[np.float64]) -> float:
    """Mean over harmonics of amplitude there over the mean amplitude beside it, for lines between columns."""
    strength = (np.diff(grey, axis=1) ** 2).mean(axis=0)
    # Whole periods only: the harmonics are then bins of their own and leak into no other.
    periods = len(strength) // PERIOD
    length = periods * PERIOD
    amplitude = np.abs(np.fft.rfft(strength[:length])) / length
    reach = min(NEIGHBOURS, (periods - 1) // 2)
    beside = np.concatenate([np.arange(-reach, 0), np.arange(1, reach + 1)])
    ratios = [
        (amplitude[n * periods] + FLOOR) / (amplitude[n * periods + beside].mean() + FLOOR) for n in HARMONICS
    ]
    return float(np.mean(ratios))
