import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projector.training.schedule import NOBODY, epoch_order, held, learning_rate, sampling_steps

counts = st.integers(1, 200)
sizes = st.integers(1, 50)


@given(counts, sizes, st.integers(0, 3))
def test_every_pair_once_in_full_batches_but_the_last(count, batch_size, epoch):
    order = epoch_order(count, batch_size, 7, epoch)
    assert sorted(order[order != NOBODY]) == list(range(count))
    assert (order[:-1] != NOBODY).all()
    assert len(order) == -(-count // min(batch_size, count))


@given(counts, sizes, st.integers(1, 8))
def test_workers_hold_their_places_of_every_batch(count, batch_size, size):
    places = min(batch_size, count)
    parts = [held(count, batch_size, rank, size) for rank in range(size)]
    assert [index for part in parts for index in part] == list(range(count))
    for row in epoch_order(count, batch_size, 0, 0)[:-1]:
        shares = [np.isin(row, part).sum() for part in parts]
        assert max(shares) - min(shares) <= 1
        assert sum(shares) == places


def test_the_order_follows_seed_and_epoch_alone():
    first = epoch_order(100, 10, 1, 0)
    assert (epoch_order(100, 10, 1, 0) == first).all()
    assert (epoch_order(100, 10, 1, 1) != first).any()
    assert (epoch_order(100, 10, 2, 0) != first).any()


def test_warm_up_then_cosine():
    rates = [learning_rate(step, peak=2.0, warmup=4, total=104) for step in range(104)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[54] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0, abs=1e-3)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(0, peak=1.0, warmup=0, total=1) == 1.0


def test_steps_with_much_noise_are_drawn_more_often():
    drawn = sampling_steps(80_000, 8, [3, 1])
    shares = np.bincount(drawn, minlength=8) / len(drawn)
    expected = np.diff(np.sqrt(np.arange(9) / 8))  # of the square of an even draw
    assert np.abs(shares - expected).max() < 0.01
    assert (drawn == sampling_steps(80_000, 8, [3, 1])).all()
    assert set(sampling_steps(50, 1, [0])) == {0}
