import subprocess
import sys

import pytest
from pydantic import ValidationError

from projector.options import EvaluateOptions, TrainOptions


def test_every_field_says_what_it_is():
    for model in (TrainOptions, EvaluateOptions):
        assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_unknown_keys_and_nonsense_are_errors():
    for wrong in (
        {"epoch": 3},
        {"epochs": 0},
        {"layer": 3},
        {"arch": "transformer"},
        {"learning_rate": -1.0},
    ):
        with pytest.raises(ValidationError):
            TrainOptions(**wrong)


@pytest.mark.parametrize("weights", [{-1: 2.0}, {3: -1.0}, {3: float("inf")}])
def test_dimension_weights_that_are_none(weights):
    with pytest.raises(ValidationError, match="expected dimensions from 0 on"):
        TrainOptions(dim_weights=weights)


def test_defaults_that_depend_on_the_rest():
    assert TrainOptions(arch="mlp").hidden_size(2560) == 4096
    assert TrainOptions(hidden=7).hidden_size(2560) == 7
    assert TrainOptions(learning_rate=5.0).peak_learning_rate(64) == 5.0
    assert TrainOptions().peak_learning_rate(64) > TrainOptions().peak_learning_rate(2560)
    assert TrainOptions(objective="embedding").warmup(100) == 5
    assert TrainOptions(objective="embedding").warmup(1_000_000) == 500
    assert (TrainOptions().objective, TrainOptions().epochs, TrainOptions().warmup(1000)) == (
        "response",
        24,
        20,
    )


@pytest.mark.parametrize("chosen", [{"arch": "ridge"}, {"recipe": "guide"}, {"align": "pool"}])
def test_what_cannot_be_trained_through_the_model_learns_embeddings(chosen):
    assert TrainOptions(**chosen).objective == "embedding"
    with pytest.raises(ValidationError, match="objective response with"):
        TrainOptions(**chosen, objective="response")


def test_more_defaults_that_depend_on_the_rest():
    assert TrainOptions(warmup_steps=500).warmup(100) == 50


def test_options_are_light():
    check = "import sys, projector.options; print({'torch', 'numpy', 'pyarrow'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("given", "expected"), [(1, (1, 1)), ("4", (4, 4)), ("2-8", (2, 8)), ("3-3", (3, 3))]
)
def test_workers_are_a_number_or_a_range(given, expected):
    assert TrainOptions(workers=given).worker_range == expected


@pytest.mark.parametrize("given", [0, -1, "0-2", "8-2", "2-", "-2", "a", "1.5", True, "1-100000", "٣"])
def test_other_workers_are_refused(given):
    with pytest.raises(ValidationError, match="a number above 0, or a range"):
        TrainOptions(workers=given)
