"""One size for a reference picture: that of the training, for whoever reads it."""

import pytest
from PIL import Image

from projector.steering.reference_size import to_training_size

MADE = {"height": 1024, "width": 1024}


@pytest.mark.parametrize(
    ("size", "trained", "expected"),
    [
        ((1024, 1024), MADE, (1024, 1024)),
        ((4000, 3000), MADE, (36 * 32, 28 * 32)),
        ((3000, 4000), MADE, (28 * 32, 36 * 32)),
        ((200, 200), MADE, (1024, 1024)),  # every training picture had 1,024 tokens
        ((90, 10), {"height": 64, "width": 64}, (4 * 32, 32)),
        ((1344, 768), {"height": 768, "width": 1344}, (1344, 768)),
        ((48, 80), {"height": 80, "width": 48}, (48, 80)),  # no multiple of a token's 32, and theirs
        ((4000, 3000), {"max_side": 512}, (512, 384)),
        ((300, 200), {"max_side": 512}, (300, 200)),
    ],
)
def test_a_picture_gets_the_size_of_the_training(size, trained, expected):
    assert to_training_size(Image.new("RGB", size), trained).size == expected


@pytest.mark.parametrize("tokens", [4, 5, 64, 1008, 1024, 4096])
def test_no_more_tokens_than_in_training_and_twice_is_once(tokens):
    trained = {"height": 32, "width": 32 * tokens}
    for size in [(w, h) for w in range(40, 2000, 197) for h in range(40, 2000, 189)]:
        once = to_training_size(Image.new("L", size), trained)
        assert tokens / 2 < once.width * once.height / 32**2 <= tokens
        assert to_training_size(once, trained) is once
