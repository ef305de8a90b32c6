"""Preflight: each fault is named with its node, on paper and on a cluster that is broken in every way at once."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from fault_proxy import FaultProxy
from projector.models.resolve import CACHE_VARIABLE, resolve_models
from projector.options import TrainOptions
from ray_jobs.cli.run_options import BuildOptions
from ray_jobs.cluster import node_checks as fitness
from ray_jobs.cluster import node_probe as node
from ray_jobs.cluster.connect import Cluster
from ray_jobs.cluster.node_checks import Node, check_nodes, faults_of
from ray_jobs.cluster.node_probe import (
    TO_BE_FETCHED,
    Answer,
    Device,
    Question,
    code_hash,
    glance_at,
    look_around,
)
from ray_jobs.jobs import preflight
from ray_jobs.jobs.preflight import crowded, placed, preflight_verdict, table
from ray_support import RAY, ROOT, SMALL
from s3_support import use
from shards.errors import StorageError, UsageError
from shards.stores import s3 as s3_store

VERSIONS = {"python": "3.11.7", "torch": "2.13.0+cu130", "code": "c0ffee"}
SOUND = Answer(
    versions=VERSIONS,
    devices=(Device("H100", 79 * 10**9, 80 * 10**9),) * 2,
    clock_ahead=0.4,
    models={"org/image": "aa", "org/vl": "bb"},
    exclusive=True,
    spool_free=10**12,
    faults={},
)
MODELS = {"org/image": "aa", "org/vl": "bb"}


def a_node(gpus=2.0, silent="", **changes):
    return Node("ab" * 28, "10.0.0.7", gpus, None if silent else replace(SOUND, **changes), silent)


def said_of(found):
    return [(fault.check, fault.said) for fault in faults_of(found, VERSIONS, MODELS)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"versions": VERSIONS | {"torch": "2.13.0+cpu"}},
        {"clock_ahead": None},
        {"clock_ahead": -299.0},
        {"models": {"org/image": TO_BE_FETCHED, "org/vl": "bb"}},
        {"models": {}},
        {"devices": None},
        {"exclusive": False},
    ],
)
def test_a_fit_node_has_no_fault(changes):
    assert said_of(a_node(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        (
            {"versions": VERSIONS | {"torch": "2.12.0"}},
            "versions",
            "torch is 2.12.0, the driver has 2.13.0+cu130",
        ),
        (
            {"versions": VERSIONS | {"code": "dead"}},
            "versions",
            "code is dead, the driver has c0ffee; install",
        ),
        ({"versions": {}}, "versions", "python is None, the driver has 3.11.7"),
        (
            {"clock_ahead": 1200.0},
            "clock",
            "1200 s ahead of the store's; S3 refuses signatures from 900 s on",
        ),
        ({"clock_ahead": -301.0}, "clock", "301 s behind the store's"),
        ({"models": {"org/vl": "cc"}}, "models", "org/vl is not the driver's: cc, not bb; copy it again"),
        ({"devices": ()}, "GPUs", "Ray was told of 2, torch sees 0"),
        ({"faults": {"store": "cannot put"}}, "store", "cannot put"),
        ({"faults": {"spool": "full"}}, "spool", "full"),
        ({"silent": "nothing within 300 s"}, "answer", "nothing within 300 s"),
    ],
)
def test_every_fault_of_a_node_is_named(changes, check, words):
    ((found, said),) = said_of(a_node(**changes))
    assert found == check
    assert words in said


def test_what_a_node_says_itself_is_said_first():
    found = dict(said_of(a_node(devices=(), faults={"GPUs": "torch cannot list them"})))
    assert found == {"GPUs": "torch cannot list them"}


def test_the_table_has_a_line_for_each_node_and_the_verdict_counts():
    fit, bad, silent = a_node(), a_node(clock_ahead=1200.0, devices=()), a_node(silent="gone")
    bad, silent = replace(bad, address="10.0.0.8"), replace(silent, address="10.0.0.9")
    nodes = [fit, bad, silent]
    faults = [fault for each in nodes for fault in faults_of(each, VERSIONS, MODELS)]
    header, first, second, third = table(nodes, faults)
    assert header.split() == ["node", "GPUs", "versions", "store", "clock", "models", "spool"]
    assert "2 x H100 80 GB" in first
    assert "+0 s" in first
    assert second.split() == ["10.0.0.8", "(abababab)", "FAULT", "ok", "ok", "FAULT", "ok", "ok"]
    assert third.count("no answer") == 6
    assert preflight_verdict(nodes, faults) == "preflight: not fit (3 nodes, 6 GPUs): 3 faults in 2 places"
    assert preflight_verdict([fit], []) == "preflight: fit (1 node, 2 GPUs)"


def test_models_are_placed_on_the_smallest_gpu(tiny_sources):
    cluster, build = Cluster(("a", "b"), 8, 2), BuildOptions(height=64, width=64)
    small = a_node(devices=(Device("T4", 10**9, 2 * 10**9),))
    with pytest.raises(UsageError, match=r"the weights on a device take .* give each builder more of a GPU"):
        placed(
            BuildOptions(placement="fused"),
            cluster,
            tiny_sources,
            [a_node(), a_node(devices=(Device("none", 1, 1),))],
        )
    needed, share = placed(build, cluster, tiny_sources, [a_node(), small])
    assert (share, needed < 2e9) == (1.0, True)
    (fault,) = crowded([a_node(), small], needed, share)
    assert (fault.check, "GPU 0 (T4) has 1 of 2 GB free" in fault.said) == ("GPUs", True)
    with pytest.raises(UsageError, match="enough for 2"):
        placed(BuildOptions(actors=3), cluster, tiny_sources, [])


@pytest.fixture
def tiny_sources(monkeypatch, environment):
    monkeypatch.setenv(CACHE_VARIABLE, environment[CACHE_VARIABLE])
    return resolve_models("tiny")


@pytest.fixture
def hub(tiny_sources, tmp_path, monkeypatch):
    """A model in the hub's cache of this machine, and what the hub would be asked at."""
    revision, cache = "5" * 40, tmp_path / "hub"
    snapshot = cache / "models--org--vl" / "snapshots" / revision
    shutil.copytree(tiny_sources.vl.path, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot, replace(tiny_sources.vl, id="org/vl", revision=revision, path="/on/the/driver")


def test_a_model_from_the_hub_is_found_in_the_cache_of_each_machine(hub, tiny_sources):
    snapshot, model = hub
    assert model.here() == str(snapshot)
    assert glance_at(model) == glance_at(tiny_sources.vl)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(
        UsageError, match="org/vl: not in the hub's cache here, and not to be had from the hub"
    ):
        glance_at(model)


def test_a_model_that_the_hub_has_is_to_be_fetched(hub, monkeypatch):
    snapshot, model = hub
    shutil.rmtree(snapshot)
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *about, **how: asked.append((*about, how)))
    assert glance_at(model) == TO_BE_FETCHED
    how = {"revision": model.revision, "dry_run": True}
    assert asked == [("org/vl", name, how) for name in sorted(model.files)]


def test_a_folder_that_only_the_driver_has(tiny_sources):
    away = replace(tiny_sources.vl, path="/on/the/driver")
    assert away.here() == tiny_sources.vl.path  # the tiny models are made where they are not
    with pytest.raises(UsageError, match=r"model mine: /on/the/driver is not on .*; copy the folder there"):
        glance_at(replace(away, id="mine"))


def test_other_weights_in_files_of_the_same_size_look_different(tiny_sources, tmp_path):
    copy = shutil.copytree(tiny_sources.vl.path, tmp_path / "vl")
    model = replace(tiny_sources.vl, path=str(copy))
    assert glance_at(model) == glance_at(tiny_sources.vl)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert glance_at(model) != glance_at(tiny_sources.vl)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"lacks model\.safetensors here"):
        glance_at(replace(model, id="mine"))


def test_a_look_around_in_a_folder(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (root / ".tmp-seen").write_text(".tmp-seen")
    found = look_around(
        Question((str(root),), (str(root),), ".tmp-seen", spool=str(tmp_path / "spool"), spool_bytes=1)
    )
    assert found.faults == {"store": f"{root} is empty here; use a shared file system or s3://bucket/prefix"}
    assert (found.exclusive, found.clock_ahead, found.devices, found.models) == (True, None, None, {})
    assert found.spool_free > 0
    assert sorted(path.name for path in root.iterdir()) == [".tmp-seen"]
    found = look_around(Question((str(tmp_path / "other"),), probe=".tmp-seen"))
    assert (
        "is not the same place here as where the job was started: it is a local folder"
        in found.faults["store"]
    )


@pytest.mark.server
@pytest.mark.parametrize("server", ["moto", "rclone"])
def test_a_look_around_in_a_store(server, request, monkeypatch, tmp_path):
    store = request.getfixturevalue(server)
    use(monkeypatch, store.env)
    root = f"s3://{store.new_bucket()}/data"
    with fitness.probed([root]) as probe:
        found = look_around(Question((root,), probe=probe))
        assert found.faults == {}
        assert abs(found.clock_ahead) < 60
        assert found.exclusive == (server == "moto")
        assert "is not the same place here" in look_around(Question((root,), probe="x")).faults["store"]
        with FaultProxy(store.port, clock=-1200.0) as proxy:
            use(monkeypatch, store.env_through(proxy.endpoint))
            assert 1140 < look_around(Question((root,), probe=probe)).clock_ahead < 1260
        use(monkeypatch, store.env)
    bucket = root.split("/")[2]
    assert "Contents" not in store.client.list_objects_v2(Bucket=bucket)
    wrong = look_around(Question((f"s3://{bucket}-not/data",)))
    assert "make the bucket or check its name" in wrong.faults["store"] or "404" in wrong.faults["store"]


def test_code_is_told_apart_by_what_it_says(monkeypatch, tmp_path):
    before = code_hash()
    for room in node.ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(node, "__file__", str(tmp_path / "ray_jobs" / "cluster" / "node_probe.py"))
    assert code_hash() == before
    with (tmp_path / "shards" / "format" / "plan.py").open("a") as file:
        file.write("# another version\n")
    assert code_hash() != before


@pytest.mark.parametrize("words", [{}, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "1,3"}])
def test_gpus_that_a_node_was_started_without_stay_hidden(words):
    """The worker's own variable is Ray's, to hide what it has not reserved; its parent is the node's raylet."""
    hide = "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''"
    worker = f"{hide}; from ray_jobs.cluster import node_probe; print(node_probe.visible_to_ray())"
    raylet = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}], check=True)"
    clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", raylet], env=clean | words, cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.returncode) == (str(words.get("CUDA_VISIBLE_DEVICES")), 0), done.stderr


def test_gpus_are_listed_by_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(node, "LIST_DEVICES", "import os; print('[[\"A\", 1, 2]]', end='' * len(os.environ))")
    assert node.devices_here() == (Device("A", 1, 2),)
    monkeypatch.setattr(node, "LIST_DEVICES", "raise RuntimeError('no driver')")
    with pytest.raises(
        StorageError, match="torch cannot list the GPUs: RuntimeError: no driver; check driver"
    ):
        node.devices_here()


def test_a_job_asks_the_nodes_where_there_are_several(tmp_path, monkeypatch):
    nodes = [a_node(models={}), a_node(silent="gone"), a_node(silent="gone")]
    monkeypatch.setattr(fitness, "ask_nodes", lambda question, **_: asked.append(question) or nodes)
    monkeypatch.setattr(fitness, "versions_here", lambda: VERSIONS)
    asked = []
    root = str(tmp_path / "data")
    with pytest.raises(UsageError, match=r"node 10\.0\.0\.7 \(abababab\): answer: gone \(1 more faults\)"):
        check_nodes(Cluster(("a", "b"), 4, 0), writes=[root])
    nodes = nodes[:1]
    check_nodes(Cluster(("a", "b"), 4, 0), writes=[root])
    assert len(asked) == 2
    check_nodes(Cluster(("a",), 4, 0), writes=[root])
    assert len(asked) == 2
    assert list(Path(root).iterdir()) == []


def test_there_is_something_to_check_for():
    with pytest.raises(UsageError, match=r"build\.output or train\.output is needed"):
        preflight.preflight(preflight.PreflightOptions(), BuildOptions(), TrainOptions())


# A head, then a sound node and preflight, then the broken nodes and preflight; nodes are told how to differ.
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


@pytest.mark.server
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_store_that_cannot_join_parts_is_found_out_at_the_start_of_every_job(strict, monkeypatch, nodes):
    """On the driver, however many nodes there are; and on a node, as a fault of its store."""
    use(monkeypatch, strict.env)
    root = f"s3://{strict.new_bucket()}/data"
    alone = Cluster(nodes=("a",), cpus=1.0, gpus=0.0)
    check_nodes(alone, writes=[root])
    assert look_around(Question(writes=(root,))).faults == {}
    monkeypatch.setattr(s3_store, "checksum_named", lambda client: {})
    with pytest.raises(StorageError, match=r"cannot put s3://.*: InvalidPart"):
        check_nodes(replace(alone, nodes=("a", "b")[:nodes]), writes=[root])
    assert "InvalidPart" in look_around(Question(writes=(root,))).faults["store"]
    assert not strict.bucket(root).objects
