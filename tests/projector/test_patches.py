"""Patches made on the device are the library's own, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image

from projector.inference.patches import PatchMaker

SIZES = [(128, 96), (64, 64), (100, 70), (33, 517), (20, 20), (1024, 512)]  # width, height
SETTINGS = {
    "qwen3-vl": {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "qwen2-vl": {},
    "only resized": {"do_rescale": False, "do_normalize": False},
    "few pixels": {"size": {"shortest_edge": 56 * 56, "longest_edge": 128 * 128}},
}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_patches_and_grids_equal_the_librarys(settings):
    from transformers import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(**settings)
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in SIZES
    ]
    expected = processor(images=images, return_tensors="pt")
    patches, grid = PatchMaker(processor)(images, "cpu")
    assert torch.equal(grid, expected["image_grid_thw"])
    assert torch.equal(patches, expected["pixel_values"].float())
