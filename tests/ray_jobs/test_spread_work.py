"""How work is spread over workers and stopped, and what a worker's failure is called."""

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from ray_jobs.cluster import workers
from ray_jobs.cluster.connect import StopRequest
from shards.errors import StorageError, UsageError


class FakeRay:
    """Workers that answer at once, in order; `answers` maps arguments to what `get` returns or raises."""

    def __init__(self, monkeypatch, answers=None):
        self.answers, self.asked = answers or {}, []
        monkeypatch.setattr(workers.ray, "wait", lambda references, timeout: (references[:1], references[1:]))
        monkeypatch.setattr(workers.ray, "get", self.get)

    def get(self, reference):
        answer = self.answers.get(reference, reference)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def make(self):
        return self

    def remote(self, number):
        self.asked.append(number)
        return number


def test_every_piece_is_done_once(monkeypatch):
    fake = FakeRay(monkeypatch)
    found = list(workers.spread([fake, fake], [("make", (number,)) for number in range(7)], StopRequest()))
    assert found == [(number, number) for number in range(7)]
    assert fake.asked == list(range(7))


def test_after_a_signal_what_runs_ends_and_nothing_begins(monkeypatch):
    fake, stop = FakeRay(monkeypatch), StopRequest()
    done = []
    for index, _ in workers.spread([fake, fake], [("make", (number,)) for number in range(7)], stop):
        done.append(index)
        stop._event.set()
    assert done == fake.asked == [0, 1]


@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [
        (UsageError("prompt too long"), UsageError, "^prompt too long$"),
        (StorageError("bucket is gone"), StorageError, "^bucket is gone$"),
        (MemoryError("no\nroom"), StorageError, "a worker failed: MemoryError: no room; run it again"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_one_line(monkeypatch, cause, kind, message):
    fake = FakeRay(monkeypatch, {0: RayTaskError("make", "Traceback\n …", cause)})
    with pytest.raises(kind, match=message):
        list(workers.spread([fake], [("make", (0,))], StopRequest()))


def test_a_worker_that_dies_for_good(monkeypatch):
    fake = FakeRay(monkeypatch, {0: ActorDiedError()})
    with pytest.raises(StorageError, match="a worker failed: ActorDiedError"):
        list(workers.spread([fake], [("make", (0,))], StopRequest()))
