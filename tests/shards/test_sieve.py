"""What is taken: nothing twice, nothing in two splits, and nothing that later finds would change."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.format.plan import make_plan
from shards.format.splits import normalise_caption
from shards.sources.filters import Rules
from shards.sources.item import Item, Place, imported_id
from shards.sources.selection import LONGEST_CAPTION, caption_problem, taken
from shards.sources.source import Found

HERE = Place("a.jpg")
# Few pictures and captions, so that they meet; case and spacing tell captions apart for nobody.
FOUND = st.lists(
    st.builds(
        Found,
        picture=st.sampled_from([f"{number}.jpg" for number in range(8)]),
        caption=st.sampled_from(["a fox", "A  Fox", "a door", "\u212b", "å", "two\nlines", "", None]),
        place=st.sampled_from([HERE, HERE, HERE, None]),
        facts=st.just({}),
    ),
    max_size=40,
)


def take(found, captions, val_fraction):
    left_out = Counter()
    items = list(taken(found, Rules(captions=captions, val_fraction=val_fraction), (), left_out))
    return items, left_out


@given(
    found=FOUND,
    captions=st.sampled_from(["first", "all"]),
    val_fraction=st.sampled_from([0.0, 0.3, 0.5]),
    data=st.data(),
)
def test_splits_share_nothing_and_growth_changes_nothing(found, captions, val_fraction, data):
    items, left_out = take(found, captions, val_fraction)
    assert len(items) + left_out.total() == len(found)
    assert len({item.identity for item in items}) == len(items)
    cut = data.draw(st.integers(0, len(found)))
    earlier, _ = take(found[:cut], captions, val_fraction)
    assert items[: len(earlier)] == earlier
    if captions == "first":
        assert len({item.picture for item in items}) == len(items)
    if not items:
        return
    count = data.draw(st.integers(1, len(items)))
    plan = make_plan(
        items, seed=1, val_fraction=val_fraction, samples_per_shard=3, segments=sorted({count, len(items)})
    )
    splits = {split: [s for s in plan.samples if s.split == split] for split in ("train", "val")}
    for what in (lambda item: item.picture, lambda item: normalise_caption(item.caption)):
        of_split = [{what(items[sample.index]) for sample in samples} for samples in splits.values()]
        assert not of_split[0] & of_split[1]
    assert all(sample.id == items[sample.index].identity for sample in plan.samples)


def test_the_first_occurrence_of_a_caption_keeps_its_split():
    pictures = [f"{number}.jpg" for number in range(40)]
    items, left_out = take([Found(name, "the same words", HERE, {}) for name in pictures], "all", 0.5)
    plan = make_plan(items, seed=0, val_fraction=0.5, samples_per_shard=9, segments=(len(items),))
    assert len({sample.split for sample in plan.samples}) == 1
    assert items[0].picture == "0.jpg"
    assert left_out == {"caption in another split": 40 - len(items)}
    assert 5 < len(items) < 35


def test_the_next_caption_stands_in_for_one_that_cannot_be():
    found = [Found("1.jpg", caption, HERE, {}) for caption in (" ", "good", "better")]
    items, left_out = take(found, "first", 0.0)
    assert [item.caption for item in items] == ["good"]
    assert left_out == {"caption blank": 1, "further caption": 1}


@pytest.mark.parametrize(
    ("caption", "problem"),
    [
        ("a fox", ""),
        ("tabs\tand\r\nlines", ""),
        ("emoji 🦊 and עברית", ""),
        ("x" * LONGEST_CAPTION, ""),
        ("x" * (LONGEST_CAPTION + 1), "caption too long"),
        ("", "caption blank"),
        (" \n\u3000", "caption blank"),
        ("bell\a", "caption with control characters"),
        ("nul\0", "caption with control characters"),
        ("escape\x1b[31m", "caption with control characters"),
        ("next line\x85", "caption with control characters"),
        ("half \ud83e", "caption with lone surrogates"),
        (None, "caption missing"),
        (7, "caption that is a number, not text"),
        (["a"], "caption that is a list, not text"),
    ],
)
def test_what_can_be_a_caption(caption, problem):
    assert caption_problem(caption) == problem


def test_an_id_is_of_picture_and_caption():
    assert Item("a", "b", HERE).identity == imported_id("a", "b")
    assert len({imported_id(*pair) for pair in (("a", "b"), ("ab", ""), ("", "ab"), ("a", "c"))}) == 4
