"""Preflight on paper: each fault of a node is named, and the driver finds out what a store cannot do."""

from dataclasses import replace
from pathlib import Path

import pytest

from projector.options import TrainOptions
from ray_jobs.cli.run_options import BuildOptions
from ray_jobs.cluster import node_checks as fitness
from ray_jobs.cluster.connect import Cluster
from ray_jobs.cluster.node_checks import Node, check_nodes, faults_of
from ray_jobs.cluster.node_probe import (
    TO_BE_FETCHED,
    Answer,
    Device,
    Question,
    look_around,
)
from ray_jobs.jobs import preflight
from ray_jobs.jobs.preflight import crowded, placed, preflight_verdict, table
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
