"""Compiled blocks are kept only where they compute the same, and the batch size that pays is found and remembered."""

import json

import pytest
import torch

from projector.inference import compile_and_batch as tuning
from projector.inference.compile_and_batch import compile_checked, fastest, find_batch_size
from projector.inference.image_generator import ImageGenerator
from projector.models.resolve import CACHE_VARIABLE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def images(tiny):
    return ImageGenerator.from_pretrained(
        str(tiny / "image"), device="cpu", dtype=torch.float32, height=64, width=64, steps=2
    )


@pytest.fixture
def steps_that_take(monkeypatch):
    """Have timed steps report given seconds, in the order in which they are taken."""

    def use(*seconds):
        given = iter(seconds)
        timed = tuning._timed_step
        monkeypatch.setattr(tuning, "_timed_step", lambda *what: (timed(*what)[0], next(given)))

    return use


def test_compiled_blocks_are_kept_where_steps_come_out_the_same_and_sooner(
    images, monkeypatch, steps_that_take
):
    """With the back end that traces and generates no code: a compiler takes a minute here (docs/performance.md)."""
    transformer, used = images.pipeline.transformer, []
    compiling = transformer.compile_repeated_blocks
    monkeypatch.setattr(
        transformer,
        "compile_repeated_blocks",
        lambda **options: used.append(options) or compiling(backend="eager", **options),
    )
    rows = [tuning.ROWS, tuning.LONGER_ROWS]
    eager = images.one_step(rows)
    steps_that_take(3.0, 3.0, 2.0, 1.0)
    assert compile_checked(images, 2) == "compiled blocks: a step is 1.50 times as fast"
    assert used == [{"dynamic": True}]
    assert any(module._compiled_call_impl is not None for module in transformer.modules())
    assert (images.one_step(rows) - eager).norm() < 1e-4 * eager.norm()


@pytest.mark.parametrize(
    ("seconds", "times"),
    [((1.0, 1.0, 1.0, 1.0), "1.00"), ((3.0, 1.0, 1.0, 1.25), "0.80"), ((1.0, 3.0, 1.0, 1.0), "1.00")],
    ids=["never", "not with a mask", "with a mask only"],
)
def test_compiled_blocks_that_are_not_faster_are_given_up(
    seconds, times, images, monkeypatch, steps_that_take
):
    transformer = images.pipeline.transformer
    compiling = transformer.compile_repeated_blocks
    monkeypatch.setattr(
        transformer, "compile_repeated_blocks", lambda **options: compiling(backend="eager", **options)
    )
    steps_that_take(*seconds)
    assert compile_checked(images, 2) == f"compiled blocks are not used: a step is {times} times as fast"
    assert all(module._compiled_call_impl is None for module in transformer.modules())


def test_steps_are_compared_without_a_mask_and_with_one(images, monkeypatch):
    masked = []
    images.pipeline.transformer.layers[0].register_forward_pre_hook(
        lambda _, inputs: masked.append(inputs[1] is not None)
    )
    monkeypatch.setattr(images.pipeline.transformer, "compile_repeated_blocks", lambda **_: 1 / 0)
    assert "ZeroDivisionError" in compile_checked(images, 2)
    steps = 1 + tuning.TIMED_STEPS
    assert masked == [False] * steps + [True] * steps


def test_blocks_that_compute_something_else_are_given_up(images, monkeypatch):
    transformer = images.pipeline.transformer
    expected = images.one_step([32])

    def compile_wrongly(**_options):
        for block in transformer.layers:
            block._compiled_call_impl = lambda x, *_, **__: 2 * x

    monkeypatch.setattr(transformer, "compile_repeated_blocks", compile_wrongly)
    assert "a step differs by" in compile_checked(images, 1)
    assert torch.equal(images.one_step([32]), expected)


def test_a_compiler_that_fails_is_reported_and_done_without(images, monkeypatch):
    def fail(**_options):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(images.pipeline.transformer, "compile_repeated_blocks", fail)
    assert compile_checked(images, 1) == "compiled blocks are not used: RuntimeError: no compiler here"
    images.one_step([32])


def times(table):
    def seconds(size):
        if size not in table:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return table[size]

    return seconds


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({1: 1.0, 2: 1.2, 4: 2.0, 8: 3.95, 16: 8.0}, 4),
        ({1: 1.0, 2: 2.0, 4: 1.0}, 1),
        ({1: 1.0, 2: 1.1}, 2),
        ({}, 1),
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 1.0, 32: 1.0}, 16),
    ],
)
def test_the_last_doubling_that_was_worth_it(table, expected):
    assert fastest(times(table)) == expected


def test_a_batch_size_is_searched_for_once(images, tiny_sources, monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    searches = []
    monkeypatch.setattr(tuning, "fastest", lambda _seconds: searches.append(1) or 8)
    assert [find_batch_size(images, tiny_sources.image) for _ in range(2)] == [8, 8]
    assert len(searches) == 1
    (record,) = (tmp_path / "batch-sizes").glob("*.json")
    assert json.loads(record.read_text()) == {"batch_size": 8, "device": "cpu", "height": 64, "width": 64}
    images.height = 128
    find_batch_size(images, tiny_sources.image)
    assert len(searches) == 2, "another size is another question"
    record.write_text("{broken")
    images.height = 64
    find_batch_size(images, tiny_sources.image)
    assert len(searches) == 3


def test_the_search_takes_real_steps_of_each_size(images, tiny_sources, monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    taken = []
    step = images.one_step
    monkeypatch.setattr(images, "one_step", lambda rows: taken.append(len(rows)) or step(rows))
    monkeypatch.setattr(tuning, "fastest", lambda seconds: [seconds(size) > 0 for size in (1, 2)] and 2)
    assert find_batch_size(images, tiny_sources.image) == 2
    assert taken == [1, 1, 1, 1, 2, 2, 2, 2], "one to warm up and three that count"
