"""A builder, without Ray: a real monitor and a real dataset, and samples that need no model."""

import io
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import torch
from PIL import Image
from ray.exceptions import RayActorError

from projector.making.batching import BatchMaker
from projector.making.shard_maker import InOneStage
from ray_jobs.building import builder as module
from ray_jobs.building import shard_output
from ray_jobs.building.builder import ShardBuilder
from ray_jobs.building.failure_budget import FailureBudget
from ray_jobs.building.messages import BuildSpec, Outcome
from ray_jobs.building.monitor import MAX_ATTEMPTS, Monitor
from ray_jobs.building.reader import Reader
from ray_jobs.building.shard_output import Finisher
from ray_jobs.cluster import device_trouble, this_actor
from shards.dataset.dataset import Dataset
from shards.errors import StorageError
from shards.format.commit import Maker
from shards.format.plan import make_plan
from shards.format.sample import Expected, make_sample
from shards.prompts.prompt import Prompt
from shards.stores.local import open_storage

SIDE, SAMPLES = 64, 6
OTHER = Maker(host="other", pid=1, actor="other")
ROW = {"row": np.array([0])}


class Drawn(BatchMaker):
    """Noise in place of pictures."""

    def __init__(self, together=2):
        super().__init__(together)

    def _make(self, batch):
        rng = np.random.default_rng(0)
        picture = io.BytesIO()
        noise = rng.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(picture, format="PNG")
        rows = rng.normal(size=(12, 8)).astype(ml_dtypes.bfloat16)
        kind = np.array([0, 0, *[2] * 10], np.uint8)
        seen = np.array([0, 3, *[1] * 4, 3, 0, *[2] * 4], np.uint8)
        tensors = {"text": rows, "text.kind": kind, "vl.caption.-8": rows, "vl.caption.kind": seen}
        return [make_sample(s, image=picture.getvalue(), image_format="png", tensors=tensors) for s in batch]


class Called:
    """An actor as its callers have it, without Ray."""

    def __init__(self, itself):
        self._itself = itself

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self._itself, name))


class HalfRefused(Drawn):
    """The first sample of each batch is not sound, which only the check before writing finds."""

    def _make(self, batch):
        first, *others = super()._make(batch)
        infinite = np.full_like(first.tensors["text"], np.inf)
        return [replace(first, tensors={**first.tensors, "text": infinite}), *others]


def drawn():
    return InOneStage(Drawn())


def one_by_one():
    return InOneStage(Drawn(together=1))


def half_refused():
    return InOneStage(HalfRefused())


@pytest.fixture
def dataset(tmp_path):
    dataset = Dataset.create_or_open(open_storage(str(tmp_path / "data")), {"test": 1}, {})
    dataset.grow(SAMPLES, append=False)
    return dataset


@pytest.fixture
def shards():
    prompts = [Prompt(f"caption {index}") for index in range(SAMPLES)]
    return make_plan(prompts, seed=0, val_fraction=0, samples_per_shard=2, segments=(SAMPLES,)).shards


@pytest.fixture
def a_builder(dataset, monkeypatch, tmp_path):
    here = {
        "get_node_id": "node",
        "get_job_id": "job",
        "get_actor_id": "actor",
        "get_worker_id": "worker",
        "get_accelerator_ids": {},
        "get_assigned_resources": {},
    }
    context = SimpleNamespace(current_actor=None, **{n: lambda v=v: v for n, v in here.items()})
    ray = SimpleNamespace(
        get=lambda answer: answer,
        get_runtime_context=lambda: context,
        util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1"),
    )
    monkeypatch.setattr(module, "ray", ray)
    for used in (shard_output, this_actor):
        monkeypatch.setattr(used, "ray", ray)
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    expected = Expected(("caption",), (-8,), SIDE, SIDE)
    spec = BuildSpec("run", dataset.storage.root, expected, str(tmp_path), 0, drawn)

    def make(monitor, readers=(), **given):
        return ShardBuilder(replace(spec, **given), Called(monitor), readers)

    make.spec = spec
    return make


def a_monitor(shards, builders=1):
    return Monitor(shards, FailureBudget("build", 1.0, 99), builders)


def outcomes(builder, calls):
    return [builder(ROW)["outcome"][0] for _ in range(calls)]


def test_a_builder_makes_shard_after_shard_until_none_is_left(dataset, shards, a_builder):
    monitor = a_monitor(shards)
    assert outcomes(a_builder(monitor), 4) == ["committed", "committed", "committed", "nothing"]
    assert [(commit.samples, commit.failed) for commit in dataset.commits()] == [(2, 0)] * 3
    assert (monitor.snapshot().made, monitor.snapshot().builders) == (SAMPLES, 0)
    assert all(commit.made_by.actor == "actor" for commit in dataset.commits())
    assert outcomes(a_builder(a_monitor(shards)), 3) == ["there"] * 3, "nothing is made twice"


def test_a_sample_that_the_check_refuses_counts_once_and_its_reason_has_its_caption(
    dataset, shards, a_builder
):
    monitor = a_monitor(shards)
    assert outcomes(a_builder(monitor, maker=half_refused), 3) == ["committed"] * 3
    assert [(commit.samples, commit.failed) for commit in dataset.commits()] == [(1, 1)] * 3
    end = monitor.snapshot()
    assert (end.made, end.failed) == (3, 3)
    captions = [shard.spelled_out().samples[0].caption for shard in shards]
    assert end.commonest.endswith(f" ({', '.join(captions)})"), end.commonest


def test_a_shard_that_is_committed_needs_no_reader(shards, a_builder):
    """Which may take minutes to load, and had nothing of it."""
    outcomes(a_builder(a_monitor(shards)), 3)
    absent = SimpleNamespace()
    assert outcomes(a_builder(a_monitor(shards), readers=[absent]), 1) == ["there"]


def test_a_device_that_breaks_under_a_batch_that_is_written_ends_the_process(shards, a_builder, monkeypatch):
    """The writer waits for copies from the device, and gets its error."""

    def broken(*_):
        raise RuntimeError("CUDA error: unspecified launch failure")

    def end(code):
        raise SystemExit(code)

    builder = a_builder(a_monitor(shards))
    monkeypatch.setattr(builder._here, "write", broken)
    monkeypatch.setattr(device_trouble, "device_is_broken", lambda: True)
    monkeypatch.setattr(device_trouble.os, "_exit", end)
    with pytest.raises(SystemExit):
        builder(ROW)


class LatePen:
    """Writes at once, and says so of all but every third batch only with that."""

    def __init__(self):
        self.count = 0

    def submit(self, write, *arguments):
        self.count += 1
        own, found = self.count, write(*arguments)
        return SimpleNamespace(result=lambda: found, done=lambda: self.count - own >= 3 - own % 3)

    def shutdown(self, **_):
        pass


def test_batches_that_are_written_together_are_reported_one_by_one(shards, a_builder, monkeypatch):
    """One sum of a sound batch and the failures behind it would hide how many failed in a row."""
    prompts = [Prompt(f"caption {index}") for index in range(SAMPLES)]
    (shard,) = make_plan(prompts, seed=0, val_fraction=0, samples_per_shard=9, segments=(SAMPLES,)).shards
    monitor, reported = a_monitor([shard]), []
    report = monitor.report

    def heard(attempt, made, *others):
        reported.append(made)
        return report(attempt, made, *others)

    monitor.report = heard
    monkeypatch.setattr(module, "_Attempt", partial(module._Attempt, pen=LatePen()))
    assert outcomes(a_builder(monitor, maker=one_by_one), 1) == ["committed"]
    assert sorted(set(reported)) == [*range(SAMPLES + 1)]


def test_what_another_run_committed_is_taken(shards, a_builder):
    builder = a_builder(a_monitor(shards))
    outcomes(builder, 3)
    later = a_builder(a_monitor(shards), run="another run")
    assert outcomes(later, 1) == ["taken"]


def test_a_builder_that_is_declared_dead_before_its_commit_commits_nothing(dataset, shards, a_builder):
    monitor = a_monitor(shards[:1])
    builder = a_builder(monitor)
    make = builder._make

    def out_of_reach(work):
        whole = make(work)
        monitor.begin("successor", Maker(host="elsewhere", pid=2, actor="actor"))
        return whole

    builder._make = out_of_reach
    assert outcomes(builder, 1) == ["stopped"]
    assert dataset.commits() == []
    assert not builder._here._open, "what it made is thrown away"
    assert monitor.may_publish("successor")


def test_a_store_that_refuses_stops_the_run_with_its_words(shards, a_builder, monkeypatch):
    def full(*_):
        raise StorageError("the disk is full")

    monitor = a_monitor(shards)
    monkeypatch.setattr(shard_output, "publish", full)
    assert outcomes(a_builder(monitor), 2) == ["refused", "nothing"]
    assert monitor.snapshot().stopping == f"{shards[0].name}: the disk is full"


def test_a_shard_lost_with_its_reader_is_begun_anew(dataset, shards, a_builder, monkeypatch):
    """The reader has forgotten the first attempt, as after a restart; the samples at work are blamed."""
    reader = Reader(a_builder.spec)
    monkeypatch.setattr(reader, "write", lambda attempt, results: Finisher.write(reader, attempt, results))
    begin, begun = reader.begin, []

    def restarted(attempt, planned):
        begun.append(attempt)
        if len(begun) > 1:
            begin(attempt, planned)

    monkeypatch.setattr(reader, "begin", restarted)
    monitor = a_monitor(shards[:1])
    assert outcomes(a_builder(monitor, readers=[Called(reader)]), 1) == ["committed"]
    (commit,) = dataset.commits()
    assert (commit.attempt, [(t.attempt, t.end) for t in commit.earlier]) == (begun[1], [(begun[0], "died")])
    assert len(begun) == 2


@pytest.mark.parametrize("stopped", [False, True])
def test_a_reader_that_takes_long_to_restart_costs_no_attempts(shards, a_builder, monkeypatch, stopped):
    reader, refused = Finisher(a_builder.spec), []
    begin = reader.begin

    def restarting(attempt, planned):
        if len(refused) < 2 * MAX_ATTEMPTS:
            refused.append(attempt)
            raise RayActorError
        begin(attempt, planned)

    def wait(_):
        if stopped and len(refused) == 3:
            monitor.stop("stopped by a signal")

    monkeypatch.setattr(reader, "begin", restarting)
    monitor = a_monitor(shards[:1])
    builder = a_builder(monitor, readers=[Called(reader)])
    monkeypatch.setattr(module.time, "sleep", wait)
    assert outcomes(builder, 1) == (["nothing"] if stopped else ["committed"])
    assert len(set(refused)) == 1
    assert len(refused) == (4 if stopped else 2 * MAX_ATTEMPTS)


def test_a_shard_begun_again_throws_away_what_was_open_of_it(shards, a_builder):
    finisher = Finisher(a_builder.spec)
    for attempt in ("first", "second"):
        finisher.begin(attempt, shards[0])
    finisher.begin("other", shards[1])
    assert set(finisher._open) == {"second", "other"}
    for attempt in ("second", "other"):
        finisher.drop(attempt)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nTried to"), RuntimeError("no GPU")]
)
def test_models_that_find_no_room_are_one_line_with_the_device(shards, a_builder, error):
    def maker():
        raise error

    monitor = a_monitor(shards)
    builder = a_builder(monitor, maker=maker)
    assert outcomes(builder, 1) == ["left out"]
    said = f"the models cannot be loaded on {builder._itself.host}:{builder._itself.pid}, CPU: "
    assert monitor.snapshot().stopping == said + " ".join(str(error).split())


def test_a_builder_that_cannot_load_keeps_its_row_until_the_others_are_done(shards, a_builder, monkeypatch):
    """One that gave it back would take, and waste, all the others within seconds."""
    loads, waits = [], []
    monitor = a_monitor(shards[:2], builders=2)
    first = monitor.begin("7", OTHER).shard.name

    def others_go_on(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            monitor.end("7", Outcome.COMMITTED)
            assert {first, monitor.begin("8", OTHER).shard.name} == {shard.name for shard in shards[:2]}
            monitor.end("8", Outcome.COMMITTED)

    def maker():
        loads.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    builder = a_builder(monitor, maker=maker)
    monkeypatch.setattr(module.time, "sleep", others_go_on)
    assert outcomes(builder, 2) == ["left out", "nothing"]
    assert (len(loads), len(waits)) == (1, 2)
    assert monitor.snapshot().stopping == ""


def test_a_reader_that_cannot_load_is_one_line_and_leaves_no_builder_out(a_builder):
    def load():
        raise RuntimeError("CUDA error:\nout of memory")

    with pytest.raises(
        StorageError, match=r"a reader's model cannot be loaded on .*: CUDA error: out of memory"
    ) as told:
        _ = Reader(replace(a_builder.spec, make_reader=load))._reader
    assert type(told.value) is StorageError


def test_a_sample_is_named_at_work_once(shards, a_builder, monkeypatch):
    """The device may still be at a batch that is being written; a death of it counts once for each sample."""
    prompts = [Prompt(f"caption {index}") for index in range(SAMPLES)]
    (shard,) = make_plan(prompts, seed=0, val_fraction=0, samples_per_shard=9, segments=(SAMPLES,)).shards
    monitor, named = a_monitor([shard]), []
    report = monitor.report

    def heard(attempt, made, failed, at_work, *others):
        named.append(at_work)
        return report(attempt, made, failed, at_work, *others)

    monitor.report = heard
    monkeypatch.setattr(module, "_Attempt", partial(module._Attempt, pen=LatePen()))
    assert outcomes(a_builder(monitor, maker=one_by_one), 1) == ["committed"]
    assert max(map(len, named)) > 2
    assert all(len(set(ids)) == len(ids) for ids in named)
