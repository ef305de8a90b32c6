"""Another draw is another set of pairs, in the order of the dataset."""

from synthetic import Synthetic

from projector.data.drawn import drawn


def test_pairs_are_drawn_in_order_and_anew_by_each_seed():
    whole = Synthetic(width=4, image_tokens=2, text_tokens=(2, 3), latent=2).source(20)
    keys = [pair.key for pair in whole]
    draws = [[pair.key for pair in drawn(whole, 8, seed)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    for draw in draws:
        assert len(set(draw)) == 8
        assert draw == [key for key in keys if key in draw]
    some = drawn(whole, 8, 0)
    assert [pair.key for pair in some.read(2, 5)] == draws[0][2:5]
    assert list(some.read(5, 5)) == []
    assert [pair.key for pair in drawn(whole, 99, 3)] == keys
