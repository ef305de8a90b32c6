"""Builds, kills, growth, damage and mending in any order leave each committed sample whole, once, as first made."""

import contextlib
import functools
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import shards.dataset.publish
import tests_support
from shards.dataset.dataset import Dataset
from shards.dataset.publish import Circumstances, adopt
from shards.errors import UsageError
from shards.stores.local import open_storage
from shards.tools.gc_and_repair import collect_garbage, leftovers, repair
from shards.tools.verify import verify
from tests_support import SETTINGS, a_plan, a_sample, commit_shard

PER_SHARD = 3
MOST_SAMPLES = 18
POINTS = ("before-parquet", "after-parquet", "before-tar", "after-tar", "before-commit", "after-commit")
DAMAGES = ("flip tar", "cut tar", "delete tar", "delete parquet")
numbers = st.integers(0, 1 << 20)


class Killed(BaseException):
    """Passes every `except Exception`, and so leaves the disk as a kill would."""


def failing_positions(shard):
    """Which samples of a shard cannot be made: all, one or none, the same at every attempt."""
    return ((0, 1, 2), (1,), ())[min(shard.index, 2)] if shard.split == "train" else ()


class DatasetLife(RuleBasedStateMachine):
    """A root, what was first committed under each name, and which shards are damaged at the moment."""

    @initialize(samples=st.integers(4, 9))
    def begin(self, samples):
        self.folder = Path(tempfile.mkdtemp(prefix="dataset-life-"))
        self.root = str(self.folder / "data")
        self.first: dict[str, str] = {}
        self.damaged: set[str] = set()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(tests_support, "a_sample", functools.cache(a_sample))
        self.patch.setattr(os, "fsync", lambda handle: None)  # no power cut here, and thousands of syncs
        Dataset.create_or_open(open_storage(self.root), SETTINGS, {}).grow(samples, append=False)

    def teardown(self):
        if hasattr(self, "folder"):
            self.patch.undo()
            shutil.rmtree(self.folder)

    @property
    def dataset(self):
        """Opened anew, as each process does."""
        return Dataset.open(open_storage(self.root))

    def plan(self):
        segments = self.dataset.segments()
        return a_plan(segments[-1], PER_SHARD, segments)

    def make(self, shards):
        dataset = self.dataset
        for shard in shards:
            if adopt(dataset, shard.name, shard.slice_hash, Circumstances("later")) is None:
                commit_shard(dataset, shard, self.folder / "spool", failing=self.failing(shard))

    def failing(self, shard):
        return tuple(position for position in failing_positions(shard) if position < len(shard.samples))

    def missing(self):
        return self.dataset.missing(self.plan())

    @rule(chosen=st.integers(1, 3), manifest=st.booleans())
    def build_some(self, chosen, manifest):
        self.make(self.missing()[-chosen:])
        if manifest:
            self.dataset.write_manifest()

    @rule()
    def resume(self):
        self.make(self.missing())
        self.dataset.write_manifest()
        assert self.missing() == []
        assert verify(self.root).complete

    @rule(
        point=st.sampled_from(POINTS),
        passage=st.integers(1, 3),
        spoilt=st.sampled_from(["", "", "flip tar", "cut tar", "cut parquet", "delete parquet"]),
        at=numbers,
    )
    def killed_build(self, point, passage, spoilt, at):
        passed = 0

        def crash_point(name):
            nonlocal passed
            passed += name == point
            if passed == passage:
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards.dataset.publish, "crash_point", crash_point)
            with contextlib.suppress(Killed):
                self.make(self.missing())
        damage, _, suffix = spoilt.partition(" ")
        for key in leftovers(self.dataset):
            if damage and key.endswith(suffix):
                spoil(Path(self.root) / key, damage, at)

    @precondition(lambda self: self.dataset.segments()[-1] < MOST_SAMPLES)
    @rule(more=st.integers(1, 5))
    def append(self, more):
        before = self.plan().shards
        self.dataset.grow(self.dataset.segments()[-1] + more, append=True)
        assert set(before) < set(self.plan().shards)

    @rule()
    def gc(self):
        left = leftovers(self.dataset)
        if left and not self.dataset.committed():
            with pytest.raises(UsageError, match="no commit"):
                collect_garbage(self.dataset, dry_run=False, spared=0)
            assert leftovers(self.dataset) == left
            return
        collect_garbage(self.dataset, dry_run=False, spared=0)
        assert leftovers(self.dataset) == []

    @precondition(lambda self: self.dataset.committed().keys() - self.damaged)
    @rule(number=numbers, damage=st.sampled_from(DAMAGES), at=numbers)
    def damage_a_shard(self, number, damage, at):
        sound = sorted(self.dataset.committed().keys() - self.damaged)
        name = sound[number % len(sound)]
        spoil(self.path(name, damage.split()[1]), damage.split()[0], at)
        self.damaged.add(name)

    @rule()
    def mend(self):
        assert set(repair(self.root)) == self.damaged
        self.damaged.clear()

    @precondition(lambda self: self.damaged)
    @rule()
    def killed_repair(self):
        name = min(self.damaged)
        self.dataset.storage.delete(f"_commit/{name}.json")  # the first thing that repair does
        self.damaged.remove(name)

    def path(self, name, suffix):
        commit = self.dataset.commit(name)
        return Path(self.root) / {"tar": commit.tar, "parquet": commit.parquet}[suffix]

    @invariant()
    def verify_finds_the_damage_and_nothing_else(self):
        findings = verify(self.root)
        assert {problem.shard for problem in findings.problems} == self.damaged
        assert findings.complete == (self.missing() == [])

    @invariant()
    def committed_samples_are_the_planned_ones_once_and_as_first_made(self):
        planned = {shard.name: shard for shard in self.plan().shards}
        ids = []
        for commit in self.dataset.commits():
            shard = planned[commit.name]
            assert commit.slice_hash == shard.slice_hash
            assert commit.samples == len(shard.samples) - len(self.failing(shard))
            assert self.first.setdefault(commit.name, commit.sha256) == commit.sha256
            if commit.name in self.damaged:
                continue
            content = self.path(commit.name, "tar").read_bytes()
            assert hashlib.sha256(content).hexdigest() == commit.sha256
            captions = captions_of(content)
            assert captions == {
                sample.key: sample.caption
                for sample in shard.samples
                if sample.position not in self.failing(shard)
            }
            ids += [sample.id for sample in shard.samples if sample.key in captions]
        assert len(ids) == len(set(ids))


def captions_of(tar):
    """Captions by key, read without the code under test; each sample has its four members."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    captions = {name[:-4]: text.decode() for name, text in members.items() if name.endswith(".txt")}
    wanted = {f"{key}.{suffix}" for key in captions for suffix in ("json", "png", "safetensors", "txt")}
    assert members.keys() == wanted
    return captions


def spoil(path, damage, at):
    """Flip a bit of a file, cut it or delete it."""
    data = bytearray(path.read_bytes())
    at %= max(1, len(data))
    if damage == "delete" or not data:
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:at])
    else:
        data[at] ^= 1 << (at % 8)
        path.write_bytes(data)


TestDatasetLife = DatasetLife.TestCase
TestDatasetLife.settings = settings(
    max_examples=60,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
