"""The step of `gpu.py` that breaks a CUDA context on purpose, in a child process, and looks who is blamed.

python benchmarks/gpu_faults.py        the child: prints what became of each batch
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_setting import Setting

from projector.making.batching import BatchMaker
from shards.format.sample import Failure

BATCHES = ([0, 1], [2, 13], [4, 5])
POISON = 13  # its batch reads past the end of a tensor, which CUDA reports as a device-side assert
CHILD_SECONDS = 120


class ReadsPastTheEnd(BatchMaker[int, int]):
    """Looks items up in a table on the device that is too short for one of them."""

    def _make(self, batch: Sequence[int]) -> list[int | Failure]:
        table = torch.arange(8, device="cuda")
        found = table[torch.tensor(list(batch), device="cuda")]
        torch.cuda.synchronize()
        return list(found.tolist())


def sticky_fault(setting: Setting) -> dict[str, Any]:
    """What a broken context makes of the items of its own and of later batches."""
    if not setting.on_gpu:
        return {"found": "needs a GPU"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())], capture_output=True, text=True, timeout=CHILD_SECONDS
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    blamed = [item for line in lines for item in line.get("failed", ())]
    return {
        "exit": done.returncode,
        "batches": lines,
        "blamed_without_fault": [item for item in blamed if item != POISON],
        "last_error_line": (done.stderr.strip().splitlines() or [""])[-1][:300],
    }


def main() -> None:
    """Make the batches one after the other, as a builder does."""
    maker = ReadsPastTheEnd(2)
    for batch in BATCHES:
        results = maker.make(batch)
        failed = [item for item, result in zip(batch, results, strict=True) if isinstance(result, Failure)]
        print(json.dumps({"batch": batch, "failed": failed}), flush=True)


if __name__ == "__main__":
    main()
