"""MinHash against comparing every pair, and what counts as a word."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.prompts.near_duplicates import near_duplicates, similarity, triples, words_of


def jaccard(one, other):
    """Straight from the definition, on words instead of hashes."""

    def runs(text):
        words = words_of(text)
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)} or {tuple(words)}

    return len(runs(one) & runs(other)) / len(runs(one) | runs(other))


texts = st.lists(
    st.sampled_from(["red", "fox", "blue", "sea", "on", "a", "hill", "in", "the", "rain"]),
    min_size=1,
    max_size=12,
).map(" ".join)


@given(texts, texts)
def test_similarity_is_jaccards_of_word_triples(one, other):
    assert similarity(triples(one), triples(other)) == pytest.approx(jaccard(one, other))


def variants(rng, count):
    """Captions of 40 words of which some come again with one to twelve words changed."""
    found = []
    for number in range(count):
        if number % 3 and found:
            words = found[rng.integers(len(found))].split()
            for _ in range(rng.integers(1, 12)):
                words[rng.integers(len(words))] = f"w{rng.integers(10_000)}"
        else:
            words = [f"w{rng.integers(10_000)}" for _ in range(40)]
        found.append(" ".join(words))
    return found


def test_what_is_found_is_what_comparing_every_pair_finds():
    captions = variants(np.random.default_rng(0), 400)
    expected: dict[int, int] = {}
    for place in range(400):
        for first in range(place):
            if first not in expected and jaccard(captions[first], captions[place]) >= 0.8:
                expected[place] = first
                break
    found = near_duplicates(captions)
    assert len(expected) > 20
    assert found == expected


@settings(deadline=None)
@given(st.lists(texts, max_size=12), st.lists(texts, max_size=12))
def test_the_first_captions_decide_about_themselves_alone(first, more):
    assert near_duplicates(first) == {
        place: other for place, other in near_duplicates([*first, *more]).items() if place < len(first)
    }


def test_words_of_scripts_with_and_without_spaces():
    assert words_of("A red-brown Fox, twice!") == ["a", "red", "brown", "fox", "twice"]
    assert words_of("一只狐狸 in snow") == ["一", "只", "狐", "狸", "in", "snow"]
    assert near_duplicates(["!!!", "!!!", "???", ""]) == {1: 0}
