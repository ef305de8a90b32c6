"""What only trained models can show: a picture steers a picture. On the miniature world, with its own models."""

import numpy as np
import pytest
import torch
from PIL import Image
from steering import Judge, World, alone, source_of, template_of, trained, unprojected

from projector.comparison.scores import SiglipScorer, resolve_scorer
from projector.inference.vision_encoder import VisionLanguageEncoder
from projector.models.resolve import own_folder
from projector.network.projector import Projector
from shards.format.sample import KIND_IMAGE
from shards.scenes.captions import varied
from shards.scenes.draw import draw_scene
from shards.scenes.scene import sample_scene

pytestmark = pytest.mark.long  # a minute of one core

PAIRS, REFERENCES = 112, 24
CHANCE = 0.35  # what an unrelated picture has of a reference's attributes, and some more


@pytest.fixture(scope="module")
def world():
    torch.set_num_threads(1)
    return World(own_folder("mini"), objects=1)


@pytest.fixture(scope="module")
def judged(world, tmp_path_factory):
    """A projector trained through the image model, a judge of it, and the template of its pairs."""
    made = {
        split: world.make(count, split, seed) for split, count, seed in (("train", PAIRS, 1), ("val", 32, 2))
    }
    template = template_of(made["train"])
    folder = own_folder("mini")
    sources = tuple(source_of(made[split], template, folder / "image") for split in ("train", "val"))
    options = {"arch": "linear", "length": 16, "objective": "response", "compose": 0.0, "epochs": 8}
    projector = trained(options, sources, folder, seed=0)
    judge = Judge(world, world.make(REFERENCES, "test", 3), tmp_path_factory.mktemp("sheets"))
    return projector, judge, template


def test_a_caption_draws_what_it_says(judged):
    _, judge, _ = judged
    assert np.mean(judge.alone(lambda item: (item.text.embeddings, None))) > 0.95


def test_a_projector_redraws_its_reference_and_identity_does_not(judged):
    projector, judge, template = judged
    drawn = np.mean(judge.alone(alone(projector, template)))
    unchanged = np.mean(judge.alone(unprojected(template, "vl")))
    assert unchanged < CHANCE + 0.1
    assert drawn > unchanged + 0.1


def test_a_damaged_projector_is_noticed(judged):
    projector, judge, template = judged
    whole = judge.alone(alone(projector, template))
    state = projector.network.state_dict()
    damaged = Projector(projector.network, projector.config)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    generator = torch.Generator().manual_seed(0)
    try:
        for name, tensor in state.items():
            if name.startswith(("core", "whole")) and tensor.dim() >= 2:
                tensor.copy_(tensor[torch.randperm(len(tensor), generator=generator)])
        broken = judge.alone(alone(damaged, template))
    finally:
        projector.network.load_state_dict(kept)
    assert np.mean(broken) < np.mean(whole) - 0.08


def test_the_caption_beside_it_changes_nothing_in_what_is_seen_of_a_picture(world):
    reader = VisionLanguageEncoder.from_pretrained(
        str(own_folder("mini") / "vl"), device="cpu", dtype=torch.float32, layers=[-2], text_modes=["caption"]
    )
    (made,) = world.make(1, "test", 5)
    picture = world.draw([(made.text.embeddings, None)], [made.seed])[0]
    seen = [reader.encode([picture], [caption])[0] for caption in ("a red circle", "a large blue star")]
    states = [each.states["caption"][-2][each.kind["caption"] == KIND_IMAGE] for each in seen]
    torch.testing.assert_close(states[0], states[1])
    assert not torch.equal(seen[0].states["caption"][-2][-1], seen[1].states["caption"][-2][-1])


def test_similarity_tells_a_scenes_own_caption_from_others():
    scorer = SiglipScorer.from_pretrained(resolve_scorer("mini").path, device="cpu")
    generator = np.random.default_rng(11)
    scenes = [sample_scene(generator, 1, "test") for _ in range(32)]
    pictures = scorer.embed_pictures([Image.fromarray(draw_scene(scene)) for scene in scenes])
    words = torch.stack([scorer.embed_text(varied(scene, generator)) for scene in scenes])
    similarity = pictures @ words.T
    assert (similarity.argmax(1) == torch.arange(32)).float().mean() > 0.6  # by chance 0.03
