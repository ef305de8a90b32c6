"""What a node finds when it looks around: models, stores, code and GPUs."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from fault_proxy import FaultProxy
from ray_jobs.cluster import node_checks as fitness
from ray_jobs.cluster import node_probe as node
from ray_jobs.cluster.node_probe import (
    TO_BE_FETCHED,
    Device,
    Question,
    code_hash,
    glance_at,
    look_around,
)
from ray_support import ROOT
from s3_support import use
from shards.errors import StorageError, UsageError


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
