"""Throw damaged files at every reader, and count what they say; exit 1 where one crashed, hung or took much memory.

`python benchmarks/fuzz.py --inputs 10000` divides the inputs among the targets of `fuzz_targets.py`. Each input
follows from the seed, the target and its number, so that a crash can be had again: `--target NAME --only NUMBER`.
"""

import argparse
import ctypes
import gc
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz_targets import Target, all_targets, damaged

MOST_GROWTH = 200.0  # MB that an input may have this process grow by
LONGEST = 20  # seconds until an input counts as hanging


class HangError(Exception):
    """An input took too long."""


def feed(target: Target, number: int, seed: str, place: Path) -> tuple[str, float]:
    """Give a target one input; what is wrong, empty where nothing is, and the growth in MB."""
    chance = random.Random(f"{seed} {number}")
    name = chance.choice(sorted(target.seeds))
    data = damaged(chance, target.seeds[name])
    return observed(lambda: target.feed(place, name, data))


def observed(act: Callable[[], None]) -> tuple[str, float]:
    """Do something and watch: what went wrong, and by how many MB the process grew at most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _resident("VmRSS")
    signal.signal(signal.SIGALRM, _hanging)
    signal.alarm(LONGEST)
    problem = ""
    try:
        act()
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        problem = f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:200]}"
    finally:
        signal.alarm(0)
    grown = _resident("VmHWM") - before
    if not problem and grown > MOST_GROWTH:
        problem = f"grew by {grown:.0f} MB"
    return problem, grown


def settle() -> None:
    """Give back what earlier work left free, which would hide what the next takes; a tenth of a second."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _hanging(_number: int, _frame: FrameType | None) -> None:
    raise HangError(f"still at work after {LONGEST} s")


def _resident(name: str) -> float:
    """Memory of this process in MB: `VmRSS` now, `VmHWM` at its peak."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1000


def campaign(target: Target, name: str, numbers: range, seed: str, place: Path) -> dict[str, Any]:
    """Many inputs of one target."""
    problems: dict[str, list[int]] = {}
    most, begun = 0.0, time.process_time()
    for number in numbers:
        problem, grown = feed(target, number, f"{seed} {name}", place)
        most = max(most, grown)
        if problem:
            kind = re.sub(r"\d+", "N", problem.partition(": ")[0])
            problems.setdefault(kind, []).append(number)
            print(f"{name} {number}: {problem}", file=sys.stderr, flush=True)
    return {
        "inputs": len(numbers),
        "cpu_seconds": round(time.process_time() - begun, 1),
        "most_grown_mb": round(most, 1),
        "problems": problems,
    }


def main(words: list[str]) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="in all (default %(default)s)")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--target", help="only this one")
    parser.add_argument("--only", type=int, help="only the input of this number")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder, all_targets(Path(folder)) as targets:
        chosen = {name: targets[name] for name in targets if options.target in (None, name)}
        place = Path(folder, "place")
        place.mkdir()
        each = -(-options.inputs // len(chosen))
        numbers = range(each) if options.only is None else range(options.only, options.only + 1)
        found = {
            name: campaign(target, name, numbers, options.seed, place) for name, target in chosen.items()
        }
    print(json.dumps(found, indent=1))
    return int(any(result["problems"] for result in found.values()))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
