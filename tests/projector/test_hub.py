"""A projector by name: the real client of the Hub against a small server, in processes of their own."""

import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard

from hub_support import a_hub
from projector.network.architectures import ProjectorNetwork, Shape
from projector.network.model_card import dataset_id
from projector.network.projector import Projector
from ray_support import ROOT
from shards.errors import UsageError

WIDTH = 16
NAME = "someone/cat-projector"
PAIRS = "/home/me/secret/datasets--someone--pairs/snapshots/0123"  # as the Hub's cache keeps a dataset


def a_projector(seed=1):
    torch.manual_seed(seed)
    network = ProjectorNetwork(Shape("linear", WIDTH, 24, 5), random_start=True)
    config = {
        "format": 1,
        "arch": "linear",
        "width": WIDTH,
        "layer": -6,
        "text_mode": "none",
        "tokens": "image",
        "network": network.shape.as_json(),
        "base_models": {"vl": {"id": "Qwen/Qwen3-VL-4B-Instruct", "revision": "abc"}},
        "dataset": {"root": PAIRS, "fingerprint": "f00d"},
    }
    return Projector(network, config)


def run(environment, script, *arguments):
    """What a script prints as JSON, run with the client of the Hub that this environment makes."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            f"import json, sys\n{script}",
            *map(str, arguments),
        ],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


ROUND_TRIP = """
import torch
from projector import Projector
from shards.errors import UsageError

folder, name, unheard = sys.argv[1:]
x = torch.arange(48.0).reshape(3, 16)
first = Projector.from_pretrained(folder + "/1")
said = {"url": first.push_to_hub(name)}
second = Projector.from_pretrained(folder + "/2")
second.push_to_hub(name, branch="v2")
loaded = {
    "main": Projector.from_pretrained(name),
    "branch": Projector.from_pretrained(name, revision="v2"),
    "pinned": Projector.from_pretrained(f"{name}@v2"),
    "commit": Projector.from_pretrained(name, revision=said["url"].rpartition("/")[2]),
}
expected = {"main": first, "branch": second, "pinned": second, "commit": first}
said["alike"] = {key: torch.equal(loaded[key](x), expected[key](x)) for key in loaded}
said["config"] = loaded["main"].config
said["errors"] = []
for wrong, revision in ((unheard, None), (name, "no-such"), (f"{name}@v2", "main"), (folder + "/1", "v2")):
    try:
        Projector.from_pretrained(wrong, revision=revision)
    except UsageError as error:
        said["errors"].append(str(error))
print(json.dumps(said))
"""
OFFLINE = """
import torch
from projector import Projector

print(json.dumps(Projector.from_pretrained(sys.argv[1])(torch.arange(48.0).reshape(3, 16)).tolist()))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a process that pushed and loaded found, the server, and what a second process found without it."""
    folder = tmp_path_factory.mktemp("hub")
    for seed in (1, 2):
        a_projector(seed).save_pretrained(folder / str(seed))
    with a_hub(folder / "cache") as (hub, environment):
        found = run(environment, ROUND_TRIP, folder, NAME, "someone/nothing")
    found["offline"] = run(environment | {"HF_HUB_OFFLINE": "1"}, OFFLINE, NAME)
    (snapshot,) = [
        path
        for path in folder.glob("cache/hub/models--*/snapshots/*")
        if path.name == found["url"].rpartition("/")[2]
    ]
    return found, hub, snapshot


def test_what_was_pushed_is_what_is_loaded_at_every_revision(told):
    found, hub, _ = told
    assert found["alike"] == {"main": True, "branch": True, "pinned": True, "commit": True}
    assert set(hub.found(NAME, "main")[1]) == {"README.md", "config.json", "model.safetensors"}


def test_nothing_that_is_pushed_names_the_machine(told):
    found, hub, _ = told
    assert found["config"]["dataset"] == {"fingerprint": "f00d"}
    assert not [name for name, data in hub.found(NAME, "main")[1].items() if b"secret" in data]


def test_the_card_that_is_pushed_names_its_own_repository(told):
    card = told[1].found(NAME, "main")[1]["README.md"].decode()
    assert f'Projector.from_pretrained("{NAME}")' in card
    assert "this-folder" not in card


def test_the_card_that_is_pushed_names_models_and_dataset_for_the_hub(told):
    card = ModelCard(told[1].found(NAME, "main")[1]["README.md"].decode()).data
    assert (card.datasets, card.base_model) == (["someone/pairs"], ["Qwen/Qwen3-VL-4B-Instruct"])
    assert (card.library_name, card.pipeline_tag) == ("z-image-projector", "image-to-image")


def test_the_cache_of_the_hub_holds_links_and_is_read(told):
    found, _, snapshot = told
    assert (snapshot / "model.safetensors").is_symlink()
    x = torch.arange(48.0).reshape(3, WIDTH)
    expected = a_projector()(x)
    assert torch.equal(torch.tensor(found["offline"]), expected)
    assert torch.equal(Projector.from_pretrained(snapshot)(x), expected)


def test_only_the_two_files_are_fetched(told):
    fetched = {path.rpartition("/")[2] for path in told[1].asked if f"/{NAME}/resolve/" in path}
    assert fetched - {"README.md"} == {"config.json", "model.safetensors"}
    assert not (told[2] / "README.md").exists()


def test_a_name_that_cannot_be_had_is_one_line(told):
    nothing, revision, both, folder = told[0]["errors"]
    assert nothing.startswith("projector = 'someone/nothing': neither a folder nor to be had from the hub")
    assert revision.startswith(f"projector = '{NAME}@no-such': neither a folder")
    assert both == f"revision = 'main': '{NAME}@v2' names another one; give one of the two"
    assert folder.endswith("is no Hub id, and only the Hub has revisions; leave it out")
    assert not [line for line in told[0]["errors"] if "\n" in line]


def test_a_file_by_itself_is_enough(tmp_path):
    made = a_projector()
    made.save_pretrained(tmp_path / "p")
    (tmp_path / "p" / "config.json").unlink()
    for name in ("model.safetensors", "renamed.safetensors"):
        file = (tmp_path / "p" / "model.safetensors").rename(tmp_path / name)
        loaded = Projector.from_pretrained(file)
        x = torch.randn(5, WIDTH)
        assert torch.equal(loaded(x), made(x))
        assert loaded.config == made.config
        file.rename(tmp_path / "p" / "model.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x02\0\0\0\0\0\0\0{}", "holds no description of a projector"),
        (b"\xff" * 40, "is no safetensors file of a projector"),
        (b"short", "is no safetensors file of a projector"),
    ],
)
def test_a_file_that_is_no_projector(tmp_path, content, message):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        Projector.from_pretrained(tmp_path / "x.safetensors")


def test_a_dataset_of_the_hub_is_known_by_where_it_was_read():
    root = "/cache/hub/datasets--some-one--my--pairs/snapshots/0123"
    assert dataset_id({"dataset": {"root": root}}) == "some-one/my--pairs"
    assert dataset_id({"dataset": {"root": "/data/pairs"}}) == ""
    assert dataset_id({}) == ""
