"""Several references in one conditioning."""

import pytest
import torch

from projector.network.projector import Projector
from projector.steering.references import steered
from shards.errors import UsageError
from shards.format.sample import KIND_CAPTION
from steering_support import a_steering_projector

ROWS = 6


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    return Projector.from_pretrained(a_steering_projector(tiny, tmp_path_factory.mktemp("p")))


@pytest.fixture(scope="module")
def prompt(made):
    shape = made.network.shape
    kind = torch.zeros(shape.prefix + 4 + shape.suffix, dtype=torch.uint8)
    kind[shape.prefix : shape.prefix + 4] = KIND_CAPTION
    return torch.randn(len(kind), 64, generator=torch.Generator().manual_seed(1)), kind


@pytest.fixture(scope="module")
def pictures():
    return list(torch.randn(3, 16, 64, generator=torch.Generator().manual_seed(2)) * 5)


@pytest.mark.parametrize("mode", ["concat", "blend"])
@pytest.mark.parametrize("with_prompt", [True, False])
def test_one_reference_is_the_projectors_own_conditioning(made, prompt, pictures, mode, with_prompt):
    given = prompt if with_prompt else (None, None)
    found = steered(made, pictures[:1], *given, mode=mode, alpha=0.3)
    assert torch.equal(found, made.conditioning(pictures[0], *given, mode=mode, alpha=0.3))


def test_rows_of_all_references_stand_between_the_prompt_and_its_template(made, prompt, pictures):
    text, kind = prompt
    found = steered(made, pictures, text, kind, weights=[1.0, 0.5, 0.01])
    last, counts = made.network.shape.prefix + 4, [ROWS, ROWS // 2, 1]
    assert len(found) == len(text) + sum(counts)
    assert torch.equal(found[:last], text[:last])
    assert torch.equal(found[len(found) - made.network.shape.suffix :], text[last:])
    own = [made.conditioning(each, text, kind)[last : last + ROWS] for each in pictures]
    parts = found[last : last + sum(counts)].split(counts)
    assert torch.equal(parts[0], own[0])
    torch.testing.assert_close(parts[1], own[1].reshape(3, 2, 64).mean(1))
    torch.testing.assert_close(parts[2], own[2].mean(0, keepdim=True))


def test_without_a_prompt_one_template_stands_around_all(made, pictures):
    alone, shape = made.conditioning(pictures[0]), made.network.shape
    found = steered(made, pictures)
    assert len(found) == shape.prefix + 3 * ROWS + shape.suffix
    assert torch.equal(found[: shape.prefix + ROWS], alone[: shape.prefix + ROWS])
    assert torch.equal(found[-shape.suffix :], alone[-shape.suffix :])


def test_blends_are_averaged_by_weight(made, prompt, pictures):
    singles = [made.conditioning(each, *prompt, mode="blend", alpha=0.4) for each in pictures[:2]]
    found = steered(made, pictures[:2], *prompt, weights=[0.75, 0.25], mode="blend", alpha=0.4)
    torch.testing.assert_close(found, 0.75 * singles[0] + 0.25 * singles[1])


@pytest.mark.parametrize(
    ("count", "weights", "message"),
    [
        (0, None, "no reference"),
        (2, [1.0], "1 weights for 2 references"),
        (2, [1.0, 0.0], "each must be above 0"),
        (1, [float("nan")], "each must be above 0"),
    ],
)
def test_weights_that_do_not_fit(made, prompt, pictures, count, weights, message):
    with pytest.raises(UsageError, match=message):
        steered(made, pictures[:count], *prompt, weights=weights)
