"""Training through the frozen image model, on the tiny one: it learns, resumes, and does not depend on how."""

import functools
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from projector import Projector
from projector.data.pairs import Conditioning
from projector.data.world import World
from projector.evaluation.baselines import Method
from projector.evaluation.velocity_error import conditioned_by, conditionings, velocity_errors
from projector.inference.frozen_transformer import FrozenTransformer, padded_length
from projector.teaching.trajectories import Trajectories
from projector.training.loop import train
from projector.training.response import ResponseTrainer
from response_support import SIDE, STEPS, encoded, options, turned
from shards.errors import UsageError
from training_support import curve, weights

pytestmark = pytest.mark.usefixtures("one_thread")


FEW = 5  # held-out pairs that are judged, an odd number for even ones of workers


@pytest.fixture(scope="module")
def learn(sources, tmp_path_factory):
    """A run long enough to learn something: `learn(arch)` gives its folder and summary, of one run of each kind."""

    @functools.cache
    def learnt(arch):
        output = tmp_path_factory.mktemp(arch)
        return output, train(options(output, arch=arch, epochs=8, length=8), *sources)

    return learnt


def test_a_trajectory_is_the_pipelines_own(model, encodings, images):
    conditionings = [e.embeddings for e in encodings if padded_length(len(e.embeddings)) == 32][:3]
    seeds = [5, 6, 7]
    velocities = model.trajectory(conditionings, seeds)
    end = model.states(model.noise(seeds), velocities, torch.full((3,), STEPS))
    expected = images.pipeline(
        prompt_embeds=conditionings,
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=0.0,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
    ).images
    torch.testing.assert_close(end, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_states_on_the_way_are_those_that_were_passed(model, encodings):
    made_from = [Conditioning(e.embeddings, seed) for seed, e in enumerate(encodings[:5])]
    paths = Trajectories(model, iter(made_from), 5)
    pairs, steps = torch.tensor([4, 0, 2]), torch.tensor([0, 3, 1])
    states, velocities = paths.at(pairs, steps)
    for place, (pair, step) in enumerate(zip(pairs.tolist(), steps.tolist(), strict=True)):
        rows = made_from[pair].text[None].float()
        found = model.velocities(
            states[place : place + 1],
            model.sigmas[[step]],
            rows,
            torch.ones(1, rows.shape[1], dtype=torch.bool),
        )
        torch.testing.assert_close(found[0], velocities[place], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(states[0], model.noise([4])[0])


@pytest.mark.parametrize("arch", ["linear", "mlp", "attention"])
def test_the_model_answers_more_alike_after_training(learn, arch):
    output, summary = learn(arch)
    assert summary["best_val_loss"] < 0.8 * summary["ridge_val_loss"]
    assert curve(output)[-1][2] == pytest.approx(summary["best_val_loss"]) or summary["best_epoch"] < 8


def test_flow_matching_lowers_the_error_towards_the_pictures(tmp_path, pictured):
    summary = train(options(tmp_path, response="flow", epochs=8, length=8), *pictured)
    assert summary["best_val_loss"] < 0.99 * summary["ridge_val_loss"]
    assert json.loads((tmp_path / "config.json").read_text())["options"]["response"] == "flow"


def test_flow_matching_without_pictures_is_refused(tmp_path, sources):
    with pytest.raises(UsageError, match=r"^response = flow.*without their pictures; use teacher"):
        train(options(tmp_path, response="flow"), *sources)


def test_a_stopped_run_goes_on_to_the_same_end(tmp_path, sources, trained):
    looks = iter([False, True])
    first = train(options(tmp_path / "cut"), *sources, should_stop=lambda: next(looks, False))
    assert first["stopped"] == "asked"
    train(options(tmp_path / "cut"), *sources)
    for name, tensor in weights(trained).items():
        torch.testing.assert_close(weights(tmp_path / "cut")[name], tensor)


def test_micro_batches_change_nothing(tmp_path, sources, trained):
    train(options(tmp_path, micro_batch=3), *sources)
    for one, other in zip(curve(trained), curve(tmp_path), strict=True):
        assert other == pytest.approx(one, rel=1e-3)


def train_in_a_world(job):
    rank, size, meeting, output = job
    torch.set_num_threads(1)
    ResponseTrainer.most_judged = FEW
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    train(options(output, epochs=2), *turned(encoded()))
    torch.distributed.destroy_process_group()


@pytest.mark.long
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_workers_judge_and_learn_what_one_does(tmp_path, monkeypatch, size):
    monkeypatch.setattr(ResponseTrainer, "most_judged", FEW)
    # Encoded here, in one thread as theirs: the last bits of captions move pictures that random models draw. And as
    # many pictures go through the model together, for the same reason.
    train(options(tmp_path / "one", epochs=2, micro_batch=8 // size), *turned(encoded()))
    jobs = [(rank, size, tmp_path / "meeting", tmp_path / "together") for rank in range(size)]
    with ProcessPoolExecutor(size, mp_context=get_context("spawn")) as workers:
        list(workers.map(train_in_a_world, jobs))
    np.testing.assert_allclose(curve(tmp_path / "together"), curve(tmp_path / "one"), rtol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_image_model_has_the_precision_asked_for(tmp_path, sources, monkeypatch, precision):
    seen, real = set(), FrozenTransformer.velocities
    monkeypatch.setattr(
        FrozenTransformer, "velocities", lambda self, *given: seen.add(self.dtype) or real(self, *given)
    )
    summary = train(options(tmp_path, epochs=1, precision=precision), *sources)
    assert (summary["precision"], seen) == (precision, {getattr(torch, precision)})


def test_what_gains_nothing_over_its_start_is_not_told_to_be_ridge(tmp_path, sources):
    summary = train(options(tmp_path, epochs=1, learning_rate=1e-12), *sources)
    assert summary["recommendation"].startswith("linear gains nothing over the ridge it started at")


def test_a_start_elsewhere_is_not_said_to_beat_ridge(tmp_path, sources):
    summary = train(options(tmp_path, start="mean", epochs=1), *sources)
    assert summary["ridge_val_loss"] is None
    assert "ridge, which was not fitted" in summary["recommendation"]


def test_velocity_error_is_what_training_lowers_and_ranks_it_before_doing_nothing(model, sources, learn):
    output, summary = learn("linear")
    projector, held_out = Projector.from_pretrained(str(output)), sources[1]
    methods = {"identity": Method(lambda vl: vl), "projector": Method(projector)}
    conditioned = conditioned_by(methods, {"projector": projector}, held_out)
    errors = velocity_errors(conditionings(conditioned, held_out, grafted=held_out), held_out, model)
    assert errors["graft"].value == errors["identity"].value  # where the graft read what the reader did
    assert errors["projector"].value == pytest.approx(summary["best_val_loss"], rel=1e-3)
    assert errors["projector"].value < errors["identity"].value


def test_pictures_are_sampled_in_micro_batches(sources, tmp_path, monkeypatch):
    sizes = []
    sample = FrozenTransformer.trajectory
    monkeypatch.setattr(
        FrozenTransformer,
        "trajectory",
        lambda self, rows, seeds: sizes.append(len(rows)) or sample(self, rows, seeds),
    )
    ResponseTrainer(options(tmp_path, micro_batch=5), World.join("cpu"), *sources, None)
    assert sizes == [5, 5, 5, 5, 4, 5, 3]
