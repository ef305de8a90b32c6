"""Learning behind prompts: edited captions before a reference's rows."""

import numpy as np
import pytest
import torch

from projector import Projector
from projector.data.world import World
from projector.inference.text_encoder import TextEncoder
from projector.models.resolve import resolve_models
from projector.options import TrainOptions
from projector.teaching import compose, trajectories
from projector.teaching.compose import EditedPairs, draw_edit
from projector.teaching.trajectories import Trajectories
from projector.training.loop import train
from projector.training.response import ResponseTrainer
from response_support import TRAIN, options
from training_support import curve

pytestmark = pytest.mark.usefixtures("one_thread")


def test_prompts_stand_before_a_references_rows_as_concat_puts_them(model, scene_sources, tmp_path):
    train(options(tmp_path, epochs=1, compose=0.0), *scene_sources)
    projector = Projector.from_pretrained(str(tmp_path))
    path = resolve_models("tiny").image.path
    encoder = TextEncoder.from_pretrained(path, device="cpu", dtype=torch.float32)
    edits = EditedPairs(model, encoder, scene_sources[0].conditionings(0, 6), first=0, count=6, seed=3)
    has = torch.nonzero(edits.places >= 0)[:, 0].tolist()
    assert len(has) >= 4
    shape = projector.network.shape
    for pair in has:
        vl = list(scene_sources[0])[pair].vl.float()
        caption = next(scene_sources[0].conditionings(pair, pair + 1)).caption
        edit = draw_edit(caption, np.random.default_rng([3, pair]))
        prompt, target = encoder.encode([edit.prompt, edit.caption])
        rows, exists = projector.network.conditioning(vl[None])
        found, there = edits.behind_prompts(
            edits.places[pair][None], rows, exists, prefix=shape.prefix, suffix=shape.suffix
        )
        expected = projector.conditioning(vl, prompt.embeddings, prompt.kind)
        assert there.all()
        torch.testing.assert_close(found[0], expected)
        own = model.trajectory([target.embeddings], [100 + pair])
        states, velocities = edits.paths.at(edits.places[pair][None], torch.tensor([2]))
        torch.testing.assert_close(velocities, own[:, 2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            states, model.states(model.noise([100 + pair]), own, torch.tensor([2])), rtol=1e-4, atol=1e-4
        )


def test_learning_behind_prompts_lowers_the_error_behind_them(scene_sources, tmp_path):
    runs = {}
    for share in (0.0, 0.7):
        train(options(tmp_path / f"{share}", epochs=4, learning_rate=3e-3, compose=share), *scene_sources)
        runs[share] = Projector.from_pretrained(str(tmp_path / f"{share}"))
    judge = ResponseTrainer(options(tmp_path / "judge", compose=0.5), World.join("cpu"), *scene_sources, None)
    wholes = {share: judge.validate(run.network) for share, run in runs.items()}
    assert wholes[0.7] < wholes[0.0]
    everybody = torch.arange(TRAIN)
    half = judge.total_steps // 2
    assert not any(
        judge._composed(everybody, step).any() for step in range(half)
    )  # pictures alone come first
    assert all(judge._composed(everybody, step).any() for step in range(half, judge.total_steps))


def test_captions_that_cannot_be_edited_are_learnt_alone(sources, trained, tmp_path):
    assert TrainOptions().compose > 0
    train(options(tmp_path, compose=0.0), *sources)
    assert curve(tmp_path) == curve(trained)


def test_no_pair_is_lost_between_blocks(model, scene_sources, monkeypatch):
    made_from = list(scene_sources[0].conditionings(0, 5))
    whole = Trajectories(model, iter(made_from), 5)
    monkeypatch.setattr(trajectories, "SORTED_TOGETHER", 2)
    paths = Trajectories(model, iter(made_from), 5)
    assert paths.seeds == [item.seed for item in made_from]
    for ours, theirs in zip(
        paths.at(torch.arange(5), torch.ones(5, dtype=torch.int64)),
        whole.at(torch.arange(5), torch.ones(5, dtype=torch.int64)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(compose, "ENCODED_TOGETHER", 2)
    path = resolve_models("tiny").image.path
    encoder = TextEncoder.from_pretrained(path, device="cpu", dtype=torch.float32)
    edits = EditedPairs(model, encoder, iter(made_from), first=0, count=5, seed=3)
    assert len(edits.places) == 5
