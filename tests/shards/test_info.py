"""What a dataset tells of itself."""

import json
from collections import Counter

from shards.__main__ import main
from shards.prompts.variety import prompt_figures
from shards.tools.info import details, prompts
from tests_support import a_plan, commit_shard


def test_coverage_and_failures(make_dataset, tmp_path, capsys):
    dataset, plan = make_dataset(shards=a_plan().shards[1:])
    commit_shard(dataset, plan.shards[0], tmp_path / "spool", failing=(1, 2))
    told = details(dataset)
    made = [sample for sample in plan.samples if sample not in plan.shards[0].samples[1:3]]
    expected = Counter((sample.content, sample.style, sample.subject) for sample in made)
    assert {(c["content"], c["style"], c["subject"]): c["samples"] for c in told["coverage"]} == expected
    assert told["failures"] == [{"stage": "image", "error_class": "RuntimeError", "tries": 2}]
    capsys.readouterr()  # what threads of earlier tests in this process printed meanwhile
    assert main(["info", dataset.storage.root, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["coverage"] == told["coverage"]
    assert (shown["samples"], shown["failed"], shown["fingerprint"]) == (18, 2, dataset.fingerprint)


def test_captions_that_were_made_are_measured(make_dataset, tmp_path):
    dataset, plan = make_dataset(shards=a_plan().shards[1:])
    commit_shard(dataset, plan.shards[0], tmp_path / "spool", failing=(1, 2))
    made = [sample for sample in plan.samples if sample not in plan.shards[0].samples[1:3]]
    assert prompts(dataset) == prompt_figures(made)
    assert prompts(dataset).prompts == 18


def test_a_shard_in_which_all_failed(make_dataset, tmp_path):
    dataset, plan = make_dataset(shards=())
    commit_shard(dataset, plan.shards[0], tmp_path / "spool", failing=(0, 1, 2, 3))
    assert details(dataset)["coverage"] == []
    assert details(dataset)["failures"][0]["tries"] == 4


def test_a_dead_letter_file_without_failures_is_debris(make_dataset, tmp_path):
    """A try put it and died; the next one had no failures."""
    dataset, plan = make_dataset(shards=())
    first = plan.shards[0]
    commit_shard(dataset, first, tmp_path / "spool", failing=(0,))
    dead_letter = dataset.storage.get_bytes(f"failed/{first.name}.parquet")
    for key in (f"_commit/{first.name}.json", "train/pairs-000000.tar", "train/pairs-000000.parquet"):
        dataset.storage.delete(key)
    commit_shard(dataset, first, tmp_path / "spool")
    assert dataset.storage.get_bytes(f"failed/{first.name}.parquet") == dead_letter
    assert details(dataset)["failures"] == []
