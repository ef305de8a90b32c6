"""Failed samples are tried again in further shards, a bounded number of times, and nothing committed changes."""

import pytest

from shards.dataset.dataset import Dataset
from shards.dataset.failed_samples import plan_retries, retryable
from shards.format.plan import planned_count
from shards.stores.local import open_storage
from shards.tools.info import info
from shards.tools.verify import verify
from tests_support import a_plan, commit_shard


@pytest.fixture
def dataset(make_dataset, tmp_path):
    """20 samples, of which position 1 of the first shard has failed."""
    plan = a_plan()
    dataset, _ = make_dataset(shards=plan.shards[1:])
    commit_shard(dataset, plan.shards[0], tmp_path / "spool", failing=(1,))
    return dataset


def run_again(dataset, folder, *, failing=()):
    """What a build does: plan retries, make what is missing."""
    segments = plan_retries(dataset, max_attempts=3)
    for shard in dataset.missing(a_plan(segments=tuple(segments))):
        commit_shard(dataset, shard, folder, failing=failing)
    return segments


def test_a_retry_that_works_completes_the_dataset(dataset, tmp_path):
    lost = a_plan().shards[0].samples[1]
    before = {entry.key: entry.tag for entry in dataset.storage.list("train/")}
    assert [row["id"] for row in retryable(dataset, 3)] == [lost.id]
    segments = run_again(dataset, tmp_path / "spool")
    assert segments == (20, (lost.id,))
    assert before.items() <= {entry.key: entry.tag for entry in dataset.storage.list("train/")}.items()
    findings = verify(dataset.storage.root)
    assert (findings.problems, findings.samples, findings.complete) == ([], 20, True)
    facts = info(dataset)
    assert (facts["planned"], facts["samples"], facts["failed"], facts["complete"]) == (20, 20, 0, True)
    assert retryable(dataset, 3) == []
    assert run_again(dataset, tmp_path / "spool") == segments


def test_tries_are_bounded(dataset, tmp_path):
    for tries in (1, 2):
        (row,) = retryable(dataset, 3)
        assert row["attempts"] == tries
        run_again(dataset, tmp_path / "spool", failing=(0,))
    assert retryable(dataset, 3) == []
    assert len(dataset.segments()) == 3
    facts = info(dataset)
    assert (facts["samples"], facts["failed"], facts["complete"]) == (19, 1, True)
    assert [row["attempts"] for row in retryable(dataset, 9)] == [3]


def test_a_planned_retry_is_not_planned_twice(dataset):
    assert plan_retries(dataset, 3) == plan_retries(dataset, 3)
    assert not verify(dataset.storage.root).complete


def test_growth_after_a_retry(dataset, tmp_path):
    run_again(dataset, tmp_path / "spool")
    dataset.grow(25, append=True)
    segments = dataset.segments()
    assert planned_count(segments) == 26
    for shard in dataset.missing(a_plan(25, segments=segments)):
        commit_shard(dataset, shard, tmp_path / "spool")
    findings = verify(dataset.storage.root)
    assert (findings.problems, findings.samples, findings.complete) == ([], 25, True)


def test_captions_that_can_never_work_are_left_alone(make_dataset, tmp_path, monkeypatch):
    import tests_support
    from shards.format.sample import Failure

    class SampleError(ValueError):
        pass

    monkeypatch.setattr(tests_support, "RuntimeError", SampleError, raising=False)
    plan = a_plan()
    dataset, _ = make_dataset(shards=())
    commit_shard(dataset, plan.shards[0], tmp_path / "spool", failing=(1,))
    assert Failure.from_exception("text", SampleError("x")).error_class == "SampleError"
    assert retryable(dataset, 3) == []


def test_two_builders_plan_one_retry(dataset):
    other = Dataset.open(open_storage(dataset.storage.root))
    assert len(plan_retries(dataset, 3)) == 2
    assert not other.record(1, {"retry": ["x"]})
    assert plan_retries(other, 3) == dataset.segments()


def test_resuming_lists_the_commits_once(dataset, monkeypatch):
    """A hundred thousand commits take a hundred requests a listing; failures are found without another."""
    listed = []
    original = dataset.storage.list
    monkeypatch.setattr(dataset.storage, "list", lambda prefix="": listed.append(prefix) or original(prefix))
    dataset.grow(20, append=False)
    segments = plan_retries(dataset, 3)
    dataset.missing(a_plan(segments=tuple(segments)))
    assert listed.count("_commit/") == 1


def test_a_dead_letter_file_without_a_commit_is_no_failure(dataset):
    dataset.storage.delete("_commit/train-000000.json")
    assert retryable(dataset, 3) == []


def test_a_shard_made_once_more_leaves_out_what_was_tried_again(dataset):
    lost = a_plan().shards[0].samples[1]
    assert a_plan().superseded == frozenset()
    assert a_plan(segments=(20, (lost.id,))).superseded == {lost.key}
    twice = a_plan(segments=(20, (lost.id,), (lost.id,)))
    tries = [sample.key for shard in twice.shards for sample in shard.samples if sample.id == lost.id]
    assert twice.superseded == set(tries[:-1])
