"""The run's memory, as plain Python."""

import pytest

from ray_jobs.building import monitor as module
from ray_jobs.building.messages import Snapshot
from ray_jobs.building.monitor import FAILURE_GRACE, MAX_ATTEMPTS, Monitor
from ray_jobs.building.run import _why_incomplete
from shards.format.commit import Commit, tar_key
from shards.format.plan import PlannedSample, PlannedShard


def a_shard(index, size=4):
    samples = (PlannedSample(f"{index}-{i}", i, "", "", "", "", 0, "train", index, i) for i in range(size))
    return PlannedShard("train", index, tuple(samples))


def a_monitor(*sizes, failed=1.0, consecutive=99):
    return Monitor([a_shard(index, size) for index, size in enumerate(sizes)], failed, consecutive)


def report(monitor, ticket, made=0, failed=0, at_work=(), attempt=""):
    return monitor.report(ticket, attempt, made=made, failed=failed, at_work=tuple(at_work))


def eight_seconds_at_work(monitor, clock):
    """Two builders, under tickets 0 and 1."""
    for ticket in (0, 1):
        report(monitor, ticket, at_work=["x"])
    clock[0] += 8


def counts(monitor):
    return monitor.snapshot().made, monitor.snapshot().failed


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_each_ticket_gets_a_shard_until_none_is_left():
    monitor = a_monitor(4, 4)
    shards = [monitor.begin("w", ticket).shard for ticket in range(3)]
    assert [shard and shard.name for shard in shards] == ["train-000000", "train-000001", None]


def test_counts_add_up_over_shards_and_a_restarted_shard_starts_anew():
    monitor = a_monitor(4, 4)
    monitor.begin("a", 0)
    monitor.begin("b", 1)
    report(monitor, 0, made=3, failed=1)
    report(monitor, 1, made=2)
    assert counts(monitor) == (5, 1)
    assert monitor.begin("c", 0).shard.name == "train-000000"
    assert counts(monitor) == (2, 0)
    monitor.end(1, done=True)
    assert counts(monitor) == (2, 0)
    monitor.end(0, done=False)
    assert counts(monitor) == (2, 0)


def test_a_shard_put_down_unfinished_counts_for_nothing():
    monitor = a_monitor(4)
    monitor.begin("a", 0)
    report(monitor, 0, made=3)
    monitor.end(0, done=False)
    assert counts(monitor) == (0, 0)


def test_a_shard_is_given_up_after_its_attempts():
    monitor = a_monitor(4, 4)
    monitor.begin("b", 1)
    tries = [monitor.begin("a", 0).shard for _ in range(MAX_ATTEMPTS + 1)]
    assert [shard is not None for shard in tries] == [True] * MAX_ATTEMPTS + [False]
    assert monitor.snapshot().abandoned == ("train-000001",)


def test_what_a_dead_worker_had_goes_to_whoever_asks_next():
    monitor = a_monitor(4, 4)
    monitor.begin("a", 0)
    monitor.begin("b", 1)
    monitor.begin("c", 0)
    assert monitor.begin("b", 2).shard is None
    monitor.end(1, done=True)
    assert monitor.begin("b", 0).shard.name == "train-000000"


def test_deaths_are_counted_for_the_samples_at_work():
    monitor = a_monitor(4)
    assert monitor.begin("a", 0).deaths == {}
    report(monitor, 0, at_work=["x", "y"])
    assert monitor.begin("a", 0).deaths == {"x": 1, "y": 1}
    report(monitor, 0, at_work=["x"])
    assert monitor.begin("a", 0).deaths == {"x": 2, "y": 1}
    report(monitor, 0, at_work=[])
    assert monitor.begin("a", 0).deaths == {"x": 2, "y": 1}


def test_failures_over_the_limit_stop_the_run_but_not_the_first_few():
    monitor = a_monitor(20, 4, failed=0.1)
    monitor.begin("a", 0)
    assert report(monitor, 0, made=0, failed=FAILURE_GRACE - 1)
    assert not report(monitor, 0, made=FAILURE_GRACE - 3, failed=3)
    assert "3 of 20 samples failed" in monitor.snapshot().stopping
    assert monitor.begin("b", 1).shard is None


def test_the_commonest_reason_is_told_with_three_names_and_whether_it_comes_again():
    monitor = a_monitor(40, failed=0.1)
    monitor.begin("w", 0)
    assert (monitor.snapshot().commonest, monitor.snapshot().lasting) == ("", False)
    for number in range(5):
        message = f"'{number} a.jpg': picture of {400 + number} x 4 pixels is too narrow"
        monitor.failed_by([("ImageError", message, "a caption")])
    monitor.failed_by([("SampleError", "holds a special token", "a  red\nfox"), ("SampleError", "x", "")])
    told = "picture of 400 x 4 pixels is too narrow (0 a.jpg, 1 a.jpg, 2 a.jpg, …)"
    assert (monitor.snapshot().commonest, monitor.snapshot().lasting) == (told, False)
    assert not report(monitor, 0, made=13, failed=7)
    assert monitor.snapshot().lasting
    for _ in range(6):
        monitor.failed_by([("SampleError", "holds a special token", "a  red\nfox")])
    assert (monitor.snapshot().commonest, monitor.snapshot().lasting) == (
        "holds a special token (a red fox, …)",
        False,
    )


def test_the_last_line_says_what_to_do():
    of_the_source = Snapshot(0, 7, "7 of 20 samples failed", commonest="is HTML (a, b, c, …)", lasting=True)
    assert _why_incomplete("import", of_the_source, 2, 3) == (
        "not complete: 7 of 20 samples failed; most failed by: is HTML (a, b, c, …); 2 of 3 shards missing. These fail "
        "alike every time: mend them in the source, or raise import.max_failed_fraction and "
        "import.max_consecutive_failures to leave them out."
    )
    other = Snapshot(0, 0, "stopped by a signal")
    assert _why_incomplete("build", other, 2, 3) == (
        "not complete: stopped by a signal; 2 of 3 shards missing. Run it again to go on."
    )


def test_failures_at_the_limit_do_not():
    monitor = a_monitor(100, failed=0.1)
    monitor.begin("a", 0)
    assert report(monitor, 0, made=90, failed=10)


def test_failures_one_after_the_other_stop_the_run_and_a_success_between_them_does_not():
    monitor = a_monitor(9, 9, consecutive=3)
    monitor.begin("a", 0)
    monitor.begin("b", 1)
    assert report(monitor, 0, failed=2)
    assert report(monitor, 1, made=1)
    assert report(monitor, 0, failed=5)
    assert not report(monitor, 1, made=1, failed=1)
    assert "4 samples failed one after the other" in monitor.snapshot().stopping


def test_the_first_reason_to_stop_stays():
    monitor = a_monitor()
    monitor.stop("first")
    monitor.stop("second")
    assert monitor.snapshot().stopping == "first"


def test_a_silent_builder_is_named_once_with_what_it_was_making(clock):
    monitor = a_monitor(4, 4)
    monitor.begin("a", 0, handle="actor a")
    monitor.begin("b", 1, handle="actor b")
    report(monitor, 0, at_work=["x"])
    clock[0] += 50
    report(monitor, 1)
    clock[0] += 20
    assert monitor.stuck(100) == []
    (stuck,) = monitor.stuck(60)
    assert (stuck.worker, stuck.shard, stuck.at_work, stuck.handle) == (
        "a",
        "train-000000",
        ("x",),
        "actor a",
    )
    assert stuck.seconds == 70
    assert monitor.stuck(60) == []


def test_a_builder_without_a_shard_is_not_stuck(clock):
    monitor = a_monitor(4)
    monitor.begin("a", 0)
    monitor.end(0, done=True)
    clock[0] += 1000
    assert monitor.stuck(60) == []


def test_large_shards_come_first_and_a_slow_builder_ends_with_small_ones(clock):
    monitor = a_monitor(1, 8, 1, 8, 1)
    assert len(monitor.begin("fast", 0).shard.samples) == 8
    assert len(monitor.begin("slow", 1).shard.samples) == 8
    eight_seconds_at_work(monitor, clock)
    report(monitor, 0, made=8)
    report(monitor, 1, made=1)
    monitor.end(0, done=True)
    assert len(monitor.begin("slow", 2).shard.samples) == 1
    assert [len(monitor.begin("fast", ticket).shard.samples) for ticket in (3, 4)] == [1, 1]


def test_what_another_build_made_is_not_waited_for(clock):
    monitor = a_monitor(8, 8, 2, 4)
    monitor.begin("a", 0)
    report(monitor, 0, at_work=["x"])
    clock[0] += 8
    report(monitor, 0, made=8)
    monitor.end(0, done=True)
    monitor.begin("a", 1)
    monitor.end(1, done=True)  # it was there
    assert monitor._seconds_left("a") == 6.0


def test_an_adopted_shard_tells_nothing_of_a_builders_pace(clock):
    monitor = a_monitor(8, 8)
    monitor.begin("a", 0)
    report(monitor, 0, made=8)
    assert monitor._paces == {}


def slow_one(clock):
    """Two shards; `fast` has made its own, `slow` an eighth of its own."""
    monitor = a_monitor(8, 8)
    monitor.begin("fast", 0)
    monitor.begin("slow", 1)
    eight_seconds_at_work(monitor, clock)
    report(monitor, 0, made=8)
    report(monitor, 1, made=1)
    monitor.end(0, done=True)
    return monitor


def test_an_idle_builder_makes_a_slow_ones_shard_too_and_the_first_to_finish_commits(clock):
    monitor = slow_one(clock)
    assert monitor.begin("fast", 2).shard.name == "train-000001"
    assert monitor.begin("fast", 3).shard is None, "not a third time"
    clock[0] += 8
    report(monitor, 2, made=8)
    assert report(monitor, 1, made=2), "both go on"
    assert counts(monitor) == (16, 0)
    assert monitor.may_publish(2)
    assert not monitor.may_publish(1)
    monitor.end(2, done=True)
    assert not report(monitor, 1, made=3), "the slow one stops"
    monitor.end(1, done=False)
    assert counts(monitor) == (16, 0)


def test_the_one_that_may_publish_dies_and_the_other_one_may(clock):
    monitor = slow_one(clock)
    monitor.begin("fast", 2)
    assert monitor.may_publish(2)
    assert monitor.begin("new", 2).shard is None, "the slow one still has it"
    assert monitor.may_publish(1)


def test_a_builder_as_fast_as_the_others_is_left_alone(clock):
    monitor = a_monitor(8, 8)
    monitor.begin("a", 0)
    monitor.begin("b", 1)
    eight_seconds_at_work(monitor, clock)
    report(monitor, 0, made=8)
    report(monitor, 1, made=6)
    monitor.end(0, done=True)
    assert monitor.begin("a", 2).shard is None


def test_a_builder_that_tells_of_samples_only_at_its_end_is_left_alone(clock):
    """As where one model is on the device at a time."""
    monitor = a_monitor(8, 8)
    monitor.begin("a", 0)
    clock[0] += 1
    monitor.begin("b", 1)
    eight_seconds_at_work(monitor, clock)
    report(monitor, 0, made=8)
    monitor.end(0, done=True)
    assert monitor.begin("a", 2).shard is None
    clock[0] += 12
    assert monitor.begin("a", 3).shard is not None, "silent for so long, it hangs"


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


def test_seconds_of_a_dead_try_are_lost_and_told_to_whoever_tries_again(clock):
    monitor = a_monitor(4)
    monitor.begin("a", 0, attempt="first")
    clock[0] += 5
    report(monitor, 0, made=2, attempt="first")
    clock[0] += 60  # dead, and nobody noticed: it was last heard of after five seconds
    orders = monitor.begin("b", 0, attempt="second")
    assert [(tried.attempt, tried.end, tried.seconds) for tried in orders.earlier] == [("first", "died", 5.0)]
    assert monitor.snapshot().lost == {"died": 5.0}
    clock[0] += 7
    assert monitor.snapshot().under_way == 7.0
    monitor.end(0, "second", done=True, outcome="committed", commit=made_by_attempt("second"))
    assert (monitor.snapshot().lost, monitor.snapshot().under_way) == ({"died": 5.0}, 0)
    assert [event.kind for event in monitor.take_events()] == ["begun", "died", "begun", "committed"]
    assert monitor.take_events() == []


def test_a_try_that_had_committed_before_its_worker_died_was_not_for_nothing(clock):
    monitor = a_monitor(4)
    monitor.begin("a", 0, attempt="first")
    clock[0] += 5
    report(monitor, 0, made=4, attempt="first")
    monitor.begin("b", 0, attempt="second")
    monitor.end(0, "second", done=True, outcome="there", commit=made_by_attempt("first"))
    assert sum(monitor.snapshot().lost.values()) == 0


def test_tries_that_came_to_nothing_without_a_death(clock):
    monitor = a_monitor(4, 4)
    for ticket, outcome in enumerate(("overtaken", "stopped")):
        monitor.begin("a", ticket)
        clock[0] += 3
        monitor.end(ticket, done=False, outcome=outcome, lost=True)
    assert monitor.snapshot().lost == {"overtaken": 3.0, "stopped": 3.0}


def test_a_try_that_was_taken_for_dead_and_is_heard_of_again_changes_nothing():
    monitor = a_monitor(4)
    monitor.begin("cut off", 0, attempt="first")
    monitor.begin("b", 0, attempt="second")
    assert not report(monitor, 0, made=4, attempt="first")
    assert not monitor.may_publish(0, "first")
    assert monitor.may_publish(0, "second")
    monitor.end(0, "first", done=True, outcome="committed", commit=made_by_attempt("first"))
    assert report(monitor, 0, made=2, attempt="second")
    assert counts(monitor) == (2, 0)
    monitor.end(0, "second", done=True, outcome="duplicate", lost=True, commit=made_by_attempt("first"))
    assert not report(monitor, 0, made=4, attempt="first")
    assert set(monitor.snapshot().lost) == {"died", "duplicate"}


def test_a_builder_that_cannot_load_is_left_out_and_its_shard_goes_to_another(clock):
    monitor = Monitor([a_shard(0), a_shard(1)], 1.0, 99, builders=2)
    assert monitor.begin("broken", 0).shard.name == "train-000000"
    assert monitor.begin("sound", 1).shard.name == "train-000001"
    monitor.leave_out("broken", 0, "", "the models cannot be loaded on broken, GPU 1: out of memory")
    assert not monitor.snapshot().stopping
    notes = [event.text for event in monitor.take_events() if event.kind == "note"]
    assert notes == [
        "the models cannot be loaded on broken, GPU 1: out of memory; it is left out, the other builders go on"
    ]
    monitor.end(1, done=True)
    assert not monitor.is_finished()
    orders = monitor.begin("sound", 2)
    assert (orders.shard.name, orders.deaths, orders.earlier) == ("train-000000", {}, ())
    assert not monitor.is_finished()
    monitor.end(2, done=True)
    assert monitor.is_finished()


def test_no_shard_is_given_up_for_builders_that_cannot_load():
    monitor = Monitor([a_shard(0)], 1.0, 99, builders=99)
    for ticket in range(2 * MAX_ATTEMPTS):
        assert monitor.begin(f"w{ticket}", ticket).shard
        monitor.leave_out(f"w{ticket}", ticket, "", "no room")
    assert monitor.begin("sound", 99).shard


def test_a_run_none_of_whose_builders_can_load_stops_with_their_words():
    monitor = Monitor([a_shard(0), a_shard(1)], 1.0, 99, builders=2)
    for ticket, worker in enumerate(("a", "a", "b")):  # a builder has two tickets
        assert not monitor.snapshot().stopping
        monitor.begin(worker, ticket)
        monitor.leave_out(worker, ticket, "", f"no room on {worker}")
    assert monitor.snapshot().stopping == "no room on b"
    assert monitor.is_finished()


def test_builders_that_are_left_out_do_not_wait_for_ever(clock):
    monitor = Monitor([a_shard(0)], 1.0, 99, builders=2)
    monitor.begin("broken", 0)
    monitor.leave_out("broken", 0, "", "no room")
    clock[0] += 299
    assert not monitor.is_finished()
    clock[0] += 2
    assert monitor.is_finished()
