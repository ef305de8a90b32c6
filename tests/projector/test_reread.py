"""Pictures that already exist, read again: nothing but the hidden states is new."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from projector.inference.copies import as_array
from projector.inference.vision_encoder import VisionLanguageEncoder
from projector.making.generated import PairSettings
from projector.making.reread import RereadMaker, RereadSettings
from projector.making.shard_maker import FusedMaker, InOneStage
from projector.models.int8 import Int8Linear
from projector.models.resolve import resolve_vision
from ray_jobs.cli.run_options import ExtractOptions
from ray_jobs.jobs.extract import reread_settings
from shards.dataset.dataset import Dataset
from shards.dataset.publish import Circumstances, publish
from shards.dataset.read import read_plan, read_samples
from shards.errors import CorruptShardError, UsageError
from shards.format.plan import Plan, make_plan
from shards.format.sample import Expected, Failure, Sample, open_image
from shards.format.shard_writer import ShardWriter
from shards.prompts.prompt import Prompt
from shards.stores.local import open_storage
from shards.tools.verify import verify

BUILT = PairSettings(
    height=64,
    width=64,
    steps=2,
    guidance=0.0,
    layers=(-8,),
    text_modes=("caption", "none"),
    vl_tokens="all",
    max_tokens=60,
    dtype="float32",
    batch_size=2,
)
AGAIN = RereadSettings(
    layers=(-8, -6), text_modes=("caption", "none"), vl_tokens="all", dtype="float32", batch_size=2
)
CAPTIONS = ["a red fox", "the passing of time", "two\nlines", "far too long " * 30, "emoji 🦊", "a blue door"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def commit_results(dataset, planned, maker, folder, expected):
    folder.mkdir(parents=True)
    with ShardWriter(planned, folder, dataset.fingerprint, expected) as writer:
        for step in maker.steps(planned.samples, (), {}):
            for result in step.run():
                writer.fail(result) if isinstance(result, Failure) else writer.add(result)
        built = writer.close()
    publish(dataset, built, Circumstances("test", 1.0, 1.0, "CPU"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in a builder; given back, since the tiny models' bytes depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def source(one_thread, tiny_sources, tmp_path_factory):
    """A real dataset of one shard, whose fourth sample failed."""
    folder = tmp_path_factory.mktemp("source")
    settings = {"layers": [-8], "text_modes": ["caption", "none"], "width": 64, "height": 64}
    dataset = Dataset.create_or_open(open_storage(str(folder / "data")), settings, {})
    plan = make_plan(
        [Prompt(caption, content="c", style="s", subject="o") for caption in CAPTIONS],
        seed=3,
        val_fraction=0,
        samples_per_shard=50,
        segments=(len(CAPTIONS),),
    )
    dataset.grow(len(plan), append=False)
    expected = Expected(("caption", "none"), (-8,), 64, 64)
    commit_results(
        dataset, plan.shards[0], FusedMaker.load(tiny_sources, BUILT), folder / "spool" / "shard", expected
    )
    return dataset, plan


@pytest.fixture(scope="module")
def maker(source, tiny_sources):
    return RereadMaker(source[0].storage.root, tiny_sources.vl, None, AGAIN)


def originals(source):
    return list(read_samples(source[0]))


def make_all(maker, planned):
    return [result for step in InOneStage(maker).steps(planned, (), {}) for result in step.run()]


def same_bits(a, b):
    return a.shape == b.shape and np.array_equal(a.view(np.uint8), b.view(np.uint8))


def test_the_plan_is_what_the_source_holds(source):
    dataset, built_from = source
    (shard,) = built_from.shards
    expected = Plan((replace(shard, samples=tuple(s for s in shard.samples if s.position != 3)),))
    assert read_plan(dataset) == expected


def test_all_but_the_hidden_states_is_taken_over_bit_for_bit(source, maker):
    (planned,) = read_plan(source[0]).shards
    again = make_all(maker, planned.samples)
    for before, after in zip(originals(source), again, strict=True):
        assert isinstance(after, Sample)
        assert (before.key, before.caption) == (after.key, after.caption)
        assert (before.image, before.image_format) == (after.image, after.image_format)
        for name in ("text", "text.kind"):
            assert same_bits(before.tensors[name], after.tensors[name])
        kept = ("id", "seed", "categories", "plan_index", "width", "height", "image_span")
        assert {name: before.metadata[name] for name in kept} == {name: after.metadata[name] for name in kept}
        assert after.metadata["layers"] == [-8, -6]


def test_the_same_layer_gives_what_the_build_stored(source, maker):
    (planned,) = read_plan(source[0]).shards
    for before, after in zip(originals(source), make_all(maker, planned.samples), strict=True):
        for mode in ("caption", "none"):
            assert same_bits(before.tensors[f"vl.{mode}.kind"], after.tensors[f"vl.{mode}.kind"])
            stored = before.tensors[f"vl.{mode}.-8"].astype(np.float32)
            found = after.tensors[f"vl.{mode}.-8"].astype(np.float32)
            # A failed sample shifts the batches, and other batch mates may round a sum differently.
            assert np.linalg.norm(found - stored) < 1e-2 * np.linalg.norm(stored)


def test_a_new_layer_is_that_of_the_encoder_run_by_hand(source, maker, tiny_sources):
    encoder = VisionLanguageEncoder.from_pretrained(
        tiny_sources.vl.path,
        device="cpu",
        dtype=torch.float32,
        layers=AGAIN.layers,
        text_modes=AGAIN.text_modes,
    )
    (planned,) = read_plan(source[0]).shards
    before = originals(source)[:2]
    images = [open_image(sample.image).convert("RGB") for sample in before]
    direct = encoder.encode(images, [sample.caption for sample in before])
    for states, after in zip(direct, maker.make(planned.samples[:2]), strict=True):
        assert same_bits(as_array(states.states["none"][-6]), after.tensors["vl.none.-6"])


def test_the_graft_reads_with_the_pipelines_text_encoder(source, tiny_sources):
    by_hand = VisionLanguageEncoder.from_pretrained(
        tiny_sources.vl.path,
        device="cpu",
        dtype=torch.float32,
        layers=AGAIN.layers,
        text_modes=AGAIN.text_modes,
        language=tiny_sources.image.path,
    )
    (planned,) = read_plan(source[0]).shards
    before = originals(source)[:2]
    images = [open_image(sample.image).convert("RGB") for sample in before]
    direct = by_hand.encode(images, [sample.caption for sample in before])
    both = replace(AGAIN, readers=("vl", "graft"))
    maker = RereadMaker(source[0].storage.root, tiny_sources.vl, tiny_sources.image, both)
    for states, after in zip(direct, maker.make(planned.samples[:2]), strict=True):
        assert same_bits(as_array(states.states["caption"][-6]), after.tensors["graft.caption.-6"])
        assert not same_bits(after.tensors["vl.caption.-6"], after.tensors["graft.caption.-6"])


def test_a_graft_without_a_pipeline_is_refused(source, tiny_sources):
    with pytest.raises(UsageError, match="no pipeline is given"):
        RereadMaker(source[0].storage.root, tiny_sources.vl, None, replace(AGAIN, readers=("graft",)))


def test_a_shard_with_a_gap_is_sound_and_has_the_sources_keys(source, maker, tmp_path):
    settings = {"layers": [-8, -6], "text_modes": ["caption", "none"], "width": 64, "height": 64}
    dataset = Dataset.create_or_open(open_storage(str(tmp_path / "new")), settings, {})
    plan = read_plan(source[0])
    dataset.grow(len(plan), append=True)
    expected = Expected(("caption", "none"), (-8, -6), 64, 64)
    commit_results(dataset, plan.shards[0], InOneStage(maker), tmp_path / "spool" / "shard", expected)
    findings = verify(dataset.storage.root)
    assert (findings.problems, findings.samples, findings.complete) == ([], 5, True)
    keys = [sample.key for sample in read_samples(dataset, image=False, tensors=())]
    assert keys == [f"train-000000-{position:04d}" for position in (0, 1, 2, 4, 5)]
    assert read_plan(dataset) == plan


def test_batches_may_be_taken_apart_and_asked_for_again(source, maker):
    (planned,) = read_plan(source[0]).shards
    samples = planned.samples
    for asked in ([samples[4]], samples[1:3], [samples[2]], [samples[0], samples[4]], samples):
        assert [result.key for result in maker.make(asked)] == [sample.key for sample in asked]


def test_only_one_batch_of_a_shard_is_in_memory(source, tiny_sources):
    maker = RereadMaker(source[0].storage.root, tiny_sources.vl, None, AGAIN)
    (planned,) = read_plan(source[0]).shards
    for step in InOneStage(maker).steps(planned.samples, (), {}):
        step.run()
        assert len(maker._held) <= maker.batch_size


def test_out_of_memory_and_a_broken_sample_stay_what_they_are(source, tiny_sources, monkeypatch):
    maker = RereadMaker(source[0].storage.root, tiny_sources.vl, None, replace(AGAIN, batch_size=4))
    (planned,) = read_plan(source[0]).shards
    original = maker._visions["vl"].encode

    def encode(images, captions):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if captions == ["two\nlines"]:
            raise RuntimeError("broken in the middle")
        return original(images, captions)

    monkeypatch.setattr(maker._visions["vl"], "encode", encode)
    results = make_all(maker, planned.samples)
    assert [type(result) for result in results] == [Sample, Sample, Failure, Sample, Sample]
    assert (results[2].stage, results[2].message) == ("vl", "broken in the middle")
    assert maker.batch_size == 1


def test_a_source_that_is_not_what_it_says_is_nobodys_failed_sample(source, tiny_sources):
    maker = RereadMaker(source[0].storage.root, tiny_sources.vl, None, AGAIN)
    first, second = read_plan(source[0]).shards[0].samples[:2]
    with pytest.raises(CorruptShardError, match="is not the one that its parquet names"):
        maker.make([first, replace(second, caption="another")])
    with pytest.raises(CorruptShardError, match="lacks train-000000-0003"):
        maker.make([first, replace(second, position=3)])


def test_pooled_tokens(source, tiny_sources):
    maker = RereadMaker(source[0].storage.root, tiny_sources.vl, None, replace(AGAIN, vl_tokens="pooled:2"))
    sample = maker.make(read_plan(source[0]).shards[0].samples[:1])[0]
    assert (sample.tensors["vl.none.kind"] == 1).sum() == 2


def test_a_vision_model_is_found_without_any_pipeline(tiny, tiny_sources, tmp_path):
    alone = tmp_path / "vl"
    alone.symlink_to(tiny / "vl", target_is_directory=True)
    found = resolve_vision(str(alone), "vl")
    assert (found.model.files, found.hidden_size, found.layers) == (tiny_sources.vl.files, 64, 12)
    found.check_layers([-12, -1])
    with pytest.raises(UsageError, match=r"layers = \[-13\]: vl has 12 blocks, allowed are -12 to -1"):
        found.check_layers([-13])
    with pytest.raises(UsageError, match=r"vl = .*no such folder"):
        resolve_vision(str(tmp_path / "none"), "vl")
    with pytest.raises(UsageError, match=r"vl = .*config\.json"):
        resolve_vision(str(tiny / "image"), "vl")


def test_reading_again_knows_neither_pipeline_nor_text_encoder(source, tiny_sources, monkeypatch):
    import transformers

    monkeypatch.setitem(sys.modules, "diffusers", None)  # importing it fails
    monkeypatch.setattr(
        transformers.Qwen3ForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded")
    )
    maker = RereadMaker(source[0].storage.root, tiny_sources.vl, None, AGAIN)
    assert isinstance(maker.make(read_plan(source[0]).shards[0].samples[:1])[0], Sample)


def test_a_side_file_of_another_tar_is_not_believed(make_dataset):
    dataset, _ = make_dataset()
    first, second, *_ = dataset.commits()
    dataset.storage.put_bytes(first.parquet, dataset.storage.get_bytes(second.parquet))
    with pytest.raises(CorruptShardError, match=f"{first.parquet} is corrupt: it has another SHA-256"):
        read_plan(dataset)
    dataset.storage.delete(first.parquet)
    with pytest.raises(CorruptShardError, match=f"{first.parquet} is missing"):
        read_plan(dataset)


def test_a_dataset_is_the_plan_it_was_made_from(make_dataset):
    dataset, plan = make_dataset()
    assert read_plan(dataset) == plan


def test_weights_are_rounded_as_those_that_made_the_source(source, tiny_sources):
    settings = replace(AGAIN, quantize="int8")
    maker = RereadMaker(source[0].storage.root, tiny_sources.vl, None, settings)
    assert any(isinstance(module, Int8Linear) for module in maker._visions["vl"].model.modules())
    made_so = SimpleNamespace(settings={"quantize": "int8"})
    assert reread_settings(ExtractOptions(), made_so, on_gpu=False).quantize == "int8"
    assert reread_settings(ExtractOptions(), source[0], on_gpu=False).quantize == "none"
