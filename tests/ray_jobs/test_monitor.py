"""The run's memory, as plain Python."""

from ray_jobs.monitor import FAILURE_GRACE, MAX_ATTEMPTS, Monitor


def report(monitor, shard, made=0, failed=0, at_work=()):
    return monitor.report("w", shard, made=made, failed=failed, at_work=tuple(at_work))


def test_counts_add_up_over_shards_and_a_restarted_shard_starts_anew():
    monitor = Monitor(1.0)
    monitor.begin("a", "train-000000")
    monitor.begin("b", "train-000001")
    report(monitor, "train-000000", made=3, failed=1)
    report(monitor, "train-000001", made=2)
    assert (monitor.snapshot().made, monitor.snapshot().failed, monitor.snapshot().workers) == (5, 1, 3)
    monitor.begin("b", "train-000000")
    assert (monitor.snapshot().made, monitor.snapshot().failed) == (2, 0)


def test_a_shard_is_given_up_after_its_attempts():
    monitor = Monitor(1.0)
    assert [monitor.begin("a", "s").go for _ in range(MAX_ATTEMPTS + 1)] == [True] * MAX_ATTEMPTS + [False]


def test_samples_at_work_when_a_try_died_are_suspects_of_the_next():
    monitor = Monitor(1.0)
    assert monitor.begin("a", "s").suspects == ()
    report(monitor, "s", at_work=["x", "y"])
    assert monitor.begin("a", "s").suspects == ("x", "y")


def test_failures_over_the_limit_stop_the_run_but_not_the_first_few():
    monitor = Monitor(0.1)
    monitor.begin("a", "s")
    assert report(monitor, "s", made=0, failed=FAILURE_GRACE - 1)
    assert not report(monitor, "s", made=FAILURE_GRACE - 3, failed=3)
    assert "3 of 20 samples failed" in monitor.snapshot().stopping
    assert not monitor.begin("b", "t").go


def test_failures_at_the_limit_do_not():
    monitor = Monitor(0.1)
    monitor.begin("a", "s")
    assert report(monitor, "s", made=90, failed=10)


def test_the_first_reason_to_stop_stays():
    monitor = Monitor(1.0)
    monitor.stop("first")
    monitor.stop("second")
    assert monitor.snapshot().stopping == "first"
