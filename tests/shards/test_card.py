"""Pages to publish: hostile text stays text, and what a dataset's page says about loading is true."""

import io
import os
import re
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from shards.__main__ import main
from shards.dataset.read import read_samples
from shards.tools.dataset_card import dataset_card
from shards.tools.markdown import LONGEST, front_matter, inline, table
from shards.tools.verify import verify
from tests_support import SETTINGS

HOSTILE = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "[click](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "https://evil.example www.evil.example me@evil.example",
    "a | b | c",
    "`code` **bold** _it_ ~~gone~~ $x$ #7",
    "one\n\n# heading\n---\nlicense: mine\n```",
    "\u202eright\u2066to left\x00\x1b[31m",
    "&lt;b&gt; \\| \\<b\\>",
]


def shown(source):
    """What a reader sees: HTML with raw HTML and links allowed, as the hub renders it."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough").render(source)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text(text):
    page = shown(f"Prompt: {inline(text)}\n")
    assert re.findall(r"<[^>]*>", page) == ["<p>", "</p>"]
    rows = shown(table(("a", "b"), [(text, 1)]))
    assert rows.count("<td>") == 2
    assert set(re.findall(r"</?(\w+)", rows)) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert not any(sign in inline(text) for sign in "\u202e\u2066\x00\x1b\n")
    assert "://" not in inline(text)
    assert "www." not in inline(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_front_matter_keeps_what_it_was_given(text):
    block = front_matter({"title": text, "none": None, "tags": [text]})
    assert yaml.safe_load(block.removeprefix("---\n").removesuffix("---\n")) == {
        "title": text,
        "tags": [text],
    }
    assert len(re.findall("^---$", block, re.MULTILINE)) == 2


def test_long_text_is_cut():
    assert len(inline("a" * 10_000)) == LONGEST


def test_the_card_of_a_dataset(make_dataset, tmp_path, capsys):
    dataset, plan = make_dataset()
    root = str(tmp_path / "data")
    assert main(["card", root]) == 0
    assert capsys.readouterr().out == f"{root}/README.md\n"
    card = (tmp_path / "data" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert "license" not in head
    assert head["size_categories"] == ["n<1K"]
    assert "random test models" not in card
    assert f"{len(plan)} samples, complete" in card
    assert "| split | samples | shards |" in card
    assert dataset.fingerprint in card
    assert "| photograph |" in card
    assert root not in card
    assert verify(root, workers=1).problems == []


def test_the_cards_head_names_the_shards_of_each_split(make_dataset, tmp_path):
    """As `datasets` resolves them: a split's files are those that its pattern matches, and all of one kind."""
    dataset, _ = make_dataset()
    main(["card", str(tmp_path / "data")])
    head = yaml.safe_load((tmp_path / "data" / "README.md").read_text().split("---\n")[1])
    (config,) = head["configs"]
    assert config["config_name"] == "default"
    found = {
        entry["split"]: sorted(
            str(path.relative_to(tmp_path / "data")) for path in (tmp_path / "data").glob(entry["path"])
        )
        for entry in config["data_files"]
    }
    tars = {"train": [], "validation": [], "test": []}
    for commit in dataset.commits():
        tars[{"val": "validation"}.get(commit.split, commit.split)].append(commit.tar)
    assert found == {split: sorted(names) for split, names in tars.items() if names}


def test_stock_readers_take_shards_and_pictures_not_the_parquet_beside_them(
    make_dataset, tmp_path, monkeypatch
):
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dataset, _ = make_dataset()
    main(["card", str(tmp_path / "data")])
    found = datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    expected = {
        name: {sample.key: sample for sample in read_samples(dataset, split=split)}
        for split, name in (("train", "train"), ("val", "validation"), ("test", "test"))
    }
    assert all(expected.values())
    assert {name: len(split) for name, split in found.items()} == {
        name: len(expected[name]) for name in expected
    }
    for name, split in found.items():
        for row in split:
            sample = expected[name].pop(row["__key__"])
            assert row["txt"] == sample.caption
            assert row["json"]["id"] == sample.metadata["id"]
            with Image.open(io.BytesIO(sample.image)) as picture:
                assert row["png"].tobytes() == picture.tobytes()
            tensors = safetensors.torch.load(row["safetensors"])
            assert tensors.keys() == sample.tensors.keys()
            for key, tensor in tensors.items():
                assert torch.equal(tensor.float(), torch.from_numpy(sample.tensors[key].astype("float32"))), (
                    key
                )


def test_a_dataset_of_random_models_says_so_at_the_top():
    facts = {"samples": 1, "failed": 0, "planned": 1, "complete": True, "fingerprint": "f", "created": "now"}
    facts |= {"splits": {}, "coverage": []}
    for models, random in (
        ({"vl": {"id": "tiny/vl"}}, True),
        ({"vl": {"id": "Qwen/Qwen3-VL-4B-Instruct"}}, False),
    ):
        body = dataset_card(facts, {"models": models}, {}, None).partition("\n# ")[2]
        assert body.splitlines()[2].startswith("> **Made with random test models.**") == random


@pytest.mark.parametrize(
    ("snippet", "shown", "printed"),
    [
        (
            0,
            "picture.size, tensors['text'].shape",
            f"{(SETTINGS['width'], SETTINGS['height'])} torch.Size([5, 8])",
        ),
        (1, "text.shape, image.shape", "torch.Size([5, 8]) torch.Size([11, 8])"),
    ],
    ids=["datasets", "webdataset"],
)
def test_what_the_card_says_about_loading_works(make_dataset, tmp_path, snippet, shown, printed):
    _, plan = make_dataset()
    main(["card", str(tmp_path / "data"), "--license", "cc-by-4.0"])
    card = (tmp_path / "data" / "README.md").read_text()
    assert "license: cc-by-4.0" in card
    code = card.split("```python\n")[1 + snippet].split("```")[0] + f"    print(caption, {shown})\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path / "data",
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    train = sum(len(shard.samples) for shard in plan.shards if shard.split == "train")
    assert done.stdout.count(printed) == train > 0


def test_coverage_is_short_and_the_settings_come_first():
    facts = {"samples": 9, "failed": 0, "planned": 9, "complete": True, "fingerprint": "f", "created": "now"}
    cells = [
        {"content": content, "style": style, "subject": "cat", "samples": samples}
        for content, style, samples in (("photo", "old", 1), ("photo", "", 3), ("map", "old", 5))
    ]
    card = dataset_card(facts | {"splits": {}, "coverage": cells}, {"seed": 1}, {}, None)
    for row in (
        "| content | photo | 4 |",
        "| content | map | 5 |",
        "| style | old | 6 |",
        "| subject | cat | 9 |",
    ):
        assert row in card
    assert "| style |  |" not in card
    assert "3 combinations of the three have samples, 1 to 5 each." in card
    assert 'sample["png"]' in card
    assert 'sample["jpg"]' in dataset_card(facts | {"splits": {}, "coverage": []}, {"import": {}}, {}, None)
    assert card.index("## Settings") < card.index("## Loading") < card.index("## Coverage")


def test_a_card_that_is_there_is_not_overwritten(make_dataset, tmp_path, capsys):
    make_dataset()
    (tmp_path / "data" / "README.md").write_text("mine")
    assert main(["card", str(tmp_path / "data")]) == 2
    assert "README.md already exists" in capsys.readouterr().err
    assert (tmp_path / "data" / "README.md").read_text() == "mine"


def test_settings_cannot_leave_the_cards_code_or_text():
    facts = {"samples": 1, "failed": 0, "planned": 1, "complete": False, "fingerprint": "f", "created": "now"}
    facts |= {"splits": {}, "coverage": [{"content": "<b>", "style": "", "subject": "", "samples": 1}]}
    hostile = 'x"]; import os #</script>'
    settings = {
        "layers": [hostile],
        "text_modes": [hostile],
        "models": {"vl": {"id": hostile}, "image": hostile},
    }
    card = dataset_card(facts, settings, {hostile: hostile}, None)
    assert 'tensors["vl.ximportosscript.ximportosscript"]' in card
    assert "</script>" not in card
    assert "<b>" not in shown(card.split("---\n", 2)[2])
