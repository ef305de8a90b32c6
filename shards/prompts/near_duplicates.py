"""Near-duplicates among captions: MinHash over runs of three words, and the exact overlap of what it brings together.

Two captions whose sets of word triples have a Jaccard similarity s share one of BANDS bands of ROWS minima with the
probability 1 - (1 - s^ROWS)^BANDS (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4): 0.9998 at 0.8.
Those that do are compared exactly, so nothing is called alike that is not.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from tempfile import SpooledTemporaryFile
from typing import IO
from zlib import crc32

import numpy as np
import numpy.typing as npt

from shards.format.splits import normalise_caption

ALIKE = 0.8  # Jaccard similarity of word triples: one word changed in thirty, or a few words added to a long prompt
BANDS, ROWS = 16, 4
RUN = 3  # words
READ = 1 << 14  # keys of a band read at once
IN_MEMORY = 1 << 21  # bytes of a band's keys; more are kept on disk
CHUNK = 250  # captions hashed at once: 64 hashes of each run of them take some megabytes
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


@lru_cache(maxsize=1 << 16)
def _hash_of(word: str) -> int:
    return crc32(word.encode())


def runs(captions: Sequence[Sequence[str]], length: int) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Hashes of all runs of so many words, of many captions at once.

    Args:
        captions: each as its words.
        length: of a run.

    Returns:
        the hashes, caption by caption, and how many of them each caption has: none where it has fewer words.
    """
    sizes = np.fromiter(map(len, captions), dtype=np.int64, count=len(captions))
    words = np.fromiter((_hash_of(word) for caption in captions for word in caption), np.uint64, sizes.sum())
    counts = np.maximum(sizes - length + 1, 0)
    # The first place of each caption's runs among all words, once for each run, and which run of the caption it is.
    starts = np.repeat(np.cumsum(sizes) - sizes, counts)
    places = starts + np.arange(len(starts)) - np.repeat(np.cumsum(counts) - counts, counts)
    sums = np.zeros(len(places), dtype=np.uint64)
    for step in range(length):
        sums += words[places + step] * _PLACES[step]
    return _mixed(sums), counts


def triples(caption: str) -> Hashes:
    """Hashes of a caption's runs of three words, each once; of a shorter caption, one of the whole."""
    words = words_of(caption) or [normalise_caption(caption)]
    return np.unique(runs([words], min(RUN, len(words)))[0])


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
    return dict(alike(captions))


def alike(captions: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The same as `near_duplicates`, one by one: of ten million captions some hundred MB are in memory."""
    with ExitStack() as stack:
        bands = [stack.enter_context(SpooledTemporaryFile(IN_MEMORY)) for _ in range(BANDS)]
        for start in range(0, len(captions), CHUNK):
            keys = _band_keys(captions[start : start + CHUNK])
            for band, file in enumerate(bands):
                file.write(keys[:, band].tobytes())
        kept: list[dict[int, list[int]]] = [defaultdict(list) for _ in bands]
        for place, shared in _shared(bands, len(captions)):
            candidates = sorted({other for band, key in shared for other in kept[band][key]})
            if candidates:
                own = triples(captions[place])
                first = next((c for c in candidates if similarity(own, triples(captions[c])) >= ALIKE), None)
                if first is not None:
                    yield place, first
                    continue
            for band, key in shared:
                kept[band][key].append(place)


def _shared(bands: Sequence[IO[bytes]], count: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Captions that share a key with another one, in order, with each such band and key; most share none."""
    met = [_repeated(_read(file)) for file in bands]
    for file in bands:
        file.seek(0)
    for start in range(0, count, READ):
        found: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for band, file in enumerate(bands):
            keys = np.frombuffer(file.read(READ * 8), np.uint64)
            if len(met[band]):
                places = np.minimum(np.searchsorted(met[band], keys), len(met[band]) - 1)
                for place in np.flatnonzero(met[band][places] == keys).tolist():
                    found[place].append((band, int(keys[place])))
        yield from ((start + place, found[place]) for place in sorted(found))


def _read(file: IO[bytes]) -> Hashes:
    file.seek(0)
    return np.frombuffer(file.read(), np.uint64)


def _repeated(keys: Hashes) -> Hashes:
    """The keys that are there more than once, ascending."""
    ordered = np.sort(keys)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _band_keys(captions: Sequence[str]) -> Hashes:
    """(captions, BANDS) hashes of the minima in each band."""
    words = [words_of(caption) or [normalise_caption(caption)] for caption in captions]
    keys = np.empty((len(captions), BANDS), np.uint64)
    # A caption of fewer words than a run has one run, of all its words.
    lengths = np.array([min(RUN, len(each)) for each in words])
    for length in np.unique(lengths):
        which = np.flatnonzero(lengths == length)
        hashes, counts = runs([words[place] for place in which], int(length))
        minima = np.minimum.reduceat(_mixed(hashes * _FACTORS + _OFFSETS), np.cumsum(counts) - counts, axis=1)
        bands = minima.reshape(BANDS, ROWS, len(which))
        keys[which] = _mixed((bands * _PLACES[None, :ROWS, None]).sum(1)).T
    return keys


def _mixed(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64: each bit of the result depends on each of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
