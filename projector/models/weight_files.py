"""Whether a model's weight files are whole and in a type that is computed with, from their heads alone.

A safetensors file begins with eight bytes, the length of its head, and the head says where each tensor ends
(https://github.com/huggingface/safetensors, "Format"). So a pointer, an empty file and a download that was cut are
known before 40 GB are read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.errors import OptionError

LFS_POINTER = b"version https://git-lfs"
LENGTH_BYTES = 8
LONGEST_HEAD = 100_000_000  # bytes, the library's own limit
# What the encoders, the transformer and the VAE are published in; integers are positions and counters of a few.
PLAIN_TYPES = {"F64", "F32", "F16", "BF16", "I64", "BOOL"}
PLAIN = "bfloat16, float16 or float32"
QUANTISED_KEYS = ("quantization_config", "compression_config")


def check_weight_files(folder: Path, option: str, root: Path) -> None:
    """Refuse weights that are not whole, or are quantised by another program.

    Args:
        folder: that holds config.json and *.safetensors.
        option: what errors call the model.
        root: the model's folder, as errors name it.

    Raises:
        UsageError: names the first file and what is wrong with it.
    """
    for path in sorted(folder.glob("*.safetensors")):
        if problem := problem_of(path):
            raise OptionError(f"{option} = {str(root)!r}: {path.relative_to(root)} {problem}")


def check_not_quantised(config: Mapping[str, Any], name: str, option: str, root: Path) -> None:
    """UsageError where a config.json says that its weights are quantised, as those of bitsandbytes and AWQ do."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in QUANTISED_KEYS:
            if found := part.get(key):
                method = found.get("quant_method", "unnamed") if isinstance(found, dict) else found
                raise OptionError(
                    f"{option} = {str(root)!r}: {name} has a {key} ({method}); quantised weights are not loaded: "
                    f"give the original model in {PLAIN}. A build with quantize int8 makes its encoders smaller"
                )


def problem_of(path: Path) -> str:
    """What is wrong with a safetensors file and what to do, as the end of a sentence; empty where nothing is."""
    again = "download it again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
            if start == LFS_POINTER:
                return "is a Git LFS pointer, not weights; run `git lfs pull` in its folder, or download it again"
            if size <= LENGTH_BYTES:
                return f"has {size} bytes, no safetensors file has so few; {again}"
            length = int.from_bytes(start[:LENGTH_BYTES], "little")
            if length > min(LONGEST_HEAD, size - LENGTH_BYTES):
                return f"is no safetensors file, or was cut: its head of {length:,} bytes is longer than it; {again}"
            file.seek(LENGTH_BYTES)
            tensors = {
                name: entry for name, entry in json.loads(file.read(length)).items() if name != "__metadata__"
            }
        end = LENGTH_BYTES + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        types = {entry["dtype"] for entry in tensors.values()}
    except OSError as error:
        return f"cannot be read: {error.strerror or error}; check its permissions, or {again}"
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError):
        return f"is no safetensors file: its head is not what the format has; {again}"
    if end != size:
        return f"has {size:,} bytes, its head promises {end:,}; {again}"
    if odd := sorted(types - PLAIN_TYPES):
        return (
            f"holds tensors of type {', '.join(odd)}; quantised weights are not loaded: give the original model in "
            f"{PLAIN}"
        )
    return ""
