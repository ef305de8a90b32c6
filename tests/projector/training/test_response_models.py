"""Which image model a training goes through, at what size and what cost; options that do not go together."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from projector.inference.frozen_transformer import FrozenTransformer, padded_length
from projector.models.resolve import resolve_models
from projector.options import TrainOptions
from projector.teaching.passes import WITH_GRADIENTS, forward_passes, picture_bytes, pictures_that_fit
from projector.training.loop import train
from projector.training.response import frozen_model, image_model
from response_support import CPU, SIDE, STEPS, TRAIN, VAL, options
from shards.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_lengths_that_round_up_alike_are_sampled_together():
    assert [padded_length(rows) for rows in (1, 32, 33, 96)] == [32, 32, 64, 96]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arch": "ridge"}, "arch ridge"),
        ({"align": "pool"}, "align pool"),
        ({"recipe": "guide"}, "recipe guide"),
        ({"loss": "huber", "restore": 0.5}, "loss huber, restore 0.5"),
        ({"std_weight": 0.1}, "std_weight 0.1"),
        ({"dim_weights": {3: 2.0}}, "dim_weights"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        options(tmp_path, **changes)


def test_what_only_embeddings_have_chooses_them():
    chosen = [{}, {"loss": "mse", "restore": "0.0"}, {"loss": "huber"}, {"restore": "0.5"}, {"align": "mean"}]
    found = [TrainOptions(**given) for given in chosen]
    assert [o.objective for o in found] == ["response", "response", "embedding", "embedding", "embedding"]
    assert [o.epochs for o in found] == [24, 24, 50, 50, 50]
    assert TrainOptions(objective="embedding").epochs == 50
    with pytest.raises(ValueError, match="restore"):
        TrainOptions(restore="much")
    with pytest.raises(
        ValueError, match=r"objective response with loss huber, which objective embedding alone"
    ):
        TrainOptions(loss="huber", compose=0.9)
    assert TrainOptions(arch="ridge", compose=0.9).objective == "embedding"


def test_an_image_model_that_is_nowhere_is_named(tmp_path, sources):
    lost = replace(sources[0], provenance=sources[0].provenance | {"models": {"image": {"id": "my-folder"}}})
    with pytest.raises(UsageError, match=r"my-folder.*give models\.image"):
        train(options(tmp_path), lost, sources[1])
    assert not list(Path(tmp_path).glob("*"))


def test_imported_pictures_are_learnt_with_the_pipeline_whose_encoder_read_their_captions(sources):
    own = {"models": {"text": {"id": "tiny/image"}, "vl": {"id": "tiny/vl"}}}
    imported = replace(sources[0], provenance=own)
    assert image_model(TrainOptions(), imported) == resolve_models("tiny").image.path


@pytest.mark.parametrize(("family", "side"), [("mini", 64), ("tiny", 512)])
def test_imported_pictures_are_drawn_at_a_size_that_the_model_knows(sources, family, side):
    imported = replace(sources[0], provenance={"picture": {"max_side": 900}})
    assert frozen_model(resolve_models(family).image.path, imported, CPU).size == (side, side)


def test_pairs_that_name_no_image_model_are_told_so(sources):
    with pytest.raises(
        UsageError, match=r"does not name the image model of its pictures; give models\.image"
    ):
        image_model(TrainOptions(), replace(sources[0], provenance={}))


@pytest.mark.parametrize(
    "changes", [{"compose": 0.0}, {"compose": 0.5}, {"response": "flow", "compose": 0.0}]
)
def test_the_passes_that_a_training_costs_are_told_before(
    scene_sources, pictured, tmp_path, monkeypatch, changes
):
    done = {True: 0, False: 0}
    real = FrozenTransformer.velocities

    def counted(self, latents, sigmas, rows, exists):
        done[rows.requires_grad] += len(latents)
        return real(self, latents, sigmas, rows, exists)

    monkeypatch.setattr(FrozenTransformer, "velocities", counted)
    given = options(tmp_path, epochs=2, **changes)
    train(given, *(pictured if "response" in changes else scene_sources))
    assert done[False] + WITH_GRADIENTS * done[True] == forward_passes(given, TRAIN, VAL, STEPS)
    assert forward_passes(options(tmp_path, objective="embedding"), TRAIN, VAL, STEPS) == 0


def test_a_picture_takes_the_memory_that_the_papers_sizes_give():
    published = {"dim": 3840, "n_layers": 30, "n_refiner_layers": 2}
    assert picture_bytes(published, 512, 512, 2) == pytest.approx(0.4e9, rel=0.25)  # with checkpointing
    assert picture_bytes(published, 1024, 1024, 2) == pytest.approx(1.6e9, rel=0.25)


@pytest.mark.parametrize(
    ("room", "dtype", "fits"), [(0.1, "float32", 1), (2.6, "float32", 2), (2.6, "bfloat16", 4)]
)
def test_as_many_pictures_go_together_as_a_gpu_has_room_for(model, monkeypatch, room, dtype, fits):
    dtype, device = getattr(torch, dtype), torch.device("cuda", 0)
    there = SimpleNamespace(device=device, dtype=dtype, config=model.config, size=model.size)
    free = int(room * picture_bytes(model.config, SIDE, SIDE, 4))
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda asked: (free, 10 * free) if asked == device else None
    )
    assert pictures_that_fit(there) == fits
    assert model.size == (SIDE, SIDE)
    assert pictures_that_fit(model) is None
