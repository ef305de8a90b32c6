"""The choices of a training: recipes, starts, losses, averages, early ends, loaders and mixtures of datasets."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import Synthetic
from torch import nn
from torch.nn import functional as F

from projector.data.align import guide_pool
from projector.data.pairs import in_memory, joined
from projector.network.projector import Projector
from projector.options import TrainOptions
from projector.training.loop import train
from projector.training.schedule import epoch_order, learning_rate
from shards.errors import UsageError
from training_support import TRAIN, VAL, WORLD, curve, weights

pytestmark = pytest.mark.usefixtures("one_thread")
NETWORKS = ("linear", "mlp", "attention")


def options(output, **chosen):
    return TrainOptions(
        output=str(output), **({"objective": "embedding", "epochs": 3, "batch_size": 8, "length": 6} | chosen)
    )


@pytest.mark.parametrize("arch", NETWORKS)
@pytest.mark.parametrize("align", ["soft", "pool", "mean"])
def test_nothing_that_is_kept_is_worse_than_ridge(tmp_path, arch, align):
    summary = train(options(tmp_path, arch=arch, align=align, learning_rate=0.3), TRAIN, VAL)
    ridge = train(options(tmp_path / "ridge", arch="ridge", align=align), TRAIN, VAL)
    if arch != "attention":  # which is given all tokens, where the others take evenly spaced ones
        assert summary["ridge_val_loss"] == pytest.approx(ridge["best_val_loss"], rel=1e-3)
    if (
        arch != "attention" or align != "pool"
    ):  # whose base is spread over its queries before the targets' positions
        assert summary["best_val_loss"] <= summary["ridge_val_loss"] * 1.0001
    assert ("ridge is recommended" in summary["recommendation"]) == (
        summary["best_val_loss"] >= 0.995 * summary["ridge_val_loss"]
    )


def test_a_start_that_nothing_beats_is_kept(tmp_path):
    summary = train(options(tmp_path, learning_rate=3.0, warmup_steps=0), TRAIN, VAL)
    assert summary["best_epoch"] == 0
    train(options(tmp_path / "ridge", arch="ridge"), TRAIN, VAL)
    ridge, kept = weights(tmp_path / "ridge"), weights(tmp_path)
    torch.testing.assert_close(kept["core.weight"], ridge["core.weight"])


def test_training_ends_early_and_stays_ended(tmp_path):
    chosen = {"epochs": 40, "patience": 2, "learning_rate": 3.0, "warmup_steps": 0}
    summary = train(options(tmp_path, **chosen), TRAIN, VAL)
    assert (summary["epochs"], summary["stopped"]) == (2, "finished")
    assert train(options(tmp_path, **chosen), TRAIN, VAL, on_epoch=pytest.fail) == summary


@pytest.mark.parametrize("arch", NETWORKS)
def test_the_average_of_the_weights_is_what_is_kept(tmp_path, arch):
    """Against an average made by hand from the weights after each step."""
    decay, chosen = 0.5, {"arch": arch, "start": "mean", "batch_size": 50, "patience": None}
    steps = []
    for epochs in (1, 2):  # one step an epoch: the weights after each step are those after each epoch
        cut = replace_epochs(tmp_path / f"plain{epochs}", epochs, chosen)
        steps.append(weights(cut))
    averaged = options(tmp_path / "ema", epochs=4, ema=decay, **chosen)
    asked = iter([False, True])
    train(averaged, TRAIN, VAL, should_stop=lambda: next(asked))
    kept = weights(tmp_path / "ema")
    start = weights(replace_epochs(tmp_path / "start", 1, chosen | {"learning_rate": 1e-30}))
    name = [name for name in kept if name.endswith("weight")][-1]
    expected = start[name]
    for step in steps:
        expected = decay * expected + (1 - decay) * step[name]
    torch.testing.assert_close(kept[name], expected, rtol=1e-4, atol=1e-6)


def replace_epochs(output, epochs, chosen):
    """Weights after so many epochs of a schedule of four: stopped there, not planned shorter."""
    asked = iter([False] * (epochs - 1) + [True])
    train(options(output, epochs=4, **chosen), TRAIN, VAL, should_stop=lambda: next(asked))
    return output


def test_an_averaged_run_goes_on_where_it_was_stopped(tmp_path):
    chosen = {"arch": "mlp", "ema": 0.9, "patience": None}
    train(options(tmp_path / "whole", **chosen), TRAIN, VAL)
    asked = iter([False, True])
    train(options(tmp_path / "cut", **chosen), TRAIN, VAL, should_stop=lambda: next(asked))
    train(options(tmp_path / "cut", **chosen), TRAIN, VAL)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert all(map(torch.equal, weights(tmp_path / "whole").values(), weights(tmp_path / "cut").values()))


@pytest.mark.parametrize("arch", ["ridge", *NETWORKS])
def test_the_loader_changes_nothing(tmp_path, arch):
    for loader in ("resident", "stream"):
        train(options(tmp_path / loader, arch=arch, loader=loader, cache=str(tmp_path)), TRAIN, VAL)
    assert curve(tmp_path / "resident") == curve(tmp_path / "stream")
    for name, tensor in weights(tmp_path / "resident").items():
        assert tensor.equal(weights(tmp_path / "stream")[name]), name


@pytest.mark.parametrize(("room", "packed"), [(1e12, False), (1e4, True)])
def test_auto_looks_at_the_memory_there_is(tmp_path, monkeypatch, room, packed):
    monkeypatch.setattr("projector.data.pair_storage.room_in_memory", lambda: room)
    made = []
    monkeypatch.setattr("projector.data.packed.Packed.__init__", recording(made))
    train(options(tmp_path, loader="auto"), TRAIN, VAL)
    assert bool(made) == packed


def recording(made):
    from projector.data.packed import Packed

    original = Packed.__init__

    def init(self, *arguments):
        made.append(self)
        original(self, *arguments)

    return init


@pytest.mark.parametrize("loss", ["mse", "raw_mse", "huber", "cosine"])
@pytest.mark.parametrize("std_weight", [0.0, 0.5])
def test_every_loss_learns(tmp_path, loss, std_weight):
    chosen = {"loss": loss, "std_weight": std_weight, "start": "mean", "patience": None}
    summary = train(options(tmp_path, epochs=15, align="mean", **chosen), TRAIN, VAL)
    losses = [val for *_, val in curve(tmp_path)]
    assert summary["best_val_loss"] < 0.98 * losses[0]


def test_the_spread_term_holds_the_spread(tmp_path):
    chosen = {"arch": "mlp", "align": "soft", "start": "mean", "epochs": 15, "patience": None}
    spread = []
    for std_weight in (0.0, 3.0):
        train(options(tmp_path / str(std_weight), std_weight=std_weight, **chosen), TRAIN, VAL)
        projector = Projector.from_pretrained(str(tmp_path / str(std_weight)))
        outputs = [projector(pair.vl.float()) / projector.network.target_std for pair in VAL]
        spread.append(float(torch.stack([tokens.std(0).mean() for tokens in outputs]).mean()))
    assert spread[1] > 1.2 * spread[0]


def test_restoration_is_told_at_three_strengths(tmp_path):
    table = train(options(tmp_path, arch="ridge", align="pool", restore=0.5), TRAIN, VAL)["restoration"]
    assert [row["strength"] for row in table] == [0.0, 0.5, 1.0]
    assert table[0]["val_loss"] < table[1]["val_loss"] < table[2]["val_loss"]
    assert table[0]["dims_outside"] >= table[1]["dims_outside"] >= table[2]["dims_outside"] == 0
    assert table[2]["std_ratio_range"] == pytest.approx([1, 1], rel=1e-3)
    assert Projector.from_pretrained(str(tmp_path)).restore == 0.5


def test_statistics_alone_match_each_dimension(tmp_path):
    summary = train(options(tmp_path, align="statistics", length=12), TRAIN, VAL)
    assert (summary["epochs"], summary["ridge_val_loss"]) == (3, None)
    projector = Projector.from_pretrained(str(tmp_path))
    vl = torch.cat([pair.vl.float() for pair in TRAIN])
    text = torch.cat([pair.text.float() for pair in TRAIN])
    out = projector(vl)
    torch.testing.assert_close(out.mean(0), text.mean(0), rtol=1e-2, atol=0.2)
    torch.testing.assert_close(out.std(0), text.std(0), rtol=2e-2, atol=1e-2)
    with pytest.raises(ValueError, match="use arch linear"):
        options(tmp_path, align="statistics", arch="mlp")


def test_the_guides_recipe_is_its_own_loop(tmp_path):
    """Against its text in plain torch: pooling with zero padding, raw MSE, AdamW, warm-up and cosine by step."""
    chosen = options(tmp_path, recipe="guide", arch="mlp", epochs=2, batch_size=10, length=6, hidden=40)
    assert (chosen.align, chosen.learning_rate, chosen.weight_decay) == ("guide", 1e-4, 0.01)
    assert (chosen.gradient_clip, chosen.start, chosen.warmup_steps) == (None, "random", 500)
    train(chosen, TRAIN, VAL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 40), nn.GELU(), nn.Linear(40, 32))
    vl, text = (
        torch.stack([guide_pool(getattr(p, s), 6).bfloat16() for p in TRAIN]).float() for s in ("vl", "text")
    )
    held = [
        torch.stack([guide_pool(getattr(p, s), 6).bfloat16() for p in VAL]).float() for s in ("vl", "text")
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    total, step, expected = 10, 0, []
    for epoch in range(2):
        losses = []
        for batch in epoch_order(50, 10, 0, epoch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, peak=1e-4, warmup=5, total=total)
            loss = F.mse_loss(model(vl[batch]), text[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
        with torch.no_grad():
            expected.append((epoch + 1, np.mean(losses), float(F.mse_loss(model(held[0]), held[1]))))
    np.testing.assert_allclose(curve(tmp_path), expected, rtol=1e-5)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["recipe"], config["align"]) == ("guide", "guide")


def test_what_is_given_beside_a_recipe_wins():
    assert TrainOptions(recipe="guide", learning_rate=1.0).learning_rate == 1.0
    again = TrainOptions.model_validate(TrainOptions(recipe="guide", epochs=7).model_dump(mode="json"))
    assert (again.epochs, again.batch_size) == (7, 32)


def test_datasets_count_by_their_weights(tmp_path):
    """A pair of weight two is the same as that pair twice, in the closed form."""
    pairs = list(TRAIN)
    heavy = in_memory([replace(pair, weight=2.0) for pair in pairs[30:]])
    train(
        options(tmp_path / "weighted", arch="ridge", align="mean"),
        joined(in_memory(pairs[:30]), [heavy]),
        VAL,
    )
    twice = in_memory([*pairs[:30], *pairs[30:], *pairs[30:]])
    train(options(tmp_path / "twice", arch="ridge", align="mean"), twice, VAL)
    one, two = (Projector.from_pretrained(str(tmp_path / name)) for name in ("weighted", "twice"))
    vl = next(iter(VAL)).vl.float()
    # The standardisation counts tokens, not weights, so the penalty acts in slightly different units.
    train(options(tmp_path / "once", arch="ridge", align="mean"), TRAIN, VAL)
    unweighted = Projector.from_pretrained(str(tmp_path / "once"))
    near, far = (((p(vl) - two(vl)) / two.network.target_std).square().mean() for p in (one, unweighted))
    assert float(near) < 0.2 * float(far)


def test_datasets_of_another_width_do_not_join():
    other = Synthetic(width=16, image_tokens=4, text_tokens=(3, 9), latent=4).source(3)
    with pytest.raises(UsageError, match=r"has width 16, .* has 32"):
        joined(TRAIN, [other])
    assert len(joined(TRAIN, [WORLD.source(3)])) == 53
    assert [pair.key for pair in joined(in_memory(list(TRAIN)[:2]), [VAL]).read(1, 4)] == [
        "synthetic-000001",
        "synthetic-001000",
        "synthetic-001001",
    ]
