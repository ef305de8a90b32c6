"""What is asked of an image model, against its own files: positions, steps, guidance."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from projector.inference.image_generator import ImageGenerator
from projector.inference.image_settings import caption_rows, check_image_settings, check_max_tokens
from projector.models.resolve import ModelSource
from shards.errors import UsageError

TURBO = {"height": 1024, "width": 1024, "steps": 8, "guidance": 0.0, "max_tokens": 512}
BASE = TURBO | {"steps": 50, "guidance": 4.0}


@pytest.fixture
def model(tiny, tmp_path):
    """Makes a pipeline folder with the published configs' numbers."""

    def make(shift, axes=(1536, 512, 512)):
        folder = tmp_path / "z-image"
        for part in ("transformer", "scheduler"):
            shutil.copytree(tiny / "image" / part, folder / part, dirs_exist_ok=True)
        for name, changes in (
            ("transformer/config.json", {"axes_lens": axes}),
            ("scheduler/scheduler_config.json", {"shift": shift}),
        ):
            content = json.loads((folder / name).read_text()) | changes
            (folder / name).write_text(json.dumps(content))
        return ModelSource("z-image", str(folder), "", {})

    return make


@pytest.mark.parametrize(
    ("shift", "settings", "warning"),
    [
        (3.0, TURBO, ""),
        (
            3.0,
            TURBO | {"steps": 9},
            "distilled to 8 steps without guidance; steps is 9, guidance 0",
        ),
        (3.0, TURBO | {"guidance": 4.0}, "steps is 8, guidance 4"),
        (6.0, BASE, ""),
        (6.0, BASE | {"steps": 28}, ""),
        (6.0, BASE | {"steps": 8}, "wants 28 to 50 steps and guidance of about 4; steps is 8"),
        (1.0, TURBO | {"steps": 3}, ""),  # of neither: nothing is known of it
        (None, TURBO | {"steps": 3}, ""),
    ],
)
def test_steps_and_guidance_that_do_not_belong_to_the_scheduler_are_said(model, shift, settings, warning):
    found = check_image_settings(model(shift), **settings)
    assert len(found) == bool(warning)
    assert all(warning in line for line in found)


def test_the_undistilled_model_is_refused_without_guidance(model):
    with pytest.raises(UsageError, match=r"guidance = 0: .*set guidance 4 and steps 50"):
        check_image_settings(model(6.0), **TURBO)


def test_random_models_have_no_steps_of_their_own(model):
    assert check_image_settings(replace(model(6.0), id="tiny/image"), **TURBO) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 2000}, r"max_tokens = 2000: .*captions of 1504 tokens .*use at most 1504"),
        ({"height": 8208}, r"height = 8208: .*positions for 8192 pixels"),
        ({"width": 8208}, r"width = 8208"),
    ],
)
def test_more_than_there_are_positions_for(model, changes, message):
    check_image_settings(model(3.0), **TURBO | {"max_tokens": 1504, "height": 8192})
    with pytest.raises(UsageError, match=message):
        check_image_settings(model(3.0), **TURBO | changes)
    with pytest.raises(
        UsageError, match=r"axes_lens in transformer/config.json is 'x', expected three numbers"
    ):
        check_image_settings(model(3.0, axes="x"), **TURBO)


def test_an_import_without_the_transformer_has_no_limit_to_check(tmp_path):
    check_max_tokens(tmp_path, 5000)


def test_the_limit_is_the_transformers(tiny):
    """One row more than the limit is what diffusers itself cannot take."""
    images = ImageGenerator.from_pretrained(
        str(tiny / "image"), device="cpu", dtype=torch.float32, height=64, width=64, steps=1
    )
    transformer = images.pipeline.transformer
    most = caption_rows(transformer.config.axes_lens)
    rows = torch.randn(most + 1, transformer.config.cap_feat_dim)
    assert images.generate([rows[:most]], [0])[0].size == (64, 64)
    with pytest.raises(IndexError):
        images.one_step([most + 1])
    with pytest.raises(ValueError, match=f"has {most + 1} rows; the image model takes at most {most}"):
        images.generate([rows], [0])
