"""Ray that cannot start here: one line with what to do, from what Ray raises."""

import pytest

from ray_jobs.cluster import connect
from shards.errors import StorageError, UsageError


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/none")
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets(monkeypatch, name):
    def never(**_options):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(connect.ray, "init", never)
    monkeypatch.setenv(name, f"/tmp/{'x' * 85}")
    said = rf"^{name} = '/tmp/x+': .* 107 bytes, 51 fewer than there; set RAY_TMPDIR to a folder with a shorter name"
    with pytest.raises(UsageError, match=said), connect.connected():
        pass


def test_the_longest_folder_that_is_taken_has_sockets_that_fit():
    from ray._private.utils import validate_socket_filepath

    folder = "/tmp/" + "x" * (connect.SOCKET_PATH - connect.LONGEST_SOCKET - len("/tmp/") - len("/ray"))
    path = f"{folder}/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store"
    validate_socket_filepath(path)
    with pytest.raises(OSError, match="cannot exceed 107 bytes"):
        validate_socket_filepath(f"{path}x")


@pytest.mark.parametrize(
    "error",
    [
        Exception(
            "The current node timed out during startup. This could happen because\nsome of the processes failed"
        ),
        OSError("no space"),
        RuntimeError("Failed to start GCS"),
    ],
)
def test_a_node_that_does_not_start(monkeypatch, error):
    def fail(**_options):
        raise error

    monkeypatch.setattr(connect.ray, "init", fail)
    with pytest.raises(StorageError) as raised, connect.connected():
        pass
    said, reason = str(raised.value), " ".join(str(error).split())
    assert said.startswith(f"Ray did not start on this machine: {reason}; see its logs in /tmp/none/ray/")
    assert said.endswith("free memory and CPUs, and run it again")
    assert "\n" not in said
