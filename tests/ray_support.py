"""How tests start builds, what they compare of them, and how they end what they started."""

import json
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
# What names the files that a node has its credentials in, and their names beside the shared head's own.
CREDENTIALS = {"AWS_SHARED_CREDENTIALS_FILE": "credentials", "AWS_CONFIG_FILE": "config"}
SMALL = {
    "samples": 24,
    "samples_per_shard": 4,
    "val_fraction": 0.25,
    "test_fraction": 0.2,
    "height": 64,
    "width": 64,
    "steps": 2,
    "layers": "-8",
    "text_modes": "caption,none",
    "batch_size": 2,
}

# Commands in documents: every block is run, but for those that say what they need and those that show something.
NEEDS_A_CLOUD, NEEDS_GPUS = "# needs a cloud", "# needs GPUs"
SHOWN = ("text", "yaml")


def blocks(page):
    """Language and text of every fenced block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def blocks_to_run(page):
    """Those that a test runs, in their order."""
    return [
        (language, text)
        for language, text in blocks(page)
        if language not in SHOWN and not text.startswith((NEEDS_A_CLOUD, NEEDS_GPUS))
    ]


def build_command(output, **changes):
    words = [sys.executable, "-m", "ray_jobs", "build", "--build.output", str(output)]
    for name, value in (SMALL | changes).items():
        words += [f"--build.{name}", str(value)]
    return words


def with_workers(environment, extra):
    """An environment and more of it, which reaches the workers of a shared head too, as a submitted job's does."""
    job = {"runtime_env": {"env_vars": extra}}
    return environment | extra | {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}


def bytes_of(output):
    """Every tar and parquet of a dataset by name."""
    return {path.relative_to(output): path.read_bytes() for path in Path(output).glob("*/pairs-*")}


def processes_of(session):
    """Pids of every process in a session: of a job started in one, with its workers and its cluster."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                found.append(int(folder.name))
        except ProcessLookupError:
            continue
    return found


def kill(leader):
    """SIGKILL to a whole session, as a power cut would."""
    for pid in processes_of(leader.pid):
        with suppress(ProcessLookupError):  # some end with those before them
            os.kill(pid, signal.SIGKILL)
