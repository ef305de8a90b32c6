"""How varied the built-in prompts are at several sizes, and what a plan of a million takes."""

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from shards.format.plan import make_plan
from shards.prompts.builtin import Language, builtin_prompts
from shards.prompts.variety import prompt_figures


def peak_mb() -> float:
    """The most memory that this process ever had (Linux); getrusage counts its parent's before the exec as well."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def measured(count: int, language: Language) -> dict[str, Any]:
    """Figures of the first prompts, without the cells themselves."""
    space = builtin_prompts(language).prompts
    start = time.perf_counter()
    figures = prompt_figures(
        make_plan(space, seed=0, val_fraction=0.05, samples_per_shard=64, segments=(count,))
    )
    found = asdict(figures)
    cells = found.pop("cells").values()
    return found | {
        "cells": len(cells),
        "fewest_in_a_cell": min(cells),
        "most_in_a_cell": max(cells),
        "seconds": round(time.perf_counter() - start, 1),
    }


def planned(count: int, language: Language) -> dict[str, Any]:
    """Seconds and peak memory of a plan, in this process."""
    before = peak_mb()
    start = time.perf_counter()
    plan = make_plan(
        builtin_prompts(language).prompts,
        seed=0,
        val_fraction=0.05,
        samples_per_shard=64,
        segments=(count,),
    )
    return {
        "planned": len(plan),
        "shards": len(plan.shards),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_mb": round(peak_mb()),
        "of_that_imports_mb": round(before),
    }


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", nargs="+", type=int, default=[2000, 20_000, 200_000])
    parser.add_argument("--plans", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--language", choices=get_args(Language), default="en")
    parser.add_argument("--plan-only", type=int, help="what a process of its own measures")
    parser.add_argument("--output", type=Path, help="JSON file; default: stdout")
    options = parser.parse_args()
    if options.plan_only:
        print(json.dumps(planned(options.plan_only, options.language)))
        return
    result = {
        "language": options.language,
        "space": len(builtin_prompts(options.language).prompts),
        "figures": [measured(count, options.language) for count in options.counts],
        "plans": [
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--plan-only", str(count), "--language", options.language],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for count in options.plans
        ],
    }
    text = json.dumps(result, indent=2) + "\n"
    if options.output:
        options.output.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
