"""The run's memory, as plain Python."""

import pytest

from ray_jobs.building import monitor as module
from ray_jobs.building.failure_budget import GRACE, FailureBudget
from ray_jobs.building.messages import Outcome
from ray_jobs.building.monitor import MAX_ATTEMPTS, Monitor
from ray_jobs.progress.run_progress import why_incomplete
from ray_jobs.progress.snapshot import Snapshot
from shards.format.commit import Commit, Maker, tar_key
from shards.format.plan import PlannedSample, PlannedShard
from shards.format.sample import Failure


def a_shard(index, size=4):
    samples = (PlannedSample(f"{index}-{i}", i, "", "", "", "", 0, "train", index, i) for i in range(size))
    return PlannedShard("train", index, tuple(samples))


def a_monitor(*sizes, failed=1.0, consecutive=99, builders=1):
    shards = [a_shard(index, size) for index, size in enumerate(sizes)]
    return Monitor(shards, FailureBudget("build", failed, consecutive), builders)


def a_process(name):
    """`a` or `a.2`: the first or a later process of the actor `a`, which was restarted elsewhere."""
    actor, _, number = name.partition(".")
    return Maker(host=name, pid=int(number or 1), actor=actor)


def begin(monitor, worker, attempt, handle=None):
    return monitor.begin(attempt, a_process(worker), handle)


def report(monitor, attempt, made=0, failed=0, at_work=(), failures=()):
    return monitor.report(attempt, made, failed, tuple(at_work), failures)


def failure(error_class, message, caption):
    return caption, Failure("image", error_class, message, 1, "")


def events(monitor, kind):
    return [event for event in monitor.take_events() if event.kind == kind]


def eight_seconds_at_work(monitor, clock):
    """Two builders, in attempts 0 and 1."""
    for attempt in ("0", "1"):
        report(monitor, attempt, at_work=["x"])
    clock[0] += 8


def counts(monitor):
    return monitor.snapshot().made, monitor.snapshot().failed


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_each_attempt_gets_a_shard_until_none_is_left():
    monitor = a_monitor(4, 4)
    tasks = [begin(monitor, "w", attempt) for attempt in "012"]
    assert [task and task.shard.name for task in tasks] == ["train-000000", "train-000001", None]


def test_counts_add_up_over_shards_and_a_restarted_shard_starts_anew():
    monitor = a_monitor(4, 4)
    begin(monitor, "a", "0")
    begin(monitor, "b", "1")
    report(monitor, "0", made=3, failed=1)
    report(monitor, "1", made=2)
    assert counts(monitor) == (5, 1)
    assert begin(monitor, "a.2", "2").shard.name == "train-000000"
    assert counts(monitor) == (2, 0)
    monitor.end("1", Outcome.COMMITTED)
    assert counts(monitor) == (2, 0)
    monitor.end("2", Outcome.STOPPED)
    assert counts(monitor) == (2, 0)


def test_a_shard_put_down_unfinished_counts_for_nothing():
    monitor = a_monitor(4)
    begin(monitor, "a", "0")
    report(monitor, "0", made=3)
    monitor.end("0", Outcome.STOPPED)
    assert counts(monitor) == (0, 0)


def test_a_shard_is_given_up_after_its_attempts():
    monitor = a_monitor(4, 4)
    begin(monitor, "b", "other")
    tries = [begin(monitor, f"a.{number}", f"{number}") for number in range(1, MAX_ATTEMPTS + 2)]
    assert [task is not None for task in tries] == [True] * MAX_ATTEMPTS + [False]
    (abandoned,) = events(monitor, "abandoned")
    assert abandoned.facts["shard"] == "train-000001"
    assert abandoned.text == "train-000001: given up, its worker died each of 5 times"


def test_what_a_dead_worker_had_goes_to_whoever_asks_next():
    """It may have had two: one under way, one that was being published."""
    monitor = a_monitor(4, 4, 4)
    for attempt in "01":
        begin(monitor, "a", attempt)
    begin(monitor, "b", "2")
    again = begin(monitor, "a.2", "3").shard.name
    assert {again, begin(monitor, "b", "4").shard.name} == {"train-000000", "train-000001"}
    assert begin(monitor, "b", "5") is None


def test_a_process_that_was_declared_dead_gets_nothing_and_ends_nothing():
    """It is heard of again, as its node was out of reach for a while, and asks for work with its other row."""
    monitor = a_monitor(4, 4)
    begin(monitor, "a", "0")
    assert begin(monitor, "a.2", "1").shard.name == "train-000000"
    assert begin(monitor, "a", "2") is None
    assert report(monitor, "1", made=2), "its successor goes on"
    assert begin(monitor, "b", "3").shard.name == "train-000001"


def test_deaths_are_counted_for_the_samples_at_work():
    monitor = a_monitor(4)
    assert begin(monitor, "a", "0").deaths == {}
    report(monitor, "0", at_work=["x", "y"])
    assert begin(monitor, "a.2", "1").deaths == {"x": 1, "y": 1}
    report(monitor, "1", at_work=["x"])
    monitor.end("1", Outcome.DIED)  # as where a reader died
    assert begin(monitor, "a.2", "2").deaths == {"x": 2, "y": 1}
    report(monitor, "2", at_work=[])
    assert begin(monitor, "a.3", "3").deaths == {"x": 2, "y": 1}


def test_failures_over_the_limit_stop_the_run_but_not_the_first_few():
    monitor = a_monitor(20, 4, failed=0.1)
    begin(monitor, "a", "0")
    assert report(monitor, "0", made=0, failed=GRACE - 1)
    assert not report(monitor, "0", made=GRACE - 3, failed=3)
    assert "3 of 20 samples failed" in monitor.snapshot().stopping
    assert begin(monitor, "b", "1") is None


def test_the_commonest_reason_is_told_with_three_names_and_whether_it_comes_again():
    monitor = a_monitor(40, failed=0.1)
    begin(monitor, "w", "0")
    assert (monitor.snapshot().commonest, monitor.snapshot().lasting) == ("", False)
    for number in range(5):
        message = f"'{number} a.jpg': picture of {400 + number} x 4 pixels is too narrow"
        report(monitor, "0", failures=[failure("ImageError", message, "a caption")])
    special = failure("SampleError", "holds a special token", "a  red\nfox")
    report(monitor, "0", failures=[special, failure("SampleError", "x", "")])
    told = "picture of 400 x 4 pixels is too narrow (0 a.jpg, 1 a.jpg, 2 a.jpg, …)"
    assert (monitor.snapshot().commonest, monitor.snapshot().lasting) == (told, False)
    assert not report(monitor, "0", made=13, failed=7)
    assert monitor.snapshot().lasting
    for _ in range(6):
        report(monitor, "0", made=13, failed=7, failures=[special])
    assert (monitor.snapshot().commonest, monitor.snapshot().lasting) == (
        "holds a special token (a red fox, …)",
        False,
    )


def test_the_last_line_says_what_to_do():
    of_the_source = Snapshot(0, 7, "7 of 20 samples failed", commonest="is HTML (a, b, c, …)", lasting=True)
    assert why_incomplete("import", of_the_source, 2, 3) == (
        "not complete: 7 of 20 samples failed; most failed by: is HTML (a, b, c, …); 2 of 3 shards missing. These fail "
        "alike every time: mend them in the source, or raise import.max_failed_fraction and "
        "import.max_consecutive_failures to leave them out."
    )
    other = Snapshot(0, 0, "stopped by a signal")
    assert why_incomplete("build", other, 2, 3) == (
        "not complete: stopped by a signal; 2 of 3 shards missing. Run it again to go on."
    )


def test_failures_at_the_limit_do_not():
    monitor = a_monitor(100, failed=0.1)
    begin(monitor, "a", "0")
    assert report(monitor, "0", made=90, failed=10)


def test_failures_one_after_the_other_stop_the_run_and_a_success_between_them_does_not():
    monitor = a_monitor(9, 9, consecutive=3)
    begin(monitor, "a", "0")
    begin(monitor, "b", "1")
    assert report(monitor, "0", failed=2)
    assert report(monitor, "1", made=1)
    assert report(monitor, "0", failed=5)
    assert not report(monitor, "1", made=1, failed=1)
    assert "4 samples failed one after the other" in monitor.snapshot().stopping


def test_the_first_reason_to_stop_stays():
    monitor = a_monitor(4)
    begin(monitor, "a", "0")
    monitor.stop("first")
    monitor.stop("second")
    monitor.end("0", Outcome.REFUSED, reason="third")
    assert monitor.snapshot().stopping == "first"


def test_a_store_that_refuses_an_attempt_that_was_declared_dead_stops_nobody():
    """Its node was out of reach: what it cannot reach, others may."""
    monitor = a_monitor(4)
    begin(monitor, "a", "0")
    begin(monitor, "a.2", "1")
    monitor.end("0", Outcome.REFUSED, reason="no route to the store")
    assert monitor.snapshot().stopping == ""
    monitor.end("1", Outcome.REFUSED, reason="no route to the store")
    assert monitor.snapshot().stopping == "no route to the store"


def test_a_silent_builder_is_named_once_with_what_it_was_making(clock):
    monitor = a_monitor(4, 4)
    begin(monitor, "a", "0", "actor a")
    begin(monitor, "b", "1", "actor b")
    report(monitor, "0", at_work=["x"])
    clock[0] += 50
    report(monitor, "1")
    clock[0] += 20
    assert monitor.stuck(100) == []
    assert monitor.stuck(60) == ["actor a"]
    (stuck,) = events(monitor, "stuck")
    assert stuck.text == (
        "train-000000: a:1 has finished nothing for 1 min 10 s (at work on x); restarting it"
    )
    assert (stuck.facts["shard"], stuck.facts["worker"]) == ("train-000000", "a:1")
    assert monitor.stuck(60) == []


def test_a_builder_without_a_shard_is_not_stuck(clock):
    monitor = a_monitor(4)
    begin(monitor, "a", "0")
    monitor.end("0", Outcome.COMMITTED)
    clock[0] += 1000
    assert monitor.stuck(60) == []


def test_large_shards_come_first_and_a_slow_builder_ends_with_small_ones(clock):
    monitor = a_monitor(1, 8, 1, 8, 1)
    assert len(begin(monitor, "fast", "0").shard.samples) == 8
    assert len(begin(monitor, "slow", "1").shard.samples) == 8
    eight_seconds_at_work(monitor, clock)
    report(monitor, "0", made=8)
    report(monitor, "1", made=1)
    monitor.end("0", Outcome.COMMITTED)
    assert len(begin(monitor, "slow", "2").shard.samples) == 1
    assert [len(begin(monitor, "fast", attempt).shard.samples) for attempt in "34"] == [1, 1]


def test_what_another_build_made_is_not_waited_for(clock):
    monitor = a_monitor(8, 8, 2, 4)
    begin(monitor, "a", "0")
    report(monitor, "0", at_work=["x"])
    clock[0] += 8
    report(monitor, "0", made=8)
    monitor.end("0", Outcome.COMMITTED)
    begin(monitor, "a", "1")
    monitor.end("1", Outcome.COMMITTED)  # it was there
    assert monitor._seconds_left("a:1") == 6.0


def test_an_adopted_shard_tells_nothing_of_a_builders_pace(clock):
    monitor = a_monitor(8, 8)
    begin(monitor, "a", "0")
    monitor.end("0", Outcome.ADOPTED, made_by_attempt("earlier"))
    assert counts(monitor) == (4, 0)
    assert monitor._paces == {}


def made_by_attempt(attempt):
    return Commit.from_json(
        {
            "name": "train-000000",
            "split": "train",
            "shard": 0,
            "tar": tar_key("train-000000"),
            "sha256": "",
            "bytes": 1,
            "samples": 4,
            "failed": 0,
            "fingerprint": "",
            "slice_hash": "",
            "attempt": attempt,
            "wall_seconds": 5.0,
            "device_seconds": 5.0,
            "device": "CPU",
            "created": "2026-01-05T08:00:00+00:00",
            "adopted": False,
            "side_files": {},
        }
    )


def test_seconds_of_a_dead_attempt_are_lost_and_told_to_whoever_tries_again(clock):
    monitor = a_monitor(4)
    begin(monitor, "a", "first")
    clock[0] += 5
    report(monitor, "first", made=2)
    clock[0] += 60  # dead, and nobody noticed: it was last heard of after five seconds
    task = begin(monitor, "a.2", "second")
    assert [(tried.attempt, tried.end, tried.seconds) for tried in task.earlier] == [("first", "died", 5.0)]
    assert monitor.snapshot().lost == {"died": 5.0}
    clock[0] += 7
    assert monitor.snapshot().under_way == 7.0
    monitor.end("second", Outcome.COMMITTED, made_by_attempt("second"))
    assert (monitor.snapshot().lost, monitor.snapshot().under_way) == ({"died": 5.0}, 0)
    assert [event.kind for event in monitor.take_events()] == ["begun", "died", "begun", "committed"]
    assert monitor.take_events() == []


def test_an_attempt_that_had_committed_before_its_worker_died_was_not_for_nothing(clock):
    monitor = a_monitor(4)
    begin(monitor, "a", "first")
    clock[0] += 5
    report(monitor, "first", made=4)
    begin(monitor, "a.2", "second")
    monitor.end("second", Outcome.THERE, made_by_attempt("first"))
    assert sum(monitor.snapshot().lost.values()) == 0


@pytest.mark.parametrize("outcome", list(Outcome))
def test_what_each_outcome_does(clock, outcome):
    """A shard is committed, or waits for the next who asks, who learns of what was wasted."""
    monitor = a_monitor(4)
    begin(monitor, "a", "0")
    report(monitor, "0", at_work=["x"])
    report(monitor, "0", made=3)
    clock[0] += 3
    monitor.end("0", outcome)
    task = begin(monitor, "b", "1")
    assert (task is None) == outcome.committed
    assert counts(monitor) == ((3, 0) if outcome.committed else (0, 0))
    assert monitor.snapshot().lost == (
        {outcome.value: 3.0 if outcome is not Outcome.DIED else 0.0} if outcome.wasted else {}
    )
    if task:
        assert [tried.end for tried in task.earlier] == ([outcome.value] if outcome.wasted else [])


def test_an_attempt_that_was_declared_dead_and_is_heard_of_again_changes_nothing():
    monitor = a_monitor(4)
    begin(monitor, "cut off", "first")
    begin(monitor, "cut off.2", "second")
    assert not report(monitor, "first", made=4)
    assert not monitor.may_publish("first")
    assert monitor.may_publish("second")
    monitor.end("first", Outcome.COMMITTED, made_by_attempt("first"))
    assert report(monitor, "second", made=2)
    assert counts(monitor) == (2, 0)
    monitor.end("second", Outcome.DUPLICATE, made_by_attempt("first"))
    assert not report(monitor, "first", made=4)
    assert set(monitor.snapshot().lost) == {"died", "duplicate"}


def leave_out(monitor, worker, attempt, reason):
    begun = begin(monitor, worker, attempt)
    monitor.end(attempt, Outcome.LEFT_OUT, reason=reason)
    return begun


def test_a_builder_that_cannot_load_is_left_out_and_its_shard_goes_to_another(clock):
    monitor = a_monitor(1, 1, builders=2)
    broken = leave_out(monitor, "broken", "0", "the models cannot be loaded on broken, GPU 1: out of memory")
    assert broken.shard.name == "train-000000"
    assert not monitor.snapshot().stopping
    assert [note.text for note in events(monitor, "note")] == [
        "the models cannot be loaded on broken, GPU 1: out of memory; it is left out, the other builders continue"
    ]
    task = begin(monitor, "sound", "1")
    assert (task.shard.name, task.deaths, task.earlier) == ("train-000000", {}, ())
    assert not monitor.is_finished()
    monitor.end("1", Outcome.COMMITTED)
    assert not monitor.is_finished()
    begin(monitor, "sound", "2")
    monitor.end("2", Outcome.COMMITTED)
    assert monitor.is_finished()


def test_no_shard_is_given_up_for_builders_that_cannot_load():
    monitor = a_monitor(1, builders=99)
    for number in range(2 * MAX_ATTEMPTS):
        assert leave_out(monitor, f"w{number}", f"{number}", "no room").shard
    assert begin(monitor, "sound", "99").shard


def test_a_run_none_of_whose_builders_can_load_stops_with_their_words():
    monitor = a_monitor(1, 1, builders=2)
    for attempt, worker in enumerate(("a", "a", "b")):  # a builder has two rows
        assert not monitor.snapshot().stopping
        leave_out(monitor, worker, f"{attempt}", f"no room on {worker}")
    assert monitor.snapshot().stopping == "no room on b"
    assert monitor.is_finished()


def test_builders_that_are_left_out_do_not_wait_for_ever(clock):
    monitor = a_monitor(1, builders=2)
    leave_out(monitor, "broken", "0", "no room")
    clock[0] += 299
    assert not monitor.is_finished()
    clock[0] += 2
    assert monitor.is_finished()
