"""Training through the frozen image model, on the tiny one."""

import functools
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from projector import Projector
from projector.data.pairs import Conditioning, Pair, PairPicture, in_memory
from projector.data.template import WholeSample, find_template
from projector.evaluation.baselines import Method
from projector.evaluation.velocity_error import conditioned_by, conditionings, velocity_errors
from projector.models.frozen_transformer import FrozenTransformer, padded_length
from projector.models.image_generator import ImageGenerator
from projector.models.resolve import resolve_models
from projector.models.text_encoder import TextEncoder
from projector.options import TrainOptions
from projector.training import compose, trajectories
from projector.training.compose import EditedPairs, draw_edit
from projector.training.loop import train
from projector.training.passes import WITH_GRADIENTS, forward_passes, picture_bytes, pictures_that_fit
from projector.training.response import ResponseTrainer, frozen_model, image_model
from projector.training.trajectories import Trajectories
from projector.training.world import World
from shards.errors import UsageError
from shards.format.sample import KIND_CAPTION, KIND_IMAGE
from shards.scenes.captions import varied
from shards.scenes.scene import sample_scene
from training_support import curve, weights

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SIDE, STEPS, TRAIN, VAL = 64, 4, 24, 8
FEW = 5  # held-out pairs that are judged, an odd number for two workers
WORDS = (
    "a red cat",
    "two dogs in the rain",
    "an old house beside a lake",
    "snow",
    "a paper lantern at night",
)


@pytest.fixture(scope="module")
def model():
    return FrozenTransformer.from_pretrained(
        resolve_models("tiny").image.path, device=CPU, height=SIDE, width=SIDE, steps=STEPS
    )


@pytest.fixture(scope="module")
def encodings():
    return encoded()


def encoded():
    encoder = TextEncoder.from_pretrained(
        resolve_models("tiny").image.path, device="cpu", dtype=torch.float32
    )
    captions = [f"{WORDS[n % 5]} and {WORDS[(3 * n + 1) % 5]}, number {n}" for n in range(TRAIN + VAL)]
    return encoder.encode(captions)


@pytest.fixture(scope="module")
def sources(encodings):
    return turned(encodings)


def turned(encodings):
    """Pairs whose VL side is the caption's rows turned by a fixed rotation: a linear map can undo it."""
    generator = torch.Generator().manual_seed(0)
    width = encodings[0].embeddings.shape[1]
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    template = find_template(
        WholeSample(e.embeddings, e.kind, e.embeddings, torch.full_like(e.kind, KIND_IMAGE))
        for e in encodings
    )

    def source(part):
        chosen = encodings[part]
        pairs = [
            Pair(
                f"pair-{part.start}-{n}",
                e.embeddings[e.kind == KIND_CAPTION] @ turn,
                torch.full((int((e.kind == KIND_CAPTION).sum()),), KIND_IMAGE, dtype=torch.uint8),
                e.embeddings[e.kind == KIND_CAPTION],
            )
            for n, e in enumerate(chosen)
        ]
        made_from = [Conditioning(e.embeddings, part.start + n) for n, e in enumerate(chosen)]
        return replace(
            in_memory(pairs),
            template=template,
            conditionings=lambda start, stop: iter(made_from[start:stop]),
            provenance={
                "models": {"image": {"id": "tiny/image"}},
                "picture": {"height": SIDE, "width": SIDE},
                "steps": STEPS,
            },
        )

    return source(slice(0, TRAIN)), source(slice(TRAIN, TRAIN + VAL))


def options(output, **changes):
    given = {"objective": "response", "epochs": 3, "batch_size": 8, "output": str(output), "log": []}
    return TrainOptions(**given | changes)


@pytest.fixture(scope="module")
def trained(sources, tmp_path_factory):
    """A run to read and to compare with, of few epochs."""
    output = tmp_path_factory.mktemp("trained")
    train(options(output), *sources)
    return output


@pytest.fixture(scope="module")
def learn(sources, tmp_path_factory):
    """A run long enough to learn something: `learn(arch)` gives its folder and summary, of one run of each kind."""

    @functools.cache
    def learnt(arch):
        output = tmp_path_factory.mktemp(arch)
        return output, train(options(output, arch=arch, epochs=8, length=8), *sources)

    return learnt


def test_a_trajectory_is_the_pipelines_own(model, encodings):
    conditionings = [e.embeddings for e in encodings if padded_length(len(e.embeddings)) == 32][:3]
    seeds = [5, 6, 7]
    velocities = model.trajectory(conditionings, seeds)
    end = model.states(model.noise(seeds), velocities, torch.full((3,), STEPS))
    images = ImageGenerator.from_pretrained(
        resolve_models("tiny").image.path,
        device="cpu",
        dtype=torch.float32,
        height=SIDE,
        width=SIDE,
        steps=STEPS,
    )
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


@pytest.fixture(scope="module")
def pictured(sources, encodings):
    """The same pairs with the latents that their pictures are decoded from."""
    images = ImageGenerator.from_pretrained(
        resolve_models("tiny").image.path,
        device="cpu",
        dtype=torch.float32,
        height=SIDE,
        width=SIDE,
        steps=STEPS,
    )

    def shown(source, part):
        _, latents = images.generate_with_latents(
            [e.embeddings for e in encodings[part]], list(range(len(source)))
        )
        pictures = [PairPicture(b"", latent.bfloat16(), seed) for seed, latent in enumerate(latents)]
        return replace(source, pictures=lambda start, stop: iter(pictures[start:stop]))

    return shown(sources[0], slice(0, TRAIN)), shown(sources[1], slice(TRAIN, TRAIN + VAL))


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
def test_two_workers_judge_and_learn_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(ResponseTrainer, "most_judged", FEW)
    # Encoded here, in one thread as theirs: the last bits of captions move pictures that random models draw.
    train(options(tmp_path / "1", epochs=2), *turned(encoded()))
    jobs = [(rank, 2, tmp_path / "meeting", tmp_path / "2") for rank in range(2)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers:
        list(workers.map(train_in_a_world, jobs))
    np.testing.assert_allclose(curve(tmp_path / "2"), curve(tmp_path / "1"), rtol=1e-4)


def test_a_whole_conditioning_is_prefix_rows_and_end(trained, sources, encodings):
    projector = Projector.from_pretrained(str(trained))
    pair = next(iter(sources[1]))
    whole = projector.conditioning(pair.vl)
    template = sources[0].template
    assert len(whole) == len(template.prefix) + len(pair.vl) + len(template.suffix)
    torch.testing.assert_close(whole[: len(template.prefix)], template.prefix)
    wanted = encodings[TRAIN].embeddings[encodings[TRAIN].kind == KIND_CAPTION]
    sizes = [
        rows.square().mean(-1).sqrt().mean()
        for rows in (whole[len(template.prefix) : -len(template.suffix)], wanted)
    ]
    assert sizes[0] == pytest.approx(float(sizes[1]), rel=0.3)
    # What is blended weighs like text, whichever way it is asked for.
    torch.testing.assert_close(projector(pair.vl), whole[len(template.prefix) : -len(template.suffix)])


def test_rows_of_shorter_inputs_do_not_feel_the_padding(trained, sources):
    network = Projector.from_pretrained(str(trained)).network
    vl = [pair.vl.float() for pair in list(sources[1])[:2]]
    padded = torch.nn.utils.rnn.pad_sequence(vl, batch_first=True, padding_value=9.0)
    mask = torch.arange(padded.shape[1]) < torch.tensor([[len(vl[0])], [len(vl[1])]])
    rows, exists = network.conditioning(padded, mask)
    for place, alone in enumerate(vl):
        expected, _ = network.conditioning(alone[None])
        torch.testing.assert_close(rows[place][exists[place]], expected[0], rtol=1e-5, atol=1e-4)


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


def test_a_start_elsewhere_is_not_said_to_beat_ridge(tmp_path, sources):
    summary = train(options(tmp_path, start="mean", epochs=1), *sources)
    assert summary["ridge_val_loss"] is None
    assert "ridge, which was not fitted" in summary["recommendation"]


def test_a_prompt_and_a_picture_in_both_modes(trained, sources, encodings):
    projector = Projector.from_pretrained(str(trained))
    vl, prompt = next(iter(sources[1])).vl, encodings[0]
    own = prompt.kind == KIND_CAPTION
    joined = projector.conditioning(vl, prompt.embeddings, prompt.kind)
    assert len(joined) == len(prompt.embeddings) + len(vl)
    last = int(torch.nonzero(own)[-1]) + 1
    torch.testing.assert_close(joined[:last], prompt.embeddings[:last])
    torch.testing.assert_close(joined[last + len(vl) :], prompt.embeddings[last:])
    mixed = projector.conditioning(vl, prompt.embeddings, prompt.kind, mode="blend", alpha=0.5)
    torch.testing.assert_close(mixed[~own], prompt.embeddings[~own])
    assert not torch.allclose(mixed[own], prompt.embeddings[own])
    torch.testing.assert_close(projector.conditioning(vl, prompt.embeddings), joined)  # found without kinds
    for wrong, said in (({"mode": "mix"}, "mode = 'mix'"), ({"mode": "blend", "alpha": 2.0}, "alpha = 2.0")):
        with pytest.raises(UsageError, match=said):
            projector.conditioning(vl, prompt.embeddings, **wrong)
    with pytest.raises(UsageError, match="are a batch"):
        projector.conditioning(torch.stack([vl, vl]))
    for wrong in ((torch.full_like(vl, torch.nan),), (vl, torch.full_like(prompt.embeddings, torch.inf))):
        with pytest.raises(UsageError, match="NaN or infinite"):
            projector.conditioning(*wrong)
    with pytest.raises(UsageError, match="kind of shape"):
        projector.conditioning(vl, prompt.embeddings, prompt.kind[:-1])
    projector.config["template"]["vl_limit"] = 0.0
    with pytest.raises(UsageError, match=f"all {len(vl)} tokens"):
        projector.conditioning(vl)


@pytest.fixture(scope="module")
def scene_sources(sources):
    """The same pairs with captions of scenes: what they are made from is encoded from those."""
    generator = np.random.default_rng(1)
    path = resolve_models("tiny").image.path
    encoder = TextEncoder.from_pretrained(path, device="cpu", dtype=torch.float32)

    def told(source):
        captions = [varied(sample_scene(generator), generator) for _ in range(len(source))]
        made_from = [
            Conditioning(encoding.embeddings, 100 + number, caption)
            for number, (encoding, caption) in enumerate(zip(encoder.encode(captions), captions, strict=True))
        ]
        return replace(source, conditionings=lambda start, stop: iter(made_from[start:stop]))

    return told(sources[0]), told(sources[1])


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


def test_captions_that_cannot_be_edited_are_learnt_alone(sources, trained, tmp_path):
    assert TrainOptions().compose > 0
    train(options(tmp_path, compose=0.0), *sources)
    assert curve(tmp_path) == curve(trained)


def test_velocity_error_is_what_training_lowers_and_ranks_it_before_doing_nothing(model, sources, learn):
    output, summary = learn("linear")
    projector, held_out = Projector.from_pretrained(str(output)), sources[1]
    methods = {"identity": Method(lambda vl: vl), "projector": Method(projector)}
    conditioned = conditioned_by(methods, {"projector": projector}, held_out)
    errors = velocity_errors(conditionings(conditioned, held_out, grafted=held_out), held_out, model)
    assert errors["graft"].value == errors["identity"].value  # where the graft read what the reader did
    assert errors["projector"].value == pytest.approx(summary["best_val_loss"], rel=1e-3)
    assert errors["projector"].value < errors["identity"].value


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
