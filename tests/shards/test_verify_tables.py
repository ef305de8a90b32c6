"""Parquet side files and dead-letter files that tell something else than their shard."""

import hashlib
import json
import re
import tarfile

import pytest

from damage_support import changed, problems, replaced, rewrite, rewrite_table, root
from shards.format import side_files as tables
from tests_support import a_plan, commit_shard


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(1, caption="another"), "row train-000001-0001: caption not as in the tar"),
        (changed(1, png_offset=0, image_offset=7), "image_offset"),
        (changed(0, seed=1), "row train-000001-0000: seed not as in the tar"),
        (lambda rows: rows[1:], "has 3 samples, its commit says 4"),
        (lambda rows: [*rows[1:], rows[1]], "has 3 samples, its commit says 4"),
        (lambda rows: [{"key": row["key"]} for row in rows], "not as in the tar"),
    ],
)
def test_a_parquet_that_tells_something_else(dataset, change, message):
    rewrite_table(dataset, "train/pairs-000001.parquet", change)
    (problem,) = problems(dataset)
    assert problem.startswith("train-000001: train/pairs-000001.parquet")
    assert message in problem


def test_a_parquet_of_another_tar(dataset):
    rewrite_table(dataset, "train/pairs-000001.parquet", metadata=lambda commit: {**commit, "sha256": "0"})
    assert "written for another tar" in problems(dataset)[0]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 64 + b"PAR1"])
def test_a_parquet_that_is_none(dataset, content):
    path = root(dataset) / "train" / "pairs-000001.parquet"
    path.write_bytes(content)
    assert "train/pairs-000001.parquet is corrupt: it has another SHA-256" in problems(dataset)[0]
    commit = dataset.commit_file("train-000001")
    commit["side_files"]["train/pairs-000001.parquet"] = hashlib.sha256(content).hexdigest()
    (root(dataset) / "_commit" / "train-000001.json").write_text(json.dumps(commit))
    (problem,) = problems(dataset)
    assert "train/pairs-000001.parquet is corrupt" in problem
    assert "SHA-256" not in problem


def test_a_parquet_that_claims_too_much(dataset, monkeypatch):
    monkeypatch.setattr(tables, "MAX_UNPACKED", 100)
    assert "it claims 4 rows of" in problems(dataset)[0]


def test_samples_that_are_not_the_planned_ones(dataset):
    """Seeds changed in tar, parquet and hash alike: only the plan's hash still tells."""
    seeded = replaced("json", lambda old: re.sub(rb'"seed": \d+', b'"seed": 5', old))
    rewrite(dataset, seeded)
    commit = dataset.commit_file("train-000001")
    rewrite_table(
        dataset,
        "train/pairs-000001.parquet",
        lambda rows: places(dataset, rows, changed(0, seed=5)),
        lambda old: {**old, "sha256": commit["sha256"]},
    )
    assert problems(dataset) == [
        "train-000001: its samples are not those that the plan has for it (slice hash)"
    ]


def places(dataset, rows, change):
    """Rows with the members' new offsets and sizes."""
    with tarfile.open(root(dataset) / "train" / "pairs-000001.tar") as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            column = "image" if suffix == "png" else suffix
            row = next(row for row in rows if row["key"] == key)
            row |= {f"{column}_offset": member.offset_data, f"{column}_size": member.size}
    return change(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [], "failed/train-000000.parquet has 0 rows, its commit says 1"),
        (changed(0, id="0" * 16), "its samples are not those that the plan has for it"),
        (changed(0, key="nonsense"), "does not say what was planned"),
    ],
)
def test_a_dead_letter_file_that_tells_something_else(make_dataset, tmp_path, change, message):
    dataset, plan = make_dataset(shards=a_plan().shards[1:])
    commit_shard(dataset, plan.shards[0], tmp_path / "spool", failing=(1,))
    assert problems(dataset) == []
    rewrite_table(dataset, "failed/train-000000.parquet", change)
    (problem,) = problems(dataset)
    assert message in problem
