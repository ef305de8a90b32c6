"""Damaged files at every reader: errors of the project come of it and nothing else, little memory, no waiting.

`python benchmarks/fuzz.py` does the same at length.
"""

import fuzz
import pytest
from fuzz_targets import all_targets, bombs, damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

INPUTS = {"shard": 15, "side file": 15, "commit": 15, "record": 15, "source": 80, "checkpoint": 40}
FEW_MS = 150  # inputs of the targets that take a millisecond each


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    with all_targets(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


@pytest.mark.filterwarnings("ignore")  # Pillow and numpy warn of what is refused a moment later
@pytest.mark.parametrize(
    "name",
    ["shard", "side file", "commit", "record", "member", "picture", "prompts", "source", "checkpoint"],
)
def test_damage_is_an_error_of_the_project_or_nothing(targets, tmp_path, name):
    target = targets[name]

    @settings(
        max_examples=INPUTS.get(name, FEW_MS),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.sampled_from(sorted(target.seeds)), chance=st.randoms(use_true_random=False))
    def each(seed, chance):
        data = damaged(chance, target.seeds[seed])
        problem, _ = fuzz.observed(lambda: target.feed(tmp_path, seed, data))
        assert problem == ""

    each()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
def test_small_files_that_unfold_to_much_are_refused_before_memory_is_spent(tmp_path):
    wrong = {}
    for name, read in bombs(tmp_path):
        fuzz.settle()
        if problem := fuzz.observed(read)[0]:
            wrong[name] = problem
    assert wrong == {}


def test_what_crashes_hangs_or_swells_is_seen(monkeypatch):
    def crash():
        raise RuntimeError("two\nlines")

    assert fuzz.observed(crash)[0].startswith("RuntimeError at test_fuzz.py:")
    assert fuzz.observed(lambda: bytearray(300_000_000))[0].startswith("grew by ")
    assert fuzz.observed(lambda: None)[0] == ""
    monkeypatch.setattr(fuzz, "LONGEST", 1)

    def hang():
        while True:
            pass

    assert fuzz.observed(hang)[0].startswith("HangError")
