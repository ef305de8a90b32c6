"""Near-duplicates among captions: MinHash over runs of three words, and the exact overlap of what it brings together.

Two captions whose sets of word triples have a Jaccard similarity s share one of BANDS bands of ROWS minima with the
probability 1 - (1 - s^ROWS)^BANDS (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4): 0.9998 at 0.8.
Those that do are compared exactly, so nothing is called alike that is not.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

from shards.format.plan import normalise_caption

ALIKE = 0.8  # Jaccard similarity of word triples: one word changed in thirty, or a few words added to a long prompt
BANDS, ROWS = 16, 4
RUN = 3  # words
# A word, or one character of a script that is written without spaces.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")

Hashes = npt.NDArray[np.uint64]
_random = np.random.default_rng(20_000)
_FACTORS = _random.integers(1, 2**63, (BANDS * ROWS, 1), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _random.integers(0, 2**63, (BANDS * ROWS, 1), dtype=np.uint64)
_PLACES = _random.integers(1, 2**63, max(RUN, ROWS), dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def words_of(caption: str) -> list[str]:
    """The words of a caption, normalised; of a script without spaces, its characters."""
    return WORD.findall(normalise_caption(caption))


def runs(words: Sequence[str], length: int) -> Hashes:
    """A hash of each run of so many words; ValueError where there are fewer."""
    hashes = np.array([crc32(word.encode()) for word in words], dtype=np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(hashes, length)
    return _mixed((windows * _PLACES[:length]).sum(1))


def triples(caption: str) -> Hashes:
    """Hashes of a caption's runs of three words, each once; of a shorter caption, one of the whole."""
    words = words_of(caption) or [normalise_caption(caption)]
    return np.unique(runs(words, min(RUN, len(words))))


def similarity(one: Hashes, other: Hashes) -> float:
    """Jaccard similarity of two sets of triples."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def near_duplicates(captions: Sequence[str]) -> dict[int, int]:
    """Which captions are like an earlier one that is not itself left out for being so.

    Args:
        captions: in order; what is found among the first of them does not depend on those that follow.

    Returns:
        the place of each such caption, and that of the first it is like.
    """
    keys = (
        np.stack([_band_keys(triples(caption)) for caption in captions]) if captions else np.empty((0, BANDS))
    )
    met: list[set[int]] = []  # per band, the keys that more than one caption has; most captions have none
    for band in range(keys.shape[1]):
        values, counts = np.unique(keys[:, band], return_counts=True)
        met.append(set(values[counts > 1].tolist()))
    kept: list[dict[int, list[int]]] = [defaultdict(list) for _ in met]
    found: dict[int, int] = {}
    for place, row in enumerate(keys.tolist()):
        shared = [(band, key) for band, key in enumerate(row) if key in met[band]]
        candidates = sorted({other for band, key in shared for other in kept[band][key]})
        if candidates:
            own = triples(captions[place])
            first = next((c for c in candidates if similarity(own, triples(captions[c])) >= ALIKE), None)
            if first is not None:
                found[place] = first
                continue
        for band, key in shared:
            kept[band][key].append(place)
    return found


def _band_keys(hashes: Hashes) -> Hashes:
    minima = (_mixed(hashes * _FACTORS + _OFFSETS)).min(axis=1).reshape(BANDS, ROWS)
    keys: Hashes = _mixed((minima * _PLACES[:ROWS]).sum(1))
    return keys


def _mixed(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64: each bit of the result depends on each of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
