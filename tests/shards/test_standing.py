"""How far, how fast, at what cost: against arithmetic that anybody can redo."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from shards.dataset.progress_figures import duration, plain, progress_parts, spending_parts, standing
from shards.dataset.run_records import SILENT, RunRecord
from shards.format.commit import Commit

START = datetime(2026, 1, 5, 8, tzinfo=UTC)
NOW = (START + timedelta(days=30)).timestamp()


def at(seconds):
    return (START + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def a_commit(number, begun=0.0, wall=100.0, samples=10, failed=0, **changes):
    data = {
        "name": f"train-{number:06d}",
        "split": "train",
        "shard": number,
        "tar": f"train/pairs-{number:06d}.tar",
        "sha256": "0" * 64,
        "bytes": 1000,
        "samples": samples,
        "failed": failed,
        "fingerprint": "f",
        "slice_hash": "s",
        "attempt": "a",
        "wall_seconds": wall,
        "device_seconds": wall,
        "device": "GPU 0 (NVIDIA H200)",
        "created": at(begun + wall),
        "adopted": False,
        "side_files": {},
        "begun": at(begun),
        "gpus": 1.0,
    }
    return Commit.from_json(data | changes)


def a_run(seen=0.0, **changes):
    run = RunRecord("a" * 32, "build", "01000000", at(0), at(seen), "complete", 0, 1.0, {}, 0.0, {})
    return replace(run, **changes)


def far(commits, segments=(100,), runs=(), now=NOW, price=None):
    return standing(commits, segments, runs, now=now, price_gpu_hour=price)


def test_two_builders_side_by_side():
    """Ten samples in 100 s each, for 200 s: 40 samples in 200 s are 720 an hour, and 60 are left: 300 s."""
    found = far([a_commit(n, begun=100 * (n // 2)) for n in range(4)], price=1.8)
    assert (found.planned, found.made, found.left, found.complete) == (100, 40, 60, False)
    assert (found.shards, found.bytes, found.device_seconds) == (4, 4000, 400)
    assert (found.work_seconds, found.pairs_per_hour, found.seconds_left) == (200, 720, 300)
    assert found.cost == pytest.approx(400 / 3600 * 1.8)


def test_idle_days_between_runs_are_no_part_of_the_rate():
    slow = [a_commit(0), a_commit(1, begun=100)]
    fast = [a_commit(n, begun=3 * 86400, wall=50, samples=20) for n in (2, 3)]
    found = far(slow + fast)
    assert found.work_seconds == 250
    assert found.pairs_per_hour == 3600 * 60 / 250
    assert found.recent_pairs_per_hour == 3600 * 40 / 50
    assert found.seconds_left == 40 * 3600 / found.recent_pairs_per_hour


def test_a_gap_in_a_stretch_is_no_work_either():
    found = far([a_commit(0), a_commit(1, begun=400)])
    assert (found.work_seconds, found.pairs_per_hour, found.recent_pairs_per_hour) == (200, 360, 360)


@pytest.mark.parametrize("skew", [-90, 90])
def test_clocks_that_differ_move_the_rate_by_no_more_than_they_differ(skew):
    """Two nodes at work for an hour; the second one's clock is off by a minute and a half."""
    commits = [a_commit(n, begun=100 * n) for n in range(36)]
    commits += [a_commit(100 + n, begun=100 * n + skew) for n in range(36)]
    found = far(commits)
    assert found.work_seconds == 3600 + 90
    assert found.pairs_per_hour == pytest.approx(720, rel=90 / 3600)


def test_a_clock_that_jumps_while_a_shard_is_made_changes_nothing():
    """How long it took is measured, and not the difference of two times of day."""
    found = far([a_commit(0, created=at(5 * 86400))])
    assert (found.work_seconds, found.pairs_per_hour) == (100, 360)


def test_merged_halves_count_for_the_time_in_which_they_were_made():
    halves = [a_commit(n, begun=100 * n, created=at(10 * 86400)) for n in range(4)]
    assert far(halves).work_seconds == 400


def test_what_died_and_was_adopted_counts_as_made_and_took_no_known_time():
    found = far([a_commit(0), a_commit(1, wall=0.0, adopted=True)])
    assert (found.made, found.pairs_per_hour, found.device_seconds) == (20, 360, 100)


def test_failed_samples_that_are_tried_again():
    """Of 20 planned two failed; both are tried again, one is made and one fails again."""
    first = a_commit(0, samples=18, failed=2, causes={"image: RuntimeError": 2})
    segments = (20, ("id", "id2"))
    waiting = far([first], segments)
    assert (waiting.planned, waiting.made, waiting.failed, waiting.left) == (20, 18, 0, 2)
    assert not waiting.complete
    again = a_commit(1, begun=100, samples=1, failed=1, causes={"vl: ValueError": 1})
    done = far([first, again], segments)
    assert (done.made, done.failed, done.left, done.complete) == (19, 1, 0, True)
    assert done.failures == {"image: RuntimeError": 2, "vl: ValueError": 1}


def test_busy_is_of_the_shards_that_were_measured():
    measured = a_commit(0, busy_seconds=80.0)
    assert far([measured, a_commit(1)]).busy == 0.8
    assert far([a_commit(1)]).busy is None


def test_lost_device_time_and_what_it_cost():
    """Two runs: one ended, one was killed with 50 s under way and is silent for long."""
    ended = a_run(lost={"died": 30.0, "overtaken": 10.0})
    killed = a_run(ended="", lost={"died": 5.0}, under_way=50.0, builders=4)
    found = far([a_commit(0)], runs=[ended, killed], price=36.0)
    assert found.lost == {"died": 35.0, "overtaken": 10.0, "driver died": 50.0}
    assert (found.lost_seconds, found.builders, found.runs) == (95, 0, 2)
    assert found.gpu_hours == pytest.approx((100 + 95) / 3600)
    assert found.cost == pytest.approx(1.95)


def test_what_is_under_way_is_spent_and_not_lost():
    running = a_run(ended="", under_way=50.0, builders=4)
    found = far([], runs=[running], now=START.timestamp() + SILENT - 1, price=36.0)
    assert (found.lost, found.builders, found.cost) == ({}, 4, 0.5)
    assert far([], runs=[running], now=START.timestamp() + SILENT + 1).lost == {"driver died": 50.0}


@pytest.mark.parametrize(("gpus", "hours"), [(0.0, 0.0), (0.5, 50 / 3600), (2.0, 200 / 3600)])
def test_gpus_that_a_device_stands_for(gpus, hours):
    assert far([a_commit(0, gpus=gpus)]).gpu_hours == pytest.approx(hours)


def test_nothing_there():
    found = far([], segments=())
    assert (found.planned, found.made, found.complete, found.pairs_per_hour) == (0, 0, False, None)
    assert (found.seconds_left, found.busy, found.cost, found.last_commit) == (None, None, None, None)


def without(commit, *names):
    data = {name: getattr(commit, name) for name in commit.__dataclass_fields__}
    return {name: value for name, value in data.items() if name not in names}


NEWER = ("begun", "gpus", "causes", "made_by", "earlier", "busy_seconds")


@pytest.mark.parametrize(("device", "gpus"), [("GPU 0 (NVIDIA H200)", 1.0), ("CPU", 0.0)])
def test_commits_of_earlier_versions_are_read(device, gpus):
    old = Commit.from_json(without(a_commit(0, failed=3, causes={"x: Y": 3}, device=device), *NEWER))
    assert (old.begun, old.gpus, old.causes) == (at(0), gpus, {"not recorded": 3})
    assert (old.made_by.node, old.earlier) == ("", ())


@pytest.mark.parametrize(
    "damage",
    [
        {"wall_seconds": -1.0},
        {"device_seconds": float("nan")},
        {"bytes": 1e300},
        {"samples": "9"},
        {"begun": "yesterday"},
        {"begun": 12},
        {"begun": "", "created": "2026-01-05T08:00:00"},
        {"begun": "", "wall_seconds": 9e14},
        {"busy_seconds": None},
        {"gpus": []},
        {"causes": {"a": 1}},
        {"earlier": [{"seconds": "long"}]},
    ],
)
def test_a_commit_with_figures_that_are_none_is_refused(damage):
    with pytest.raises((ValueError, TypeError)):
        Commit.from_json(without(a_commit(0)) | damage)


def test_what_people_read():
    commits = [
        a_commit(0, busy_seconds=90.0),
        a_commit(1, begun=100, samples=9, failed=1, causes={"vl: \x1b[2J": 1}),
    ]
    running = a_run(ended="", builders=2, lost={"died": 75.0})
    found = far(commits, runs=[running], now=START.timestamp() + 230, price=2.0)
    assert progress_parts(found, START.timestamp() + 230) == [
        "19/100 pairs (19%)",
        "342 an hour (342 over all runs)",
        "14 min 02 s left",
        "2 builders at work",
        "last commit 30 s ago",
    ]
    assert spending_parts(found) == [
        "1 failed (1 vl: \\x1b[2J)",
        "devices 90% busy",
        "1 min 15 s of a device lost (75 died)",
        "0.08 GPU-hours",
        "cost 0.15",
    ]


def test_nothing_that_moves_a_cursor_passes():
    assert plain("a\x1b[31m\r\n\u202eb\x00é") == "a\\x1b[31m\\r\\n\\u202eb\\x00é"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (3 * 86400 + 3 * 3600, "3 d 03 h"),
        (-1, "0 s"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text
