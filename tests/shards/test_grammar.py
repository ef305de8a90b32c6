"""The built-in prompt space: even, growing, distinct, sensible, and the same for ever."""

import hashlib
import pickle
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.format.plan import make_plan
from shards.format.splits import normalise_caption
from shards.prompts.builtin import CONTENT_TYPES, STYLES, SUBJECTS, builtin_prompts
from shards.prompts.near_duplicates import near_duplicates

SPACE = builtin_prompts().prompts
CELLS = {(cell.content, cell.style, cell.subject) for cell in SPACE.cells}


def test_the_space_is_large_and_its_cells_make_sense():
    assert len(SPACE) >= 1_000_000
    assert len(CELLS) == len(SPACE.cells) == 126
    assert {axis: len(set(values)) for axis, values in zip("csb", zip(*CELLS, strict=True), strict=True)} == {
        "c": len(CONTENT_TYPES),
        "s": len(STYLES),
        "b": len(SUBJECTS),
    }
    for nonsense in (
        ("photograph", "painterly"),
        ("photograph", "flat graphic"),
        ("illustration", "photorealistic"),
    ):
        assert not any(cell[:2] == nonsense for cell in CELLS)


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 4000))
def test_any_prefix_is_even_over_the_cells_and_so_is_what_follows_it(count):
    for chosen in (SPACE[:count], SPACE[count : 2 * count]):
        found = Counter((prompt.content, prompt.style, prompt.subject) for prompt in chosen)
        counts = [found[cell] for cell in CELLS]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == count


def test_the_first_prompts_mix_all_three_axes():
    first = SPACE[:30]
    for axis, values in (("content", CONTENT_TYPES), ("style", STYLES), ("subject", SUBJECTS)):
        counts = Counter(getattr(prompt, axis) for prompt in first)
        assert set(counts) == set(values)
        assert max(counts.values()) <= 10


def test_what_is_shown_is_never_shown_again():
    """By arithmetic for all of them: each group's cores come in a bijection, which is walked no further than once."""
    for groups in SPACE._groups.values():
        for group in groups:
            numbers = {group._stride * number % group.cores for number in range(group.cores)}
            assert len(numbers) == group.cores
            visits = -(-len(SPACE) // len(SPACE.cells) // len(groups)) * SPACE._pairs
            assert visits <= group.cores


@pytest.mark.parametrize("language", ["en", "zh"])
def test_twenty_thousand_are_distinct_and_none_is_like_another(language):
    captions = [prompt.caption for prompt in builtin_prompts(language).prompts[:20_000]]
    assert len({normalise_caption(caption) for caption in captions}) == 20_000
    assert near_duplicates(captions) == {}


def test_prompts_are_short_and_long_and_read_as_sentences():
    lengths = Counter()
    for prompt in SPACE[:: len(SPACE) // 20_000]:
        caption = prompt.caption
        words = len(caption.split())
        lengths[words // 20 * 20] += 1
        assert 5 <= words <= 120, caption
        assert caption[0].isupper()
        assert caption.endswith(".")
        assert not re.search(r"[{}|]|  |\.\.| [,.;]|\ba [aeiou](?!ne-|ni)|\ban [^aeiou8]", caption.lower()), (
            caption
        )
    assert all(lengths[start] > 50 for start in (0, 20, 40, 60, 80, 100))


def test_chinese_prompts_are_as_many_and_read_as_sentences():
    space = builtin_prompts("zh").prompts
    assert len(space) == len(SPACE)
    lengths = Counter()
    for prompt in space[:: len(space) // 20_000]:
        caption = prompt.caption
        lengths[len(caption) // 40 * 40] += 1
        assert 8 <= len(caption) <= 220, caption
        assert caption.endswith("。")
        assert not re.search(r"[\s{}|]|[，。、：]{2}|的的|上上|在在", caption), caption
        if prompt.content == "text-heavy image":
            assert re.search(r"，上面用[^“”]+写着“[^“”]+”", caption)
    assert all(lengths[start] > 50 for start in (0, 40, 80, 120, 160))


def test_text_to_render_stands_in_quotes_in_each_text_heavy_prompt():
    for prompt in SPACE[:2000]:
        if prompt.content == "text-heavy image":
            assert re.search(r"with the words “[^“”]+” in ", prompt.caption)


def test_the_same_number_gives_the_same_prompt_in_another_process():
    copy = pickle.loads(pickle.dumps(SPACE))
    assert len(pickle.dumps(SPACE)) < 200
    assert copy[123_456] == SPACE[123_456] == SPACE[123_456 - len(SPACE)]
    with pytest.raises(IndexError):
        SPACE[len(SPACE)]


@pytest.mark.parametrize(
    ("language", "source", "prompts"),
    [
        (
            "en",
            "c7433c76fdf3567e062689ae6113d09edf83e6281cd35c0cfd2a0aae9bfe35ae",
            "8b0aa9cb6c903498367b055e0e3bf25b5dd1984b447dda6dccf337430ec4676b",
        ),
        (
            "zh",
            "9c13a6f982c0760715d9fb9459d73fce626e6ed63e6d6fafeed1fea1bc2b6a78",
            "28da561a883963d4305a0b502d4627c49eec00b9d801498edff114c048a09398",
        ),
    ],
)
def test_the_space_never_changes_unnoticed(language, source, prompts):
    """Its hash is in every fingerprint: a changed word makes old datasets impossible to grow."""
    space = builtin_prompts(language)
    assert space.sha256 == source
    digest = hashlib.sha256()
    for number in (*range(1000), *range(0, len(space.prompts), 9973)):
        digest.update(space.prompts[number].caption.encode())
    assert digest.hexdigest() == prompts, "raise shards.prompts.builtin.VERSION as well"


@pytest.mark.long
def test_a_plan_of_many_is_small_in_memory():
    import tracemalloc

    sizes = []
    for count in (5000, 20_000):
        tracemalloc.start()
        plan = make_plan(SPACE, seed=0, val_fraction=0.05, samples_per_shard=64, segments=(count,))
        assert sum(1 for _ in plan) == count
        sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 15_000 * 40  # bytes: an index, and a shard's share
