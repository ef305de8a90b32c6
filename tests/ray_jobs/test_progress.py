"""The progress line: counts over all runs, rate of this one."""

import io
import threading

import pytest

from ray_jobs.cli import progress
from ray_jobs.cli.progress import Progress, repeated


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_rate_and_time_left_come_from_this_run_and_counts_from_all(clock):
    shown = Progress("build", 100, done=40)
    clock[0] += 10
    assert shown.line(20) == "build: 60/100 samples (60%), 2.0/s, 20 s left"


def test_slow_work_is_told_per_hour(clock):
    shown = Progress("build", 100)
    clock[0] += 100
    assert shown.line(10) == "build: 10/100 samples (10%), 360/h, 15 min 00 s left"


def test_nothing_made_yet_promises_nothing(clock):
    assert Progress("build", 100, done=40).line(0) == "build: 40/100 samples (40%)"


def test_nothing_to_do_is_done():
    assert Progress("build", 0).line(0) == "build: 0/0 samples (100%)"


def test_in_a_file_lines_come_at_intervals_and_the_last_always(clock):
    stream = io.StringIO()
    shown = Progress("build", 10, stream=stream)
    for made in range(1, 11):
        clock[0] += 1
        shown.show(made)
    shown.show(10, final=True)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("build: 10/10 samples (100%)")


def test_on_a_terminal_one_line_is_rewritten(clock):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    shown = Progress("build", 10, stream=stream)
    clock[0] += 1
    shown.show(1, "note")
    shown.show(2)
    assert stream.getvalue().count("\r") == 2
    assert "\n" not in stream.getvalue()


def test_what_goes_wrong_beside_the_work_is_told_once_and_tried_again(capsys):
    tries, enough = [], threading.Event()

    def look():
        tries.append(len(tries))
        if len(tries) == 5:
            enough.set()
        if len(tries) < 4:
            raise OSError("the store is away")

    with repeated(look, 0.001):
        assert enough.wait(60)
    assert capsys.readouterr().out == "watching failed, and goes on: OSError: the store is away\n"
