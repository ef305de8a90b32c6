"""Encoding a 1024² picture without loss: seconds and bytes by format and level.

    python benchmarks/png.py

The picture is made: smooth areas, edges, and noise of two grey levels, about as hard to pack as a photograph.
"""

import io
import json
import statistics
import time

import numpy as np
from PIL import Image

SIDE, TURNS = 1024, 3
WAYS = {f"png, level {level}": {"format": "PNG", "compress_level": level} for level in (1, 2, 4, 6, 9)} | {
    "webp lossless, method 0": {"format": "WEBP", "lossless": True, "method": 0, "quality": 0}
}


def picture() -> Image.Image:
    """RGB."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    channels = [np.sin(7 * x + phase) * np.cos(5 * y - phase) for phase in (0.0, 1.0, 2.0)]
    edges = (np.sin(40 * x * y) > 0.6)[..., None] * 60
    values = 128 + 60 * np.stack(channels, -1) + edges + random.normal(scale=2, size=(SIDE, SIDE, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def main() -> None:
    """Print a JSON object."""
    image, found = picture(), {}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(TURNS):
        for name, options in WAYS.items():
            buffer, begun = io.BytesIO(), time.perf_counter()
            image.save(buffer, **options)
            seconds[name].append(time.perf_counter() - begun)
            found[name] = {"megabytes": round(len(buffer.getvalue()) / 1e6, 2)}
    for name, values in seconds.items():
        found[name]["seconds"] = round(statistics.median(values), 3)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
