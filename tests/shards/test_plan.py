"""The plan: pure, stable under growth, split by caption."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import UsageError
from shards.format.plan import (
    is_held_out,
    make_plan,
    normalise_caption,
    sample_id,
    sample_seed,
    shard_sizes,
)
from shards.prompts.prompt import Prompt

PROMPTS = [Prompt(f"caption {i}", "photograph", "vintage", "people") for i in range(400)]


def plan(*segments, seed=0, val_fraction=0.2, per_shard=7):
    return make_plan(
        PROMPTS, seed=seed, val_fraction=val_fraction, samples_per_shard=per_shard, segments=segments
    )


@given(
    totals=st.lists(st.integers(1, 400), min_size=1, max_size=4, unique=True).map(sorted),
    per_shard=st.integers(1, 50),
    val_fraction=st.floats(0, 0.9),
)
def test_growth_changes_nothing_of_what_was_planned(totals, per_shard, val_fraction):
    grown = plan(*totals, per_shard=per_shard, val_fraction=val_fraction)
    for end in range(1, len(totals)):
        earlier = plan(*totals[:end], per_shard=per_shard, val_fraction=val_fraction)
        later = {shard.name: shard for shard in grown.shards}
        assert all(later[shard.name].slice_hash == shard.slice_hash for shard in earlier.shards)


@given(total=st.integers(1, 400), per_shard=st.integers(1, 50))
def test_every_sample_is_planned_once_and_shards_are_contiguous(total, per_shard):
    made = plan(total, per_shard=per_shard)
    assert [sample.index for sample in made.samples] == list(range(total))
    assert len({sample.key for sample in made.samples}) == total == len(made)
    for split in ("train", "val"):
        shards = [shard for shard in made.shards if shard.split == split]
        assert [shard.index for shard in shards] == list(range(len(shards)))
        sizes = [len(shard.samples) for shard in shards]
        assert sizes == shard_sizes(sum(sizes), per_shard)
        for shard in shards:
            assert [sample.position for sample in shard.samples] == list(range(len(shard.samples)))


def test_the_last_shard_of_each_split_is_closed_where_the_plan_ended():
    sizes = [len(shard.samples) for shard in plan(10, 20, val_fraction=0.0).shards]
    assert sizes == [7, 3, 7, 3]


def test_the_split_follows_the_normalised_caption():
    assert Prompt("A  Red\tFox ").group == Prompt("a red fox").group
    held_out = sum(is_held_out(prompt.group, 0.2) for prompt in PROMPTS)
    assert 50 < held_out < 110
    for prompt in PROMPTS:  # what was held out stays held out as the fraction grows
        assert is_held_out(prompt.group, 0.3) or not is_held_out(prompt.group, 0.2)


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
    with pytest.raises(UsageError, match=r"build.samples = 401: the prompt source holds 400"):
        plan(401)


@pytest.mark.parametrize("segments", [(), (0,), (5, 5), (9, 4)])
def test_segments_must_grow(segments):
    with pytest.raises(ValueError, match="segments must begin"):
        plan(*segments)


@pytest.mark.parametrize("per_shard", [0, 10_001])
def test_a_shard_holds_what_its_keys_can_count(per_shard):
    with pytest.raises(ValueError, match="samples_per_shard"):
        plan(5, per_shard=per_shard)


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
