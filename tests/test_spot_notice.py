"""cluster/spot_notice.py: asks in EC2's way, tells Ray in Ray's own words.

`benchmarks/namespaces.py` has it drain nodes of real clusters.
"""

import importlib.util
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.error import HTTPError

import pytest
from ray.scripts.scripts import drain_node

from metadata_support import notice_in, service
from ray_support import ROOT

SPEC = importlib.util.spec_from_file_location("spot_notice", ROOT / "cluster" / "spot_notice.py")
spot_notice = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(spot_notice)


@contextmanager
def answering(notice):
    server = service(notice=notice)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server
    finally:
        server.shutdown()
        server.server_close()


def test_a_notice_tells_the_time():
    with answering(notice_in(120)) as (place, _):
        left = spot_notice.taken_back_at(place) - datetime.now(UTC)
    assert 118 < left.total_seconds() <= 120


def test_without_a_notice_there_is_no_time():
    with answering(None) as (place, _):
        assert spot_notice.taken_back_at(place) is None


@pytest.mark.parametrize("notice", ["{", "[]", '{"action": "stop"}', '{"time": "soon"}', '{"time": 3}'])
def test_an_answer_that_says_no_time_is_no_notice(notice):
    with answering(notice) as (place, _), pytest.raises(ValueError):
        spot_notice.taken_back_at(place)


def test_a_service_that_refuses_is_no_absence_of_notice(monkeypatch):
    with answering(None) as (place, _), pytest.raises(HTTPError):
        spot_notice.taken_back_at(f"{place}/elsewhere")


NODES = [
    {"NodeID": "d" * 56, "NodeManagerAddress": "10.0.0.7", "Alive": False},
    {"NodeID": "e" * 56, "NodeManagerAddress": "10.0.0.8", "Alive": True},
    {"NodeID": "f" * 56, "NodeManagerAddress": "10.0.0.7", "Alive": True},
]


@pytest.fixture
def told(monkeypatch):
    """What Ray is asked and told: the address it is joined at, then a command."""
    words = []

    def run(command):
        words.append(command)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(spot_notice.ray, "init", lambda *given, **options: words.append(given))
    monkeypatch.setattr(spot_notice.ray, "nodes", lambda: NODES)
    monkeypatch.setattr(spot_notice.subprocess, "run", run)
    return words


def test_it_asks_until_there_is_a_notice_and_then_tells_ray_once(told, capsys):
    with answering("{") as (place, server):
        server.address = "10.0.0.7"
        threading.Timer(0.3, lambda: setattr(server, "notice", None)).start()
        threading.Timer(0.6, lambda: setattr(server, "notice", notice_in(90))).start()
        assert spot_notice.main(["--service", place, "--poll", "0.01"]) == 0
    joined, words = told
    assert joined == ("auto",)
    assert words[2:4] == ["--node-id", "f" * 56]
    trouble, notice = capsys.readouterr().out.splitlines()
    assert trouble.startswith(place)
    assert notice.startswith("to be taken back at ")


def test_no_other_node_is_drained_where_ray_knows_none_of_this_address(told):
    with answering(notice_in(90)) as (place, server):
        server.address = "10.0.0.9"
        with pytest.raises(ValueError, match=r"Ray knows no node with address 10\.0\.0\.9"):
            spot_notice.main(["--service", place])
    assert told == [("auto",)]


@pytest.mark.parametrize(("seconds", "left"), [(100.9, "100"), (-5, "0")])
def test_ray_takes_the_words(seconds, left):
    words = spot_notice.drain_words("f" * 56, datetime.now(UTC) + timedelta(seconds=seconds))
    given = drain_node.make_context("drain-node", words[2:]).params
    assert given["node_id"] == "f" * 56
    assert given["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert str(given["deadline_remaining_seconds"]) == left
