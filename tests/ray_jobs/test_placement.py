"""What stands where, and why."""

import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from projector.comparison.comparer import CompareSettings
from projector.making.generated import PairSettings, PictureReader
from projector.models import offload as residence
from projector.models.resolve import resolve_models
from ray_jobs.cli.run_options import BuildOptions
from ray_jobs.cluster.connect import Cluster
from ray_jobs.cluster.crew import Crew, crew_for, with_readers
from ray_jobs.jobs import build, compare
from ray_jobs.jobs.build import maker_of
from ray_jobs.planning.model_placement import Needs, check_memory, choose_placement, needs, weight_bytes
from shards.errors import UsageError

GB = 1e9
REAL = Needs(
    text=8 * GB, image=12.5 * GB, vl=9 * GB, beside=4 * GB
)  # about what the 4B models take in bfloat16
SETTINGS = PairSettings(
    height=1024,
    width=1024,
    steps=9,
    guidance=0.0,
    layers=(-8,),
    text_modes=("none",),
    vl_tokens="all",
    max_tokens=512,
    dtype="bfloat16",
    batch_size=1,
)


PROJECTOR = SimpleNamespace(layer=-8, vl_tokens="all", quantize="int8")


def cluster(gpus, cpus=8):
    return Cluster(("n",), cpus, gpus, ("n",) if gpus else ())


@pytest.mark.parametrize(
    ("memory", "expected", "said"),
    [
        (80 * GB, "fused", "all models take 34 GB of 80 GB a builder"),
        (24 * GB, "offload", "all models would take 34 GB of 24 GB a builder, one at a time 16 GB"),
        (None, "fused", ""),
    ],
)
def test_auto_takes_what_fits_and_says_why(memory, expected, said):
    placement, why = choose_placement("auto", REAL, memory)
    assert placement == expected
    assert said in why


@pytest.mark.parametrize("asked", ["fused", "staged", "offload"])
def test_a_placement_asked_for_is_taken(asked):
    assert choose_placement(asked, REAL, 80 * GB) == (asked, "")
    assert choose_placement(asked, REAL, None) == (asked, "")


@pytest.mark.parametrize(
    ("asked", "memory", "said"),
    [
        (
            "fused",
            24,
            "weights on a device take 29.5 GB, it has 24 GB a builder; take build.placement = offload",
        ),
        (
            "staged",
            16,
            "weights on a device take 20.5 GB, it has 16 GB a builder; take build.placement = offload",
        ),
        (
            "offload",
            8,
            "weights on a device take 12.5 GB, it has 8 GB a builder; give each builder more of a GPU",
        ),
        ("auto", 8, "build.placement = 'auto': the weights on a device take 12.5 GB"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_a_model_loads(asked, memory, said):
    with pytest.raises(UsageError) as refusal:
        choose_placement(asked, REAL, memory * GB)
    assert said in str(refusal.value)


def test_offloaded_weights_of_all_builders_fit_the_machines_memory():
    check_memory("10.0.0.1", 2, 72 * GB, REAL)
    with pytest.raises(UsageError, match=r"1 builder.* takes 34 GB with what runs beside them; it has 32 GB"):
        check_memory("10.0.0.1", 1, 32 * GB, REAL)  # of which the weights alone are 29.5
    with pytest.raises(UsageError) as refused:
        check_memory("10.0.0.1", 2, 32 * GB, REAL, "compare")
    assert str(refused.value).startswith(
        "node 10.0.0.1: each of its 2 builder(s) keeps 30 GB of weights in memory"
    )
    assert "it has 32 GB. Lower compare.actors" in str(refused.value)


def offloading_is_checked(monkeypatch, module, memory):
    """Has GPUs of so much memory, and notes what is asked of the machines'."""
    checked = []
    monkeypatch.setattr(module, "device_memory", lambda *_: memory)
    monkeypatch.setattr(module, "needs", lambda *_: REAL)
    monkeypatch.setattr(module, "check_offloading", lambda _, *asked: checked.append(asked))
    return checked


@pytest.mark.parametrize(("memory", "expected"), [(80 * GB, []), (24 * GB, [(2, 1.0, REAL)])])
def test_a_build_that_offloads_asks_for_the_machines_memory(environment, monkeypatch, memory, expected):
    checked = offloading_is_checked(monkeypatch, build, memory)
    build.arranged(BuildOptions(), cluster(2), resolve_models("tiny"))
    assert checked == expected


def test_a_comparison_has_the_residence_of_a_build(environment, monkeypatch, capsys):
    given = (
        cluster(2),
        Crew(2, 1.0),
        None,
        CompareSettings(64, 64, 8, 0.0, 512, "bfloat16", "interpolate"),
        PROJECTOR,
    )
    offloading_is_checked(monkeypatch, compare, 80 * GB)
    assert not compare.one_at_a_time(*given, grafted=False)
    checked = offloading_is_checked(monkeypatch, compare, 24 * GB)
    assert compare.one_at_a_time(*given, grafted=False)
    assert checked == [(2, 1.0, REAL, "compare")]
    assert "one model at a time: all would take 34 GB of 24 GB a worker" in capsys.readouterr().out
    offloading_is_checked(monkeypatch, compare, 8 * GB)
    with pytest.raises(
        UsageError, match=r"compare\.gpus_per_actor: the largest model takes 12\.5 GB, a worker has 8 GB"
    ):
        compare.one_at_a_time(*given, grafted=False)


def test_makers_find_their_device_where_they_run(environment, monkeypatch):
    """A driver without a GPU hands them to builders and readers that have one."""
    sources, found = resolve_models("tiny"), []
    makers = [maker_of(placement, sources, SETTINGS) for placement in ("fused", "staged", "offload")]
    sent = pickle.dumps([*makers, partial(PictureReader.load, sources, SETTINGS)])
    monkeypatch.setattr(residence.torch.cuda, "is_available", lambda: found.append(1) or False)
    for make in pickle.loads(sent):
        found.clear()
        make()
        assert found


def test_needs_are_counted_from_the_weights_alone(environment):
    from diffusers import ZImageTransformer2DModel

    tiny_sources = resolve_models("tiny")
    found = needs(tiny_sources, SETTINGS)
    transformer = ZImageTransformer2DModel.from_pretrained(tiny_sources.image.path, subfolder="transformer")
    folder = Path(tiny_sources.image.path)
    assert weight_bytes(folder / "transformer", 2, 2) == 2 * sum(p.numel() for p in transformer.parameters())
    assert found.image == sum(weight_bytes(folder / part, 2, 2) for part in ("transformer", "vae"))
    wide = needs(tiny_sources, replace(SETTINGS, dtype="float32"))
    assert (wide.text, wide.vl) == (2 * found.text, 2 * found.vl)
    assert found.of("fused") > found.of("staged") > found.of("offload") > found.beside


@pytest.mark.parametrize(
    ("gpus", "options", "expected"),
    [
        (8, {}, Crew(7, 1.0, 1, 1.0, grows=True)),
        (40, {}, Crew(37, 1.0, 3, 1.0, grows=True)),
        (
            2,
            {"reading_actors": 1, "gpus_per_reader": 0.4, "gpus_per_actor": 0.6},
            Crew(2, 0.6, 1, 0.4, grows=True),
        ),
        (0, {"actors": 3}, Crew(3, 0.0, 1, 0.0)),
        (8, {"actors": 4, "reading_actors": 2}, Crew(4, 1.0, 2, 1.0)),
    ],
)
def test_some_gpus_go_to_readers(gpus, options, expected):
    asked = BuildOptions(**options)
    assert with_readers(crew_for(asked, cluster(gpus)), asked, cluster(gpus)) == expected


def test_one_gpu_is_not_enough_for_both():
    with pytest.raises(UsageError, match=r"lower build\.actors"):
        with_readers(crew_for(BuildOptions(), cluster(1)), BuildOptions(), cluster(1))


def test_devices_held_for_a_builder_are_its_own_and_its_share_of_the_readers():
    assert Crew(8, 1.0).devices_each == 1
    assert Crew(8, 1.0, 2, 1.0).devices_each == 1.25
    assert Crew(2, 0.0, 1, 0.0).devices_each == 1.5
