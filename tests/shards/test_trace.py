"""From a sample to whoever made it."""

import json

import pytest

from shards.__main__ import main
from shards.dataset.publish import Circumstances, publish
from shards.dataset.run_records import RunRecord, put_run
from shards.format.commit import Maker, Try
from shards.tools.trace import lines, trace
from tests_support import a_plan, commit_shard, write_shard

RUN = "b" * 32
TIME = "2026-01-05T08:00:00+00:00"
MAKER = Maker(RUN, "n0de", "gpu-3", "10.0.0.3", "act0r", 4711, "02000000", "worker-w-02000000-4711")
DEAD = Maker(RUN, "n0de2", "gpu-4", "10.0.0.4", "act0r2", 4712, "02000000", "worker-x-02000000-4712")


@pytest.fixture
def traced(make_dataset, tmp_path):
    """A dataset one shard of which was made by somebody known, with a sample that failed."""
    plan = a_plan()
    dataset, _ = make_dataset(shards=plan.shards[1:])
    circumstances = Circumstances(
        "9f" * 16,
        12.5,
        25.0,
        "GPU 2 (NVIDIA H200)",
        busy_seconds=20.0,
        begun=TIME,
        gpus=1.0,
        made_by=MAKER,
        earlier=(Try("8e" * 16, "died", 3.25, DEAD),),
    )
    publish(dataset, write_shard(dataset, plan.shards[0], tmp_path / "one", failing=(2,)), circumstances)
    put_run(
        dataset.storage,
        RunRecord(RUN, "build", "02000000", TIME, TIME, "complete", 0, 1.0, {}, 0.0, {"torch": "2.9"}),
    )
    return dataset, plan.shards[0]


def test_a_key_leads_to_actor_node_and_log(traced):
    dataset, shard = traced
    (found,) = trace(dataset, shard.samples[0].key)
    said = "\n".join(lines(found))
    assert found.id == shard.samples[0].id
    for fact in (
        shard.name,
        "9f" * 16,
        TIME,
        "12.5 s on GPU 2 (NVIDIA H200), 25.0 device seconds, 20.0 of them busy",
    ):
        assert fact in said
    assert "process 4711 on gpu-3 (10.0.0.3), node n0de" in said
    assert f"actor    act0r of Ray job 02000000, run {RUN}" in said
    assert "worker-w-02000000-4711.err" in said
    assert f"attempt {'8e' * 16} died after 3.2 s" in said
    assert "worker-x-02000000-4712.err" in said
    assert "torch 2.9" in said


def test_a_failed_sample_says_why(traced):
    dataset, shard = traced
    (found,) = trace(dataset, shard.samples[2].key)
    assert found.failure["error_class"] == "RuntimeError"
    said = "\n".join(lines(found))
    assert "could not be made" in said
    assert f"image: RuntimeError: no picture (traceback {found.failure['traceback_sha256'][:12]})" in said


def test_an_id_and_a_shard_lead_there_too(traced, capsys):
    dataset, shard = traced
    assert trace(dataset, shard.samples[1].id) == trace(dataset, shard.samples[1].key)
    assert trace(dataset, shard.samples[2].id) == trace(dataset, shard.samples[2].key)
    assert main(["trace", dataset.storage.root, shard.name, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["commit"]["made_by"]["log"] == MAKER.log
    assert told["key"] == ""


def test_what_was_made_outside_ray_says_so(make_dataset, capsys):
    dataset, plan = make_dataset()
    assert main(["trace", dataset.storage.root, plan.shards[0].samples[0].key]) == 0
    said = capsys.readouterr().out
    assert "not recorded" in said
    assert "numpy 2" in said


def test_captions_cannot_move_the_cursor(make_dataset, capsys):
    dataset, plan = make_dataset()
    for sample in plan.samples[:5]:
        assert main(["trace", dataset.storage.root, sample.key]) == 0
    assert "two\\nlines" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("train-000099", "shard train-000099 of .* is not committed"),
        ("train-000000-0099", "train-000000 has no sample at that place"),
        ("0123456789abcdef", "no committed shard of .* holds a sample of that id"),
        ("../etc/passwd", "no committed shard of .* holds a sample of that id"),
    ],
)
def test_what_is_not_there_is_said(make_dataset, capsys, what, complaint):
    import re

    dataset, _ = make_dataset()
    assert main(["trace", dataset.storage.root, what]) == 2
    assert re.search(complaint, capsys.readouterr().err)


def test_whoever_made_it_is_no_part_of_the_bytes(make_dataset, tmp_path):
    dataset, plan = make_dataset(root=str(tmp_path / "one"), shards=())
    other, _ = make_dataset(root=str(tmp_path / "two"), shards=())
    commit_shard(dataset, plan.shards[0], tmp_path / "a", failing=(1,))
    built = write_shard(other, plan.shards[0], tmp_path / "b", failing=(1,))
    publish(
        other,
        built,
        Circumstances("x", 3.0, 3.0, "GPU", made_by=MAKER, earlier=(Try("y", "died", 1.0, DEAD),)),
    )
    found = [
        {
            key: ds.storage.get_bytes(key)
            for key in (e.key for e in ds.storage.list())
            if "pairs-" in key or "failed" in key
        }
        for ds in (dataset, other)
    ]
    assert len(found[0]) == 3
    assert found[0] == found[1]
