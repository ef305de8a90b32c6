"""The plan: pure, stable under growth, split by caption."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UsageError
from shards.format.plan import make_plan, sample_id, sample_seed, shard_sizes
from shards.format.splits import LEAST_HELD_OUT, group_rank, normalise_caption, split_of
from shards.prompts.prompt import Prompt
from shards.sources.item import Item, Place

PROMPTS = [Prompt(f"caption {i}", "photograph", "vintage", "people") for i in range(400)]


def plan(*segments, seed=0, val_fraction=0.2, test_fraction=0.1, per_shard=7, least=0, prompts=PROMPTS):
    return make_plan(
        prompts,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        least_held_out=least,
        samples_per_shard=per_shard,
        segments=segments,
    )


@settings(deadline=None, max_examples=25)
@given(
    totals=st.lists(st.integers(1, 400), min_size=1, max_size=4, unique=True).map(sorted),
    per_shard=st.integers(1, 50),
    fractions=st.tuples(st.floats(0, 0.45), st.floats(0, 0.45)),
    least=st.integers(0, 40),
)
def test_growth_changes_nothing_of_what_was_planned(totals, per_shard, fractions, least):
    chosen = {"val_fraction": fractions[0], "test_fraction": fractions[1], "least": least}
    grown = plan(*totals, per_shard=per_shard, **chosen)
    for end in range(1, len(totals)):
        earlier = plan(*totals[:end], per_shard=per_shard, **chosen)
        later = {shard.name: shard for shard in grown.shards}
        assert all(later[shard.name].slice_hash == shard.slice_hash for shard in earlier.shards)


@settings(deadline=None, max_examples=25)
@given(total=st.integers(1, 400), per_shard=st.integers(1, 50))
def test_every_sample_is_planned_once_and_shards_are_contiguous(total, per_shard):
    made = plan(total, per_shard=per_shard)
    assert [sample.index for sample in made.samples] == list(range(total))
    assert len({sample.key for sample in made.samples}) == total == len(made)
    for split in ("train", "val", "test"):
        shards = [shard for shard in made.shards if shard.split == split]
        assert [shard.index for shard in shards] == list(range(len(shards)))
        sizes = [len(shard.samples) for shard in shards]
        assert sizes == shard_sizes(sum(sizes), per_shard)
        for shard in shards:
            assert [sample.position for sample in shard.samples] == list(range(len(shard.samples)))


def test_the_last_shard_of_each_split_is_closed_where_the_plan_ended():
    sizes = [len(shard.samples) for shard in plan(10, 20, val_fraction=0.0, test_fraction=0.0).shards]
    assert sizes == [7, 3, 7, 3]


def test_the_split_follows_the_normalised_caption():
    assert Prompt("A  Red\tFox ").group == Prompt("a red fox").group
    splits = Counter(split_of(prompt.group, 0.2, 0.1) for prompt in PROMPTS)
    assert 50 < splits["val"] < 110
    assert 20 < splits["test"] < 60
    for prompt in PROMPTS:  # what was held out stays where it is as the fractions grow
        split = split_of(prompt.group, 0.2, 0.1)
        assert split_of(prompt.group, 0.3, 0.2) == split or split == "train"


def counts(made):
    return Counter(sample.split for sample in made)


@pytest.mark.parametrize(
    ("total", "least"), [(20, 4), (100, 20), (159, 31), (160, LEAST_HELD_OUT), (400, LEAST_HELD_OUT)]
)
def test_val_and_test_have_32_samples_or_a_fifth(total, least):
    found = counts(plan(total, val_fraction=0.01, test_fraction=0.01, least=LEAST_HELD_OUT))
    assert (found["val"], found["test"]) == (least, least)
    fewer = counts(plan(total, val_fraction=0.01, test_fraction=0.0, least=LEAST_HELD_OUT))
    assert (fewer["val"], fewer["test"]) == (least, 0)


def test_what_fills_a_split_is_what_a_larger_fraction_would_hold_out():
    made = plan(400, val_fraction=0.01, test_fraction=0.01, least=LEAST_HELD_OUT)
    ranked = sorted((group_rank(normalise_caption(sample.caption)), sample.split) for sample in made)
    assert [split for _, split in ranked] == ["val"] * 32 + ["train"] * 336 + ["test"] * 32


def test_a_split_that_was_short_is_filled_from_what_is_new_alone():
    grown = plan(40, 400, val_fraction=0.001, test_fraction=0.001, least=LEAST_HELD_OUT)
    first = [sample for sample in grown if sample.index < 40]
    assert Counter(sample.split for sample in first) == {"train": 24, "val": 8, "test": 8}
    assert counts(grown) == {"train": 336, "val": 32, "test": 32}


@settings(deadline=None, max_examples=25)
@given(
    pictures=st.lists(st.integers(0, 30), min_size=60, max_size=60),
    cut=st.integers(10, 50),
)
def test_a_picture_is_in_one_split_however_a_plan_grew(pictures, cut):
    items = [Item(f"{picture}.jpg", f"words {place}", Place("x")) for place, picture in enumerate(pictures)]
    made = plan(cut, 60, val_fraction=0.05, test_fraction=0.05, least=8, prompts=items)
    splits = {}
    for sample in made:
        splits.setdefault(pictures[sample.index], set()).add(sample.split)
    assert all(len(found) == 1 for found in splits.values())


def test_another_picture_with_the_caption_of_one_that_was_moved_goes_with_it():
    items = [Item(f"{place}.jpg", f"words {place}", Place("x")) for place in range(20)]
    items += [Item(f"late-{place}.jpg", f"Words  {place}", Place("x")) for place in range(20)]
    made = plan(20, 40, val_fraction=1e-9, test_fraction=1e-9, least=4, prompts=items).samples
    moved = [place for place in range(20) if made[place].split != "train"]
    assert len(moved) == 8
    assert all(made[place + 20].split == made[place].split for place in moved)


def test_ids_and_seeds_depend_on_caption_and_run_seed_alone():
    first, again, other = plan(50), plan(300), plan(50, seed=1)
    for a, b, c in zip(first.samples, again.samples[:50], other.samples, strict=True):
        assert (a.id, a.seed) == (b.id, b.seed) == (sample_id(a.caption), sample_seed(0, a.id))
        assert a.id == c.id
        assert a.seed != c.seed
        assert 0 <= a.seed < 2**63


def test_published_values_never_change():
    """Datasets on disk depend on them."""
    assert sample_id("a red fox") == "647c3a6520b87d38"
    assert sample_seed(0, "647c3a6520b87d38") == PINNED_SEED
    assert normalise_caption("Ｆull-width  ﬁ \n x") == "full-width fi x"


PINNED_SEED = 2908813807262771166


@pytest.mark.parametrize("change", ["caption", "seed", "content", "position"])
def test_the_slice_hash_sees_every_field(change):
    from dataclasses import replace

    shard = plan(30).shards[0]
    value = getattr(shard.samples[3], change)
    changed = replace(shard.samples[3], **{change: value + (1 if isinstance(value, int) else "x")})
    assert (
        replace(shard, samples=(*shard.samples[:3], changed, *shard.samples[4:])).slice_hash
        != shard.slice_hash
    )


def test_more_samples_than_prompts_is_a_usage_error():
    with pytest.raises(UsageError, match=r"samples = 401: the prompt source holds 400"):
        plan(401)


@pytest.mark.parametrize("segments", [(), (0,), (5, 5), (9, 4)])
def test_segments_must_grow(segments):
    with pytest.raises(ValueError, match="segments must begin"):
        plan(*segments)


@pytest.mark.parametrize("per_shard", [0, 10_001])
def test_a_shard_holds_what_its_keys_can_count(per_shard):
    with pytest.raises(ValueError, match="samples_per_shard"):
        plan(5, per_shard=per_shard)


@settings(deadline=None, max_examples=25)
@given(samples=st.integers(0, 5000), full=st.integers(1, 128))
def test_shard_sizes_add_up_and_only_the_end_of_eight_full_shards_is_small(samples, full):
    sizes = shard_sizes(samples, full)
    assert sum(sizes) == samples
    assert all(0 < size <= full for size in sizes)
    if samples < 8 * full:
        assert sizes[:-1] == [full] * (len(sizes) - 1)
    else:
        large = sum(size for size in sizes if size == full)
        assert samples * 7 / 8 - full < large <= samples
        assert all(small < full for small in sizes[large // full :]) or full == 1
