"""The Python that README and the card of a projector show, run as it stands but for the device and the size."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from projector.data.pairs import Pair, in_memory
from projector.options import TrainOptions
from projector.training.loop import train
from ray_jobs.__main__ import main
from ray_support import blocks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def folder(tmp_path, tiny, one_thread, monkeypatch):
    """A folder with everything that the lines name."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "Z-Image-Turbo").symlink_to(tiny / "image")
    (tmp_path / "models" / "Qwen3-VL-4B-Instruct").symlink_to(tiny / "vl")
    random = torch.Generator().manual_seed(0)
    kinds = torch.ones(6, dtype=torch.uint8)
    pairs = [
        Pair(f"k{i}", torch.randn(6, 64, generator=random), kinds, torch.randn(4, 64, generator=random))
        for i in range(8)
    ]
    options = TrainOptions(output=str(tmp_path / "runs" / "mlp"), epochs=1, batch_size=4)
    train(options, in_memory(pairs), in_memory(pairs), device="cpu")
    pixels = np.random.default_rng(3).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_goes_from_a_picture_to_a_picture(folder):
    (lines,) = [text for language, text in blocks("README.md") if language == "python"]
    for shown, tried in (
        ('"cuda"', '"cpu"'),
        ("1024", "64"),
        ("num_inference_steps=8", "num_inference_steps=2"),
    ):
        assert shown in lines
        lines = lines.replace(shown, tried)
    names = {}
    exec(lines, names)
    assert names["picture"].size == (64, 64)
    template = names["text"].kind != 2
    assert names["conditioning"][template].equal(names["text"].embeddings[template])


def test_the_card_goes_from_a_picture_to_a_conditioning(folder):
    assert (
        main(
            [
                "export",
                "--export.checkpoint",
                "runs/mlp",
                "--export.output",
                "this-folder",
                "--export.program",
                "false",
            ]
        )
        == 0
    )
    lines = "".join(
        re.findall(r"^```python\n(.*?)^```$", (folder / "this-folder" / "README.md").read_text(), re.M | re.S)
    )
    for shown, tried in (
        ("Qwen/Qwen3-VL-4B-Instruct", "models/Qwen3-VL-4B-Instruct"),
        ("Tongyi-MAI/Z-Image-Turbo", "models/Z-Image-Turbo"),
    ):
        assert shown in lines
        lines = lines.replace(shown, tried)
    names = {}
    exec(lines, names)
    assert names["conditioning"].shape == names["text"].embeddings.shape
