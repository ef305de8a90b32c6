"""The Python that README and a projector's card show: README's but for device and size, the card's but for size."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hub_support import a_hub
from projector.data.pairs import Pair, in_memory
from projector.options import TrainOptions
from projector.training.loop import train
from ray_jobs.__main__ import main
from ray_support import ROOT, blocks

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
    options = TrainOptions(
        output=str(tmp_path / "runs" / "mlp"), epochs=1, batch_size=4, objective="embedding"
    )
    train(options, in_memory(pairs), in_memory(pairs), device="cpu")
    for seed, name in ((3, "cat.jpg"), (4, "dog.jpg")):
        pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shortened(lines, **more):
    """A page's lines for a processor and pictures of 64 pixels; each text must be on the page."""
    shown = {'"cuda"': '"cpu"', "1024": "64", '"num_inference_steps": 8': '"num_inference_steps": 2'} | more
    for text, tried in shown.items():
        assert text in lines
        lines = lines.replace(text, tried)
    return lines


def test_the_readme_goes_from_pictures_to_a_picture_in_diffusers(folder):
    pipeline, _ = [text for language, text in blocks("README.md") if language == "python"]
    names = {}
    exec(shortened(pipeline), names)
    assert names["picture"].size == names["mixed"].size == (64, 64)
    assert names["picture"].tobytes() != names["mixed"].tobytes()


def test_the_readme_does_the_same_with_the_stock_pipeline(folder):
    _, lines = [text for language, text in blocks("README.md") if language == "python"]
    names = {}
    exec(shortened(lines), names)
    assert names["picture"].size == (64, 64)
    text, rows = names["text"].embeddings, len(names["conditioning"])
    last = int((names["text"].kind == 2).nonzero()[-1]) + 1
    assert rows > len(text)
    assert names["conditioning"][:last].equal(text[:last])
    assert names["conditioning"][rows - len(text) + last :].equal(text[last:])


@pytest.mark.long
def test_the_card_runs_by_names_of_the_hub(folder):
    name = "someone/cats"
    output = folder / "out"
    words = ("--export.checkpoint", "runs/mlp", "--export.output", str(output), "--export.program", "false")
    assert main(["export", *words, "--export.repository", name]) == 0
    blocks_of_card = re.findall(r"^```python\n(.*?)^```$", (output / "README.md").read_text(), re.M | re.S)
    lines = "\n".join(blocks_of_card)
    assert lines.count("guidance_scale=0.0") == 1
    lines = lines.replace("guidance_scale=0.0", "guidance_scale=0.0, height=128, width=128")  # 1024 take 40 s
    with a_hub(folder / "cache") as (hub, environment):
        hub.add(name, output)
        hub.add("Tongyi-MAI/Z-Image-Turbo", folder / "models" / "Z-Image-Turbo")
        hub.add("Qwen/Qwen3-VL-4B-Instruct", folder / "models" / "Qwen3-VL-4B-Instruct")
        done = subprocess.run(
            [sys.executable, "-c", f"{lines}\nprint(picture.size, conditioning.shape[1])"],
            env=environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "(128, 128) 64"
