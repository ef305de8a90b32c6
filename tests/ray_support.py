"""How tests start builds, what they compare of them, and how they end what they started."""

import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
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

# Behind all else on the path: this folder has namesakes of the packages.
STAND_IN = f"""
import sys
sys.path.append({str(ROOT / "tests")!r})
import stand_in
sys.exit(stand_in.main(sys.argv[1:]))
"""

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


def options_of(job, **options):
    """A job and its options as words of a command line."""
    words = [job]
    for name, value in options.items():
        words += [f"--{job}.{name}", str(value)]
    return words


def build_words(output, **changes):
    """What a small build is called with, after `python -m ray_jobs`."""
    return options_of("build", output=output, **SMALL | changes)


def build_command(output, **changes):
    """A small build as users start it."""
    return [sys.executable, "-m", "ray_jobs", *build_words(output, **changes)]


def stand_in_command(output, **changes):
    """A small build without models, in a process of its own (`stand_in.py`)."""
    return [sys.executable, "-c", STAND_IN, *build_words(output, **changes)]


@contextmanager
def environment_of(variables):
    """Have these environment variables, and no others, for the time of a block."""
    kept = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextmanager
def without_module(name):
    """Have every import of a module fail in this process for the time of a block, as if it were not installed."""
    hidden = {each for each in sys.modules if each == name or each.startswith(f"{name}.")}
    kept = {each: sys.modules.pop(each) for each in hidden}
    sys.modules[name] = None
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(kept)


def run_here(words, environment):
    """Run a job in this process, which saves it the seconds of its imports.

    Args:
        words: after `python -m ray_jobs`.
        environment: of the job; names the cluster that it joins.

    Returns:
        exit code and output, as `subprocess.run` gives them.
    """
    from ray_jobs.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with environment_of(environment), redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as PYTHONWARNINGS says it to processes
        code = main(words)
        gc.collect()  # what Ray leaves to it would warn in a later test, where warnings are errors
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def for_workers(environment, extra):
    """An environment that gives the workers of a shared head more of it, as a submitted job's does."""
    return environment | {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": extra}})}


def with_workers(environment, extra):
    """An environment and more of it, which reaches the workers of a shared head too."""
    return for_workers(environment, extra) | extra


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
