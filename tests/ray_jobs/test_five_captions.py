"""An import with five captions a picture, from its source to the cards and the page, counted anew by this test."""

import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load

from import_support import coco_content, write_coco
from projector.network.projector import Projector
from ray_support import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PICTURES, CAPTIONS, BROKEN = 40, 5, 7
IMAGE, CAPTION = 1, 2  # kinds of tokens, as shards/FORMAT.md numbers them


@dataclass(frozen=True)
class Member:
    """A sample as it is in a tar, and what the source says of its caption."""

    split: str
    caption: str
    picture: int
    text: torch.Tensor
    vl: torch.Tensor


def members(data, picture_of):
    """Every sample of the shards, read with nothing of this project."""
    for path in sorted(data.glob("*/*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for name in sorted(files):
            key, _, suffix = name.partition(".")
            if suffix == "txt":
                tensors = load(files[f"{key}.safetensors"])
                yield Member(
                    path.parent.name,
                    files[name].decode(),
                    picture_of[files[name].decode()],
                    tensors["text"][tensors["text.kind"] == CAPTION],
                    tensors["vl.none.-8"][tensors["vl.none.kind"] == IMAGE],
                )


@dataclass(frozen=True)
class Run:
    """What the jobs left, and the samples in it."""

    folder: object
    members: list

    def of(self, split):
        return [member for member in self.members if member.split == split]

    def text(self, name):
        return (self.folder / name).read_text()

    def page(self):
        """The report's words without markup."""
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", self.text("report.html")))


@pytest.fixture(scope="module")
def run(head, tmp_path_factory):
    folder = tmp_path_factory.mktemp("five")
    content, files = coco_content(PICTURES, CAPTIONS)
    files[f"{BROKEN:012d}.jpg"] = b"<html>moved</html>"
    source = write_coco(folder / "source", content, files)
    left = folder / "run"
    jobs = [
        ("import", {"kind": "coco", **source, "output": left / "data", "captions": "all", "layers": -8}),
        ("train", {"data": left / "data", "output": left / "ridge", "arch": "ridge", "text_mode": "none"}),
        ("evaluate", {"checkpoint": left / "ridge"}),
        ("export", {"checkpoint": left / "ridge", "output": folder / "export"}),
        ("report", {"run": left, "output": folder / "report.html"}),
    ]
    of_import = {"val_fraction": 0.25, "test_fraction": 0.3, "text_modes": "none", "max_failed_fraction": 0.5}
    jobs[0][1].update(of_import | {"samples_per_shard": 50})
    jobs[1][1]["objective"] = "embedding"
    commands = [
        ["ray_jobs", job, *(f"--{job}.{name}={value}" for name, value in options.items())]
        for job, options in jobs
    ]
    for words in [*commands, ["shards", "card", str(left / "data")]]:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(
            command, env=head.environment, cwd=ROOT, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
    picture_of = {each["caption"]: each["image_id"] for each in content["annotations"]}
    return Run(folder, list(members(left / "data", picture_of)))


def recalled(queries, gallery, pictures, ranks=(1, 5)):
    """Share of queries whose own is among the first, where other captions of its picture are no candidates."""
    found = Counter()
    for index, query in enumerate(queries):
        cosines = [float(query @ row / np.linalg.norm(query) / np.linalg.norm(row)) for row in gallery]
        before = sum(
            cosine > cosines[index] + 1e-9
            for other, cosine in enumerate(cosines)
            if pictures[other] != pictures[index]
        )
        equal = sum(
            abs(cosine - cosines[index]) <= 1e-9
            for other, cosine in enumerate(cosines)
            if pictures[other] != pictures[index]
        )
        found.update(rank for rank in ranks if 1 + before + equal / 2 <= rank)
    return [found[rank] / len(queries) for rank in ranks]


def test_every_caption_of_a_picture_is_in_its_split(run):
    made = Counter(member.picture for member in run.members)
    assert made == dict.fromkeys(set(range(PICTURES)) - {BROKEN}, CAPTIONS)
    assert len({(member.picture, member.split) for member in run.members}) == PICTURES - 1
    assert len({member.caption for member in run.members}) == (PICTURES - 1) * CAPTIONS
    assert min(len(run.of(split)) for split in ("train", "val", "test")) >= CAPTIONS


def test_the_card_of_the_dataset_counts_samples_and_pictures(run):
    card = run.text("run/data/README.md")
    made, planned = (PICTURES - 1) * CAPTIONS, PICTURES * CAPTIONS
    assert f"{made} samples, complete; {CAPTIONS} of {planned} planned ones could not be made." in card
    assert "| split | samples | pictures | shards |" in card
    for split in ("train", "val", "test"):
        samples, pictures = len(run.of(split)), len({member.picture for member in run.of(split)})
        shards = len(list((run.folder / "run" / "data" / split).glob("*.tar")))
        assert samples == CAPTIONS * pictures
        assert f"| {split} | {samples} | {pictures} | {shards} |" in card


def test_evaluation_and_card_of_the_projector_are_right_by_group(run):
    told = json.loads(run.text("run/ridge/eval.json"))
    test, train = run.of("test"), run.of("train")
    pictures = [member.picture for member in test]
    assert (told["split"], told["pairs"], told["groups"]) == ("test", len(test), len(set(pictures)))
    assert (told["train_pairs"], told["val_pairs"]) == (len(train), len(run.of("val")))
    tokens = torch.cat([member.text for member in train]).double().numpy()
    mean, std = tokens.mean(0), tokens.std(0)
    projector = Projector.from_pretrained(str(run.folder / "run" / "ridge"))
    gallery = [(member.text.double().mean(0).numpy() - mean) / std for member in test]
    card = run.text("export/README.md")
    assert f"{len(train)} training pairs, {len(run.of('val'))} to choose by" in card
    assert f"{len(test)} test pairs, best first. They are {len(set(pictures))} groups" in card
    for method, apply in (("projector", projector), ("identity", lambda vl: vl)):
        means = [apply(member.vl.float()).double().mean(0).detach().numpy() for member in test]
        recalls = recalled([(row - mean) / std for row in means], gallery, pictures)
        assert [told["methods"][method][f"recall_at_{rank}"] for rank in (1, 5)] == pytest.approx(recalls)
        row = next(line for line in card.splitlines() if line.startswith(f"| {CARD_NAMES[method]} |"))
        assert all(f" {recall:.4g} " in row for recall in recalls)


CARD_NAMES = {"projector": "this projector", "identity": "identity"}


def test_siblings_that_were_wrong_answers_would_be_seen(run):
    """Five captions of one picture, read alike: each finds itself only because the other four are no candidates."""
    test = run.of("test")
    rows = [member.vl.double().mean(0).numpy() for member in test]
    pictures = [member.picture for member in test]
    assert recalled(rows, rows, pictures) == [1, 1]
    assert recalled(rows, rows, range(len(test)))[0] < 1


def test_the_page_says_the_same(run):
    page = run.page()
    made = len(run.members)
    told = json.loads(run.text("run/ridge/eval.json"))
    assert f"{len(run.of('test'))} test pairs in {told['groups']} groups" in page
    facts = {"pairs": made, "imported pictures": PICTURES - 1, "failed": CAPTIONS}
    facts |= {f"in {split}": len(run.of(split)) for split in ("train", "val", "test")}
    for name, count in facts.items():
        assert re.search(rf"\b{count} {name}\b", page), name
