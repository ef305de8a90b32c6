"""The run's memory, as plain Python."""

import pytest

from ray_jobs import monitor as module
from ray_jobs.monitor import FAILURE_GRACE, MAX_ATTEMPTS, Monitor


def report(monitor, shard, made=0, failed=0, at_work=(), worker="w"):
    return monitor.report(worker, shard, made=made, failed=failed, at_work=tuple(at_work))


def test_counts_add_up_over_shards_and_a_restarted_shard_starts_anew():
    monitor = Monitor(1.0, 99)
    monitor.begin("a", "train-000000")
    monitor.begin("b", "train-000001")
    report(monitor, "train-000000", made=3, failed=1)
    report(monitor, "train-000001", made=2)
    assert (monitor.snapshot().made, monitor.snapshot().failed) == (5, 1)
    monitor.begin("b", "train-000000")
    assert (monitor.snapshot().made, monitor.snapshot().failed) == (2, 0)


def test_a_shard_is_given_up_after_its_attempts():
    monitor = Monitor(1.0, 99)
    assert [monitor.begin("a", "s").go for _ in range(MAX_ATTEMPTS + 1)] == [True] * MAX_ATTEMPTS + [False]


def test_deaths_are_counted_for_the_samples_at_work():
    monitor = Monitor(1.0, 99)
    assert monitor.begin("a", "s").deaths == {}
    report(monitor, "s", at_work=["x", "y"])
    assert monitor.begin("a", "s").deaths == {"x": 1, "y": 1}
    report(monitor, "s", at_work=["x"])
    assert monitor.begin("a", "s").deaths == {"x": 2, "y": 1}
    report(monitor, "s", at_work=[])
    assert monitor.begin("a", "s").deaths == {"x": 2, "y": 1}


def test_failures_over_the_limit_stop_the_run_but_not_the_first_few():
    monitor = Monitor(0.1, 99)
    monitor.begin("a", "s")
    assert report(monitor, "s", made=0, failed=FAILURE_GRACE - 1)
    assert not report(monitor, "s", made=FAILURE_GRACE - 3, failed=3)
    assert "3 of 20 samples failed" in monitor.snapshot().stopping
    assert not monitor.begin("b", "t").go


def test_failures_at_the_limit_do_not():
    monitor = Monitor(0.1, 99)
    monitor.begin("a", "s")
    assert report(monitor, "s", made=90, failed=10)


def test_failures_one_after_the_other_stop_the_run_and_a_success_between_them_does_not():
    monitor = Monitor(1.0, 3)
    monitor.begin("a", "s")
    monitor.begin("b", "t")
    assert report(monitor, "s", failed=2)
    assert report(monitor, "t", made=1)
    assert report(monitor, "s", failed=5)
    assert not report(monitor, "t", made=1, failed=1)
    assert "4 samples failed one after the other" in monitor.snapshot().stopping


def test_the_first_reason_to_stop_stays():
    monitor = Monitor(1.0, 99)
    monitor.stop("first")
    monitor.stop("second")
    assert monitor.snapshot().stopping == "first"


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_silent_builder_is_named_once_with_what_it_was_making(clock):
    monitor = Monitor(1.0, 99)
    monitor.begin("a", "s", handle="actor a")
    monitor.begin("b", "t", handle="actor b")
    report(monitor, "s", at_work=["x"], worker="a")
    clock[0] += 50
    report(monitor, "t", worker="b")
    clock[0] += 20
    assert monitor.stuck(100) == []
    (stuck,) = monitor.stuck(60)
    assert (stuck.worker, stuck.shard, stuck.at_work, stuck.handle) == ("a", "s", ("x",), "actor a")
    assert stuck.seconds == 70
    assert monitor.stuck(60) == []


def test_a_builder_without_a_shard_is_not_stuck(clock):
    monitor = Monitor(1.0, 99)
    monitor.begin("a", "s")
    monitor.end("a")
    clock[0] += 1000
    assert monitor.stuck(60) == []
