"""Preflight on a cluster that is broken in every way at once: each fault is named with its node."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import pytest

from fault_proxy import FaultProxy
from projector.models.resolve import resolve_models
from ray_jobs.cluster import node_probe as node
from ray_support import RAY, ROOT, SMALL

# A head, then a sound node and preflight, then the broken nodes and preflight; nodes are given how to differ.
BROKEN = """
import json, os, subprocess, sys, time
import ray
from ray.cluster_utils import Cluster
from ray_jobs.__main__ import main

ray_command, sound, *broken = json.loads(sys.argv[1])
cluster, started = Cluster(), []
cluster.add_node(num_cpus=1, include_dashboard=False)
ray.init(cluster.address, log_to_driver=False)

def join(nodes):
    for told in nodes:
        environment = {name: value for name, value in {**os.environ, **told["environment"]}.items() if value}
        join = [ray_command, "start", "--block", "--num-cpus=1", f"--address={cluster.address}", *told["words"]]
        hidden = f"mount --bind {told['empty']} {told['hidden']} && " if "hidden" in told else ""
        words = ["unshare", "--mount", "sh", "-c", hidden + 'exec "$0" "$@"', *join]
        with open(f"{os.environ['RAY_TMPDIR']}/{len(started)}.log", "w") as log:
            started.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
        # One after the other: side by side on few processors they miss Ray's time for a node to register.
        while sum(node["Alive"] for node in ray.nodes()) < 1 + len(started):
            assert started[-1].poll() is None, open(log.name).read()[-2000:]
            time.sleep(0.1)

try:
    join([sound])
    print("fit:", main(sys.argv[2:]), flush=True)
    join(broken)
    print("broken:", main(sys.argv[2:]), flush=True)
    print("build:", main(["build", *sys.argv[3:-2]]), flush=True)
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.fixture
def altered(tmp_path):
    """The project as another checkout would have it, beside an older transformers."""
    folder = tmp_path / "altered"
    for room in node.ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "projector" / "align.py").open("a") as file:
        file.write("# another version\n")
    (folder / "transformers-5.0.0.dist-info").mkdir()
    (folder / "transformers-5.0.0.dist-info" / "METADATA").write_text("Name: transformers\nVersion: 5.0.0\n")
    return folder


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.server
def test_a_cluster_that_is_broken_in_every_way(environment, altered, moto, tmp_path):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace needs privileges")
    models = shutil.copytree(resolve_models("tiny").image.path, tmp_path / "models" / "image").parent
    shutil.copytree(resolve_models("tiny").vl.path, models / "vl")
    empty, blocked, folder = (
        tmp_path / "empty",
        tmp_path / "blocked",
        tempfile.mkdtemp(prefix="ray", dir="/tmp"),
    )
    empty.mkdir()
    blocked.mkdir()
    (blocked / f"z-image-projector-spool-{os.getuid()}").write_text("a file where the spool would be")
    root = f"s3://{moto.new_bucket()}/data"
    options = {"output": root, "models.image": str(models / "image"), "models.vl": str(models / "vl")}
    found = ["--preflight.output", str(tmp_path / "found")]
    words = [word for name, value in (SMALL | options).items() for word in (f"--build.{name}", str(value))]
    with FaultProxy(moto.port, clock=-1200.0) as proxy:
        told = [
            RAY,
            {"environment": {}, "words": []},
            {
                "environment": {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "TMPDIR": str(blocked)},
                "words": ["--num-gpus=2"],
            },
            {"environment": {"AWS_ENDPOINT_URL_S3": proxy.endpoint}, "words": []},
            {
                "environment": {"PYTHONPATH": str(altered)},
                "words": [],
                "hidden": f"{models}/vl",
                "empty": str(empty),
            },
        ]
        # Workers look into the driver's current folder before all else: that must not be the project's.
        done = subprocess.run(
            [sys.executable, "-c", BROKEN, json.dumps(told), "preflight", *words, *found],
            env=environment
            | moto.env
            | {"RAY_TMPDIR": folder, "PYTHONPATH": str(ROOT), "RAY_raylet_start_wait_time_s": "120"},
            cwd=empty,
            capture_output=True,
            text=True,
            timeout=400,
        )
    shutil.rmtree(folder, ignore_errors=True)
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    codes = [line for line in said.splitlines() if line.startswith(("fit:", "broken:", "build:"))]
    assert codes == ["fit: 0", "broken: 1", "build: 2"], said + done.stderr
    assert "preflight: fit (2 nodes, 0 GPUs)" in said
    assert "preflight: not fit (5 nodes, 2 GPUs): 6 faults in 3 places" in said
    faults = json.loads((tmp_path / "found" / "preflight.json").read_text())["faults"]
    assert len({fault["where"] for fault in faults}) == 3
    by_check = {fault["check"]: fault["said"] for fault in faults}
    for check, words in {
        "GPUs": "Ray was told of 2, torch sees 0",
        "versions": "transformers is 5.0.0, the driver has",
        "store": "no credentials for S3; set AWS_ACCESS_KEY_ID",
        "clock": "s ahead of the store's",
        "models": "lacks ",
        "spool": f"z-image-projector-spool-{os.getuid()}': cannot be made: File exists",
    }.items():
        assert words in by_check[check], by_check
    assert "code is " in by_check["versions"]
    assert re.search(
        r"^error: node \S+ \(\w{8}\): .*python -m ray_jobs preflight shows", done.stderr, re.MULTILINE
    )
    assert "Contents" not in moto.client.list_objects_v2(Bucket=root.split("/")[2])
    assert moto.secret_key not in said + done.stderr
