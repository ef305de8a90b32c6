"""What goes wrong with a run, for real: stuck and deadly samples, two builders, failing stores, secrets."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fault_proxy import FaultProxy
from ray_support import ROOT, build_command, bytes_of, processes_of, stand_in_command, with_workers
from s3_support import running_moto, running_rclone, use
from shards.dataset.dataset import Dataset
from shards.format.plan import make_plan
from shards.format.splits import LEAST_HELD_OUT
from shards.prompts.builtin import builtin_prompts
from shards.stores.local import open_storage
from shards.tools.gc_and_repair import uncommit
from shards.tools.info import info
from shards.tools.verify import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def opened(root):
    return Dataset.open(open_storage(str(root)))


def assert_same(root, undisturbed):
    """The dataset under a root, local or S3, holds the bytes of the undisturbed one and nothing broken."""
    storage = open_storage(str(root))
    found = {
        Path(e.key): storage.get_bytes(e.key)
        for e in storage.list()
        if e.key.startswith(("train/", "val/", "test/"))
    }
    assert found == bytes_of(undisturbed)
    findings = verify(str(root))
    assert (findings.problems, findings.samples, findings.complete) == ([], 24, True)


def a_planned_id():
    """Id of a sample in the middle of a shard of the small build."""
    plan = make_plan(
        builtin_prompts().prompts,
        seed=0,
        val_fraction=0.25,
        test_fraction=0.2,
        least_held_out=LEAST_HELD_OUT,
        samples_per_shard=4,
        segments=(24,),
    )
    return plan.shard("train-000001").samples[2].id


def test_a_stuck_builder_is_named_and_restarted(run_stand_in, undisturbed_stand_in, tmp_path):
    hook = {
        "SHARDS_CRASH_AT": "mid-shard:2",
        "SHARDS_CRASH_ONCE": str(tmp_path / "once"),
        "SHARDS_CRASH_HOW": "hang",
    }
    done = run_stand_in(tmp_path / "data", extra=hook, stuck_seconds=20)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"(train|val|test)-\d{6}: \S+:\d+ has finished nothing for .* restarting it", done.stdout
    )
    assert_same(tmp_path / "data", undisturbed_stand_in)


def test_a_sample_that_kills_its_worker_is_found_and_given_up(run_stand_in, tmp_path):
    deadly = a_planned_id()
    done = run_stand_in(
        tmp_path / "data", extra={"SHARDS_CRASH_AT": f"sample-{deadly}"}, max_failed_fraction=0.5
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = info(opened(tmp_path / "data"))
    assert (facts["samples"], facts["failed"], facts["complete"]) == (23, 1, True)
    (path,) = (tmp_path / "data" / "failed").glob("*.parquet")
    (row,) = pq.read_table(path).to_pylist()
    assert (row["id"], row["stage"]) == (deadly, "worker")
    again = run_stand_in(tmp_path / "data")  # nothing kills it now: tried once more, it is made
    assert again.returncode == 0, again.stderr
    facts = info(opened(tmp_path / "data"))
    assert (facts["samples"], facts["failed"], facts["complete"]) == (24, 0, True)
    uncommit(
        opened(tmp_path / "data"), ["train-000001"]
    )  # as repair does: made anew, it must not make it twice
    assert run_stand_in(tmp_path / "data").returncode == 0
    findings = verify(str(tmp_path / "data"))
    assert (findings.problems, findings.samples, findings.complete) == ([], 24, True)


def test_two_builds_on_one_root_give_one_dataset(head, undisturbed_stand_in, tmp_path):
    command = stand_in_command(tmp_path / "data", actors=1)
    builds = [
        subprocess.Popen(
            command,
            env=head.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [build.communicate(timeout=300)[0] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], said
    assert_same(tmp_path / "data", undisturbed_stand_in)
    commits = opened(tmp_path / "data").commits()
    assert len({commit.attempt for commit in commits}) == len(commits)


@pytest.fixture
def disk(tmp_path):
    """A file system of 400 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs privileges")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(disk, size):
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def test_a_full_disk_is_named_and_the_rest_is_made_after_freeing(run_build, undisturbed, disk):
    done = run_build(disk / "data")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the disk is full" in done.stdout
    assert str(disk) in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    resize(disk, "200m")
    assert run_build(disk / "data", actors=1).returncode == 0
    assert_same(disk / "data", undisturbed)


def test_a_spool_without_room_is_told_before_work_starts(run_build, disk, tmp_path):
    resize(disk, "40k")
    done = run_build(tmp_path / "data", spool=disk)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(rf"error: spool folder '{disk}': 0\.0 MB free, \d+\.\d MB needed .*", line)
    assert not (tmp_path / "data" / "_commit").exists()


def test_a_spool_that_fills_up_is_named_and_the_rest_is_made_after_freeing(
    run_build, head, undisturbed, disk, tmp_path
):
    resize(disk, "2m")
    output = tmp_path / "data"
    paused = tmp_path / "paused"
    pause = {"SHARDS_CRASH_AT": "mid-shard:3", "SHARDS_CRASH_HOW": "pause", "SHARDS_CRASH_ONCE": str(paused)}
    with subprocess.Popen(
        build_command(output, spool=disk, actors=1),
        env=with_workers(head.environment, pause),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as build:
        while not (paused.exists() and list(output.glob("_commit/*.json"))):
            assert build.poll() is None, build.stdout.read()
            time.sleep(0.01)
        with pytest.raises(OSError, match="No space left"):
            (disk / "another file").write_bytes(bytes(4_000_000))
        paused.unlink()
        said = build.stdout.read()
        assert build.wait(timeout=60) == 1, said
    verdict = said.splitlines()[-1]
    full = (
        rf"cannot write {disk}/shard-workspace-\S+: the disk is full \(0 MB free at {disk}/\S+\); free some"
    )
    assert re.match(rf"not complete: (train|val|test)-\d{{6}}: {full}", verdict), said
    assert "Traceback" not in said
    assert [path.name for path in disk.iterdir()] == ["another file"]
    findings = verify(str(output))
    assert findings.problems == []
    assert 0 < findings.samples < 24
    (disk / "another file").unlink()
    done = run_build(output, spool=disk, actors=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(output, undisturbed)


@pytest.fixture(scope="module", params=["moto", "rclone"])
def server(request, tmp_path_factory):
    running = {"moto": running_moto, "rclone": running_rclone}[request.param]
    with running(tmp_path_factory.mktemp(request.param)) as server:
        yield server


def secrets_left(server, *places):
    """Files under the places that hold the secret key."""
    secret = server.secret_key.encode()
    files = [path for place in places for path in Path(place).rglob("*") if path.is_file()]
    return [path for path in files if secret in path.read_bytes()]


@pytest.mark.server
def test_a_build_on_s3_killed_and_finished(build_alone, undisturbed, server, tmp_path, monkeypatch):
    use(monkeypatch, server.env)
    root = f"s3://{server.new_bucket()}/some/where"
    temporary = {"RAY_TMPDIR": str(Path("/tmp") / f"r{tmp_path.name[-8:]}"), "TMPDIR": str(tmp_path)}
    killed = build_alone(root, extra=server.env | {"SHARDS_CRASH_AT": "after-tar:1"} | temporary)
    assert killed.returncode == 0, killed.stdout + killed.stderr
    assert_same(root, undisturbed)
    said = killed.stdout + killed.stderr
    assert server.secret_key not in said
    assert ("ignores If-None-Match" in said) == (server.name == "rclone")
    elsewhere = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    wrong = build_alone(root, extra=server.env | temporary | elsewhere)
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith("failed: cannot look at s3://")
    assert "Traceback" not in wrong.stderr
    assert server.secret_key not in wrong.stdout + wrong.stderr
    objects = tmp_path / "objects"
    for entry in open_storage(root).list():
        path = objects / entry.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(open_storage(root).get_bytes(entry.key))
    assert list(objects.rglob("*.tar"))
    assert secrets_left(server, objects, tmp_path, temporary["RAY_TMPDIR"]) == []


@pytest.mark.server
def test_a_second_writer_is_kept_out_where_the_store_overwrites(
    build_alone, environment, tmp_path, monkeypatch
):
    with running_rclone(tmp_path) as server:
        use(monkeypatch, server.env)
        root = f"s3://{server.new_bucket()}/data"
        hook = {"SHARDS_CRASH_AT": "mid-shard:3", "SHARDS_CRASH_HOW": "hang"}
        with subprocess.Popen(
            build_command(root),
            env=environment | server.env | hook,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as first:
            storage = open_storage(root)
            while not any(entry.key.startswith("_commit/") for entry in storage.list()):
                assert first.poll() is None
                time.sleep(0.05)
            second = build_alone(root, extra=server.env)
            first.kill()
        assert second.returncode == 1
        assert "is being written by process" in second.stderr
        third = build_alone(root, extra=server.env, actors=1)  # the holder is dead: its lease is taken over
        assert third.returncode == 0, third.stdout + third.stderr
        findings = verify(root)
        assert (findings.problems, findings.samples, findings.complete) == ([], 24, True)


@pytest.mark.server
def test_hundreds_of_faults_lose_nothing(build_alone, tmp_path, monkeypatch):
    with running_moto(tmp_path) as server, FaultProxy(server.port, seed=7, rate=0.5) as proxy:
        root = f"s3://{server.new_bucket()}/data"
        done = build_alone(root, extra=server.env_through(proxy.endpoint), samples=40, samples_per_shard=1)
        assert done.returncode == 0, done.stdout + done.stderr
        use(monkeypatch, server.env)
        findings = verify(root)
        assert (findings.problems, findings.samples, findings.complete) == ([], 40, True)
        assert sum(proxy.faults.values()) >= 200, proxy.faults


def test_a_root_of_any_script_is_built_and_checked(build_alone, tmp_path):
    root = tmp_path / "图片 صور \U0001f98a a b" / "two\nlines"
    done = build_alone(root)
    assert done.returncode == 0, done.stdout + done.stderr
    findings = verify(str(root))
    assert (findings.problems, findings.samples, findings.complete) == ([], 24, True)


def test_a_killed_monitor_is_one_line_and_the_rerun_finishes(environment, build_alone, tmp_path):
    root = tmp_path / "data"
    process = subprocess.Popen(
        build_command(root),
        env=environment,  # a cluster of its own, in its session
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(root.glob("_commit/*.json")):
        time.sleep(0.05)
    (monitor,) = [pid for pid in processes_of(process.pid) if command_of(pid).startswith("ray::Monitor")]
    os.kill(monitor, signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    assert "Traceback" not in out + err
    assert len(err.splitlines()) == 1, err
    done = build_alone(root)
    assert done.returncode == 0, done.stdout + done.stderr
    findings = verify(str(root))
    assert (findings.problems, findings.samples, findings.complete) == ([], 24, True)


def command_of(pid):
    """The command line of a process; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_local_ray_takes_no_orders_of_strangers(environment, tmp_path):
    """Its servers listen on all interfaces; a token of the job's own keeps strangers out."""
    process = subprocess.Popen(
        build_command(tmp_path / "data"),
        env=environment,
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None and not list(tmp_path.glob("data/_commit/*.json")):
        time.sleep(0.05)
    raylet = next(told for pid in processes_of(process.pid) if "--gcs-address=" in (told := command_of(pid)))
    address = re.search(r"--gcs-address=([^\0]+)", raylet)[1]
    stranger = (
        f"from ray._raylet import GcsClient; GcsClient(address={address!r}).internal_kv_keys(b'', None)"
    )
    refused = subprocess.run(
        [sys.executable, "-c", stranger], env=environment, capture_output=True, text=True
    )
    assert "AuthenticationError" in refused.stderr, refused
    assert process.wait(300) == 0
