import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import ContentProbe, Synthetic
from synthetic_files import guide_pool, tensors_of, write_guide_files, write_shards

from projector.data.dataset_pairs import load_pairs
from shards.dataset.dataset import Dataset
from shards.format.sample import KIND_CAPTION, KIND_IMAGE
from shards.stores.local import open_storage
from shards.tools.verify import verify

SMALL = Synthetic(width=24, image_tokens=12, text_tokens=(3, 9), latent=4)


def of_kind(world, name, count, kind=None):
    """Tokens of one side of many samples, of one kind or all."""
    made = [world.encodings(index)[name] for index in range(count)]
    return np.concatenate([rows if kind is None else rows[kinds == kind] for rows, kinds in made])


def test_the_published_spread_of_the_outlier_dimensions_is_the_sink():
    world = Synthetic.realistic(512, text_tokens=(8, 22), image_tokens=8)
    with_sink = of_kind(world, "text", 300).std(0)
    caption = of_kind(world, "text", 300, KIND_CAPTION).std(0)
    np.testing.assert_allclose(with_sink[[4, 396]], [2753, 949], rtol=0.05)
    np.testing.assert_allclose(caption[[4, 396]], [87, 1], rtol=0.1)
    assert np.median(caption) == pytest.approx(5.6, rel=0.1)


def test_image_tokens_spread_as_published():
    world = Synthetic.realistic(2560, text_tokens=(8, 22), image_tokens=32)
    text = of_kind(world, "text", 60, KIND_CAPTION).std(0)
    image = of_kind(world, "vl.none", 60, KIND_IMAGE).std(0)
    assert np.median(image) ** 2 / np.median(text) ** 2 == pytest.approx(0.65, abs=0.1)
    assert np.corrcoef(text, image)[0, 1] == pytest.approx(0.737, abs=0.06)
    assert 150 < ((image / text > 2) | (image / text < 0.5)).sum() < 300  # 224 were found on such pairs
    with_sink = of_kind(world, "text", 60).std(0) / image
    assert with_sink[396] == pytest.approx(617, rel=0.15)
    assert with_sink[4] == pytest.approx(42, rel=0.15)


def test_the_sink_is_the_same_vector_in_every_prompt_and_mode():
    first, second = SMALL.encodings(0), SMALL.encodings(7)
    for name in ("text", "vl.none", "vl.caption"):
        np.testing.assert_array_equal(first[name][0][:3], second[name][0][:3])
        assert first[name][0][0, 4] == 13504
    wide = Synthetic(400).encodings(0)["text"][0]
    assert wide[0, 396] == -4544
    assert not (first["text"][0][3] == second["text"][0][3]).any()


def test_captions_are_copied_into_the_vl_input():
    world = Synthetic.realistic(64)
    text = of_kind(world, "text", 40, KIND_CAPTION)
    copy = of_kind(world, "vl.caption", 40, KIND_CAPTION)
    correlation = [np.corrcoef(text[:, d], copy[:, d])[0, 1] for d in range(64)]
    assert np.mean(correlation) == pytest.approx(0.999, abs=3e-4)
    # The model is causal: image tokens come first and do not know whether a caption follows.
    np.testing.assert_array_equal(
        of_kind(world, "vl.none", 3, KIND_IMAGE), of_kind(world, "vl.caption", 3, KIND_IMAGE)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 50), st.integers(1, 5), st.integers(0, 3), st.sampled_from(["caption", "none"]))
def test_a_sample_does_not_depend_on_the_range_it_is_read_in(index, before, seed, mode):
    world = Synthetic(8, seed, image_tokens=5, text_tokens=(2, 4), latent=3)
    tokens = "all" if mode == "caption" else "image"
    alone = next(iter(world.source(1, first=index, text_mode=mode, tokens=tokens)))
    *_, last = world.source(before + 1, first=max(0, index - before), text_mode=mode, tokens=tokens).read(
        0, min(index, before) + 1
    )
    assert alone.key == last.key
    assert alone.vl.equal(last.vl)
    assert alone.text.equal(last.text)


def test_encodings_and_source_are_the_same_sample():
    pair = next(iter(SMALL.source(1, first=5, text_mode="caption", tokens="all", dtype=torch.float32)))
    made = SMALL.encodings(5)
    rows, kinds = made["vl.caption"]
    keep = np.isin(kinds, (KIND_IMAGE, KIND_CAPTION))
    np.testing.assert_array_equal(pair.vl.numpy(), rows[keep])
    np.testing.assert_array_equal(pair.text.numpy(), made["text"][0][made["text"][1] == KIND_CAPTION])


def test_shards_verify_clean_and_read_back_as_the_world(tmp_path):
    index_of = write_shards(str(tmp_path), SMALL, 30, val_fraction=0.3, samples_per_shard=8)
    findings = verify(str(tmp_path))
    assert (findings.problems, findings.samples, findings.complete) == ([], 30, True)
    assert sorted(index_of.values()) == list(range(30))
    for split in ("train", "val"):
        for pair in load_pairs(str(tmp_path), split, layer=-8, text_mode="caption", tokens="all"):
            own = next(iter(SMALL.source(1, first=index_of[pair.key], text_mode="caption", tokens="all")))
            assert pair.vl.equal(own.vl)
            assert pair.text.equal(own.text)


def test_captions_carry_the_index(tmp_path):
    index_of = write_shards(str(tmp_path), SMALL, 4, text_modes=("none",))
    assert Dataset.open(open_storage(str(tmp_path))).settings["text_modes"] == ["none"]
    assert sorted(index_of.values()) == [0, 1, 2, 3]


def test_pooled_tokens_keep_each_kinds_mean():
    whole, pooled = (tensors_of(SMALL, 0, vl_tokens=tokens) for tokens in ("all", "pooled:6"))
    assert (pooled["vl.none.kind"] == KIND_IMAGE).sum() == 6
    means = [
        made["vl.none.-8"][made["vl.none.kind"] == KIND_IMAGE].astype(np.float32).mean(0)
        for made in (whole, pooled)
    ]
    np.testing.assert_allclose(*means, atol=0.2)


def test_guide_files_follow_its_structure(tmp_path):
    write_guide_files(tmp_path, SMALL, {"train": [3, 4, 9], "val": [1]}, text_mode="none")
    vl, text = (torch.load(tmp_path / "train/embeddings" / side / "00002.pt") for side in ("vl", "text"))
    assert vl.shape == text.shape == (64, 24)
    rows = torch.from_numpy(SMALL.encodings(9)["text"][0])
    assert text[: len(rows)].equal(rows)  # sink and template included, then zeros
    assert not text[len(rows) :].any()
    lines = (tmp_path / "val/pairs.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["caption"] == "synthetic pair 000001"


def test_guide_pooling_is_torchs_interpolation():
    tokens = torch.arange(128.0)[:, None]
    assert guide_pool(tokens, 64)[:3, 0].tolist() == [0.5, 2.5, 4.5]
    assert guide_pool(tokens[:2], 4)[:, 0].tolist() == [0, 1, 0, 0]


def test_the_probe_reads_real_tokens_and_nothing_else():
    world = Synthetic.realistic(128, latent=6)
    train, held = world.source(200), world.source(60, first=200)
    probe = ContentProbe.fit(train, world.latents(range(200)))
    truth = world.latents(range(200, 260))

    def score(tokens_of):
        return probe.score(np.array([probe.read(tokens_of(pair)) for pair in held]), truth)

    assert score(lambda pair: pair.text) > 0.8
    assert score(lambda pair: torch.zeros(3, 128)) == 0
    assert abs(score(lambda pair: torch.randn(20, 128))) < 0.25
    assert 0.2 < score(lambda pair: pair.vl) < score(lambda pair: pair.text)  # kin, but not the same


def test_latents_are_those_of_the_sample():
    both = SMALL.latents([4, 2])
    assert both.shape == (2, 8)
    np.testing.assert_array_equal(both[1], SMALL.latents([2])[0])


def test_what_image_tokens_show_is_what_the_sample_is_about():
    """An image without noise is a linear image of what it shows, token by token."""
    clear = Synthetic(64, image_tokens=20, latent=4, image_signal=1.0)
    rows = np.concatenate([clear.encodings(index, ("none",))["vl.none"][0][4:24] for index in range(20)])
    shown = np.concatenate([clear.shown(index) for index in range(20)])
    solved = np.linalg.lstsq(np.c_[shown, np.ones(len(shown))], rows, rcond=None)[0]
    np.testing.assert_allclose(np.c_[shown, np.ones(len(shown))] @ solved, rows, atol=1e-3)
