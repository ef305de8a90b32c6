import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from projector.data.pairs import in_memory
from projector.network.projector import Projector
from projector.options import TrainOptions
from projector.training.loop import NonFiniteLossError, train
from shards.errors import UsageError
from training_support import TRAIN, VAL, WORLD, curve, weights

pytestmark = pytest.mark.usefixtures("one_thread")
ARCHITECTURES = ("linear", "mlp", "attention")


def options(output, **chosen):
    return TrainOptions(
        output=str(output),
        **({"objective": "embedding", "epochs": 3, "batch_size": 8, "length": 6, "patience": None} | chosen),
    )


@pytest.mark.parametrize("align", ["pool", "mean", "per_token", "soft"])
@pytest.mark.parametrize("arch", ["ridge", *ARCHITECTURES])
def test_learns_and_leaves_its_files(tmp_path, arch, align):
    records = []
    summary = train(options(tmp_path, arch=arch, align=align, epochs=12), TRAIN, VAL, on_epoch=records.append)
    assert summary["best_val_loss"] < 0.93, "the mean of the training targets scores about 1"
    assert summary["stopped"] == "finished"
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert [record["epoch"] for record in records] == ([1] if arch == "ridge" else list(range(1, 13)))
    assert curve(tmp_path) == [(r["epoch"], r["train_loss"] or 0.0, r["val_loss"]) for r in records]
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["arch"], config["width"], config["layer"], config["align"]) == (arch, 32, -8, align)
    assert config["parameters"] == summary["parameters"]
    assert config["dataset"]["fingerprint"]


def test_the_best_epochs_weights_are_kept(tmp_path):
    """A rate this high overfits soon: the weights on disk must be those of the best epoch, not the last."""
    chosen = {"arch": "mlp", "learning_rate": 0.03, "hidden": 256, "start": "mean"}
    summary = train(options(tmp_path / "long", epochs=30, **chosen), TRAIN, VAL)
    best = summary["best_epoch"]
    assert 1 < best < 30
    assert min(curve(tmp_path / "long"), key=lambda line: line[2])[0] == best
    val_losses = []

    def stop_after_best():
        return (
            len(curve(tmp_path / "cut")) >= best - 1
            if (tmp_path / "cut" / "metrics.jsonl").exists()
            else False
        )

    train(options(tmp_path / "cut", epochs=30, **chosen), TRAIN, VAL, should_stop=stop_after_best)
    val_losses = [line[2] for line in curve(tmp_path / "cut")]
    assert len(val_losses) == best
    cut = weights(tmp_path / "cut")
    for name, tensor in weights(tmp_path / "long").items():
        assert torch.equal(tensor, cut[name]) or name.startswith("restore"), name  # restored at the end only


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_stopped_run_goes_on_to_the_same_end(tmp_path, arch):
    train(options(tmp_path / "whole", arch=arch), TRAIN, VAL)
    asked = iter([False, True])
    first = train(options(tmp_path / "cut", arch=arch), TRAIN, VAL, should_stop=lambda: next(asked))
    assert (first["stopped"], first["epochs"]) == ("asked", 2)
    second = train(options(tmp_path / "cut", arch=arch), TRAIN, VAL)
    assert (second["stopped"], second["epochs"]) == ("finished", 3)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "cut")[name]), name


def test_a_run_stopped_inside_an_epoch_goes_on_at_the_same_step(tmp_path, monkeypatch):
    train(options(tmp_path / "whole"), TRAIN, VAL)
    monkeypatch.setattr("projector.training.worker.STEPS_BETWEEN_LOOKS", 2)
    asked = iter([False] * 5 + [True])  # the sixth look: 7 steps an epoch, so step 4 of the second
    ticks = []
    first = train(
        options(tmp_path / "cut"), TRAIN, VAL, should_stop=lambda: next(asked), on_progress=ticks.append
    )
    assert (first["epochs"], ticks[-1].epoch, ticks[-1].step, ticks[-1].steps) == (1, 2, 4, 7)
    assert ticks[-1].seconds_left > 0
    train(options(tmp_path / "cut"), TRAIN, VAL)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert all(map(torch.equal, weights(tmp_path / "whole").values(), weights(tmp_path / "cut").values()))


def test_long_epochs_save_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("projector.training.worker.STEPS_BETWEEN_LOOKS", 2)
    seen = []
    train(
        options(tmp_path, checkpoint_seconds=1e-9, epochs=1, start="mean"),
        TRAIN,
        VAL,
        on_progress=lambda tick: seen.append((tick.step, (tmp_path / "state.safetensors").exists())),
    )
    assert seen == [(2, False), (4, True), (6, True), (7, True)]


def test_a_finished_run_is_not_run_again(tmp_path):
    summary = train(options(tmp_path), TRAIN, VAL)
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    assert train(options(tmp_path), TRAIN, VAL, on_epoch=pytest.fail) == summary
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_with_other_settings_is_refused(tmp_path):
    train(options(tmp_path), TRAIN, VAL)
    with pytest.raises(UsageError, match=r"epochs 3 there, 4 now; choose another output"):
        train(options(tmp_path, epochs=4), TRAIN, VAL)
    with pytest.raises(UsageError, match="training pairs 50 there, 40 now"):
        train(options(tmp_path), replace(TRAIN, count=40), VAL)
    train(options(tmp_path, workers=2, micro_batch=3), TRAIN, VAL)  # these do not decide the result


def test_a_damaged_state_says_so(tmp_path):
    train(options(tmp_path), TRAIN, VAL)
    (tmp_path / "state.safetensors").write_bytes(b"not a state at all")
    with pytest.raises(UsageError, match=r"damaged .* delete it to train from the start"):
        train(options(tmp_path), TRAIN, VAL)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_micro_batches_change_nothing(tmp_path, arch):
    train(options(tmp_path / "whole", arch=arch), TRAIN, VAL)
    train(options(tmp_path / "parts", arch=arch, micro_batch=3), TRAIN, VAL)
    np.testing.assert_allclose(curve(tmp_path / "parts"), curve(tmp_path / "whole"), rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(tmp_path):
    with pytest.raises(
        NonFiniteLossError, match=r"in epoch 1, step \d+; .* synthetic-0000\d\d.* lower learning_rate"
    ):
        train(options(tmp_path, learning_rate=1e30, warmup_steps=0, start="mean"), TRAIN, VAL)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_pair_that_is_not_finite_is_named_before_it_poisons_the_statistics(tmp_path):
    pairs = list(TRAIN)
    pairs[17] = replace(pairs[17], vl=torch.full_like(pairs[17].vl, torch.nan))
    with pytest.raises(UsageError, match="pair synthetic-000017: NaN or infinite values on the VL side"):
        train(options(tmp_path), in_memory(pairs), VAL)


def test_bfloat16_learns_as_well(tmp_path):
    exact = train(options(tmp_path / "exact", epochs=8), TRAIN, VAL)
    rounded = train(options(tmp_path / "rounded", epochs=8, precision="bfloat16"), TRAIN, VAL)
    assert rounded["precision"] == "bfloat16"
    assert rounded["best_val_loss"] == pytest.approx(exact["best_val_loss"], rel=0.02)


def test_the_seed_decides_everything(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(options(tmp_path / name, arch="mlp", seed=seed), TRAIN, VAL)
    assert curve(tmp_path / "a") == curve(tmp_path / "b") != curve(tmp_path / "c")


@pytest.mark.parametrize("arch", ["ridge", "linear"])
def test_spread_can_be_restored_after_training(tmp_path, arch):
    """Trained without, the outputs shrink; at full strength no dimension is far from the real tokens' spread."""
    train(options(tmp_path, arch=arch, align="mean", epochs=10), TRAIN, VAL)
    projector = Projector.from_pretrained(str(tmp_path))
    assert projector.restore == 0
    text = torch.cat([pair.text.float() for pair in VAL])

    def ratios(strength):
        projector.restore = strength
        outputs = torch.cat([projector(pair.vl.float()) for pair in VAL])
        return outputs.std(0) / text.std(0), outputs.mean(0)

    assert ratios(0.0)[0].median() < 0.9
    full, mean = ratios(1.0)
    torch.testing.assert_close(full, torch.ones(32), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(mean, text.mean(0), rtol=1e-2, atol=0.05)
    half, _ = ratios(0.5)
    assert ratios(0.0)[0].median() < half.median() < 1


def test_the_strength_asked_for_is_kept(tmp_path):
    train(options(tmp_path, restore=0.5), TRAIN, VAL)
    projector = Projector.from_pretrained(str(tmp_path))
    assert projector.restore == 0.5
    with pytest.raises(UsageError, match=r"restore = 1.5 is outside \[0, 1\]"):
        projector.restore = 1.5


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORKER = """
import os, sys, torch
from torch import distributed
from projector.options import TrainOptions
from synthetic import Synthetic
from projector.training.loop import train
rank, size, meeting, output, arch, align, count, val = sys.argv[1:]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(size))
world = Synthetic(width=32, image_tokens=12, text_tokens=(3, 9), latent=4)
options = TrainOptions(
    output=output, arch=arch, objective="embedding", epochs=3, batch_size=8, length=6, align=align, patience=None
)
train(options, world.source(int(count)), world.source(int(val), first=1000))
distributed.barrier()
os._exit(0)  # gloo's threads sometimes abort the interpreter's own way out
"""


def train_together(tmp_path, size, arch, align, count, val):
    output = tmp_path / f"{arch}-{size}"
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                WORKER,
                str(rank),
                str(size),
                str(tmp_path / f"meet-{arch}-{size}"),
                str(output),
                arch,
                align,
                str(count),
                str(val),
            ],
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(BENCHMARKS)},
            text=True,
        )
        for rank in range(size)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "align", "count", "val"),
    [
        ("mlp", "pool", 50, 20),
        ("attention", "pool", 41, 3),
        ("linear", "soft", 50, 20),
        ("ridge", "soft", 50, 20),
    ],
)
def test_one_two_and_four_workers_train_alike(tmp_path, arch, align, count, val):
    """41 pairs in batches of 8 leave one for the last batch: three of four workers have nothing in it."""
    alone = train(
        options(tmp_path / "alone", arch=arch, align=align),
        WORLD.source(count),
        WORLD.source(val, first=1000),
    )
    for size in {"mlp": (2, 4), "attention": (4,)}.get(arch, (2,)):
        together = train_together(tmp_path, size, arch, align, count, val)
        np.testing.assert_allclose(curve(together), curve(tmp_path / "alone"), rtol=1e-4)
        for name, tensor in weights(tmp_path / "alone").items():
            torch.testing.assert_close(weights(together)[name], tensor, rtol=1e-3, atol=1e-4)
    assert alone["world_size"] == 1


def test_the_number_of_workers_may_change_on_the_way(tmp_path, monkeypatch):
    """One worker stops in the middle of the second epoch, two go on from its state."""
    monkeypatch.setattr("projector.training.worker.STEPS_BETWEEN_LOOKS", 2)
    looks = iter([False] * 5 + [True])  # four in an epoch of seven steps
    chosen = {"arch": "mlp", "align": "pool"}
    stopped = train(options(tmp_path / "mlp-2", **chosen), TRAIN, VAL, should_stop=lambda: next(looks))
    assert (stopped["stopped"], len(curve(tmp_path / "mlp-2"))) == ("asked", 1)
    train(options(tmp_path / "whole", **chosen), TRAIN, VAL)
    together = train_together(tmp_path, 2, "mlp", "pool", 50, 20)
    np.testing.assert_allclose(curve(together), curve(tmp_path / "whole"), rtol=1e-4)
    assert json.loads((together / "summary.json").read_text())["world_size"] == 2


def test_more_workers_than_a_batch_has_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr("projector.training.loop.World.join", lambda device: _CrowdedWorld())
    with pytest.raises(UsageError, match="9 workers cannot share batches of 8 pairs"):
        train(options(tmp_path), TRAIN, VAL)


class _CrowdedWorld:
    rank, size = 0, 9


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_training_starts_at_an_earlier_projector(tmp_path, arch):
    train(options(tmp_path / "first", arch=arch), TRAIN, VAL)
    before = weights(tmp_path / "first")
    again = options(
        tmp_path / "second", arch=arch, start=str(tmp_path / "first"), epochs=1, learning_rate=1e-12
    )
    summary = train(again, TRAIN, VAL)
    after = weights(tmp_path / "second")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-7)
    first = json.loads((tmp_path / "first" / "summary.json").read_text())
    assert summary["best_val_loss"] == pytest.approx(first["best_val_loss"], rel=1e-4)


def test_a_projector_of_another_kind_is_no_start(tmp_path):
    train(options(tmp_path / "first", arch="mlp"), TRAIN, VAL)
    with pytest.raises(UsageError, match="its arch is 'mlp', this training's is 'linear'"):
        train(options(tmp_path / "second", start=str(tmp_path / "first")), TRAIN, VAL)
    with pytest.raises(UsageError, match="nowhere"):
        train(options(tmp_path / "third", start=str(tmp_path / "nowhere")), TRAIN, VAL)
