"""Builds as users start them, each in a process of its own; tiny pictures keep them to seconds."""

import os
import shutil
import subprocess
import tempfile

import pytest

from projector.models import CACHE_VARIABLE, resolve_models
from ray_support import ROOT, build_command


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Environment of the processes under test: the tiny models are made once, and no cluster of the user is used."""
    cache = tmp_path_factory.mktemp("cache")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SHARDS_"))}
    # Ray looks here for the cluster that `ray start` left; its sockets' paths may not pass 107 characters.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    environment = kept | {CACHE_VARIABLE: str(cache), "PYTHONWARNINGS": "ignore", "RAY_TMPDIR": folder}
    os.environ[CACHE_VARIABLE] = str(cache)
    resolve_models("tiny")
    yield environment
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def run_build(environment):
    """Run a build to its end: `run_build(output, samples=…)` gives the finished process."""

    def run(output, *, extra=None, **changes):
        return subprocess.run(
            build_command(output, **changes),
            env=environment | (extra or {}),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture(scope="session")
def undisturbed(run_build, tmp_path_factory):
    """A build that nothing disturbed."""
    output = tmp_path_factory.mktemp("undisturbed") / "data"
    done = run_build(output)
    assert done.returncode == 0, done.stderr
    return output
