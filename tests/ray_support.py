"""How tests start builds, and what they compare of them."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
SMALL = {
    "samples": 24,
    "samples_per_shard": 4,
    "val_fraction": 0.25,
    "height": 64,
    "width": 64,
    "steps": 2,
    "layers": "-8",
    "text_modes": "caption,none",
    "batch_size": 2,
}


def build_command(output, **changes):
    words = [sys.executable, "-m", "ray_jobs", "build", "--build.output", str(output)]
    for name, value in (SMALL | changes).items():
        words += [f"--build.{name}", str(value)]
    return words


def bytes_of(output):
    """Every tar and parquet of a dataset by name."""
    return {path.relative_to(output): path.read_bytes() for path in Path(output).glob("*/pairs-*")}
