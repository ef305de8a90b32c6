"""Everything that can be wrong with a dataset at rest, found by reading all of it once, shards in parallel."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from shards.dataset.dataset import DATASET, GROWTH_NAME, MANIFEST, Dataset
from shards.dataset.run_records import RUN_NAME
from shards.errors import CorruptShardError
from shards.format.commit import COMMIT_NAME, Commit, shard_of, tar_key
from shards.format.plan import planned_count
from shards.format.sample import Expected
from shards.sources.catalogue import FOLDER, RECORD, Catalogue
from shards.stores.local import open_storage
from shards.tools.dataset_card import CARD
from shards.tools.verify_shard import Examined, Problem, examine


@dataclass
class Findings:
    """What a verification saw.

    Attributes:
        shards, samples, bytes: read.
        planned: samples that the growth records promise.
        accounted: samples and failures in commits.
        problems: in order of shards.
    """

    shards: int = 0
    samples: int = 0
    bytes: int = 0
    planned: int = 0
    accounted: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every planned sample is in a commit, made or failed."""
        return self.accounted == self.planned


def verify(root: str, *, workers: int = 1) -> Findings:
    """Read and check a whole dataset.

    Args:
        root: of the dataset.
        workers: processes that read shards.

    Returns:
        what was seen; no problems when all is well.

    Raises:
        UsageError: there is no dataset.
    """
    dataset = Dataset.open(open_storage(root))
    commits, findings = _commits(dataset)
    seen_ids: dict[str, str] = {}
    seen_captions: dict[str, tuple[str, str]] = {}
    expected = expected_of(dataset)
    for commit, found in zip(commits, _read_all(root, commits, expected, workers), strict=True):
        findings.problems += found.problems
        findings.shards += 1
        findings.samples += len(found.rows)
        findings.bytes += found.bytes
        for identity, caption, key in found.captions:
            if identity in seen_ids:
                findings.problems.append(
                    Problem(commit.name, key, f"id {identity} stands in {seen_ids[identity]} too")
                )
            seen_ids[identity] = key
            split, other = seen_captions.setdefault(caption, (commit.split, key))
            if split != commit.split:
                findings.problems.append(
                    Problem(commit.name, key, f"its caption stands in two splits, in {other} too")
                )
    catalogue, problems = _catalogue(dataset)
    findings.problems += [*problems, *_foreign(dataset, commits, catalogue)]
    findings.accounted = sum(commit.samples + commit.failed for commit in commits)
    findings.planned = planned_count(dataset.segments())
    return findings


def expected_of(dataset: Dataset) -> Expected:
    """What the dataset's settings promise of every sample."""
    settings = dataset.settings
    width, height, max_side = dataset.image_size
    return Expected(
        text_modes=tuple(settings["text_modes"]),
        layers=tuple(settings["layers"]),
        width=width,
        height=height,
        max_side=max_side,
        imported="import" in settings,
        readers=tuple(settings.get("readers", ("vl",))),
        latents=bool(settings.get("latents", False)),
    )


def _commits(dataset: Dataset) -> tuple[list[Commit], Findings]:
    """Commits that can be read, and what is wrong with the others; the files themselves, not the manifest."""
    findings, commits = Findings(), []
    for name in sorted(dataset.committed()):
        try:
            commit = Commit.from_json(dataset.commit_file(name))
            if (commit.name, commit.tar) != (name, tar_key(name)):
                raise ValueError(f"it names {commit.name} and {commit.tar}")
        except (ValueError, TypeError, AttributeError, CorruptShardError) as error:
            findings.problems.append(Problem(name, "", f"its commit is corrupt: {error}"))
            continue
        if commit.fingerprint != dataset.fingerprint:
            findings.problems.append(Problem(name, "", "its commit carries another dataset's fingerprint"))
        commits.append(commit)
    return commits, findings


def _read_all(root: str, commits: list[Commit], expected: Expected, workers: int) -> Iterator[Examined]:
    if workers == 1:
        storage = open_storage(root)
        yield from (examine(storage, commit, expected) for commit in commits)
        return
    with ProcessPoolExecutor(max_workers=workers) as pool:
        yield from pool.map(_examine_at, [root] * len(commits), commits, [expected] * len(commits))


def _examine_at(root: str, commit: Commit, expected: Expected) -> Examined:
    return examine(open_storage(root), commit, expected)


def _catalogue(dataset: Dataset) -> tuple[set[str], list[Problem]]:
    """Keys of an imported dataset's catalogue, and what is wrong with it."""
    try:
        catalogue = Catalogue.open(dataset.storage)
    except CorruptShardError as error:
        return {entry.key for entry in dataset.storage.list(FOLDER)}, [Problem(RECORD, "", str(error))]
    if catalogue is None:
        return set(), []
    return catalogue.keys(), [Problem(key, "", what) for key, what in catalogue.problems()]


def _foreign(dataset: Dataset, commits: Iterable[Commit], catalogue: set[str]) -> list[Problem]:
    """Files that belong to nothing; uncommitted leftovers are told apart, since gc removes them."""
    own = {DATASET, MANIFEST, "_lease.json", CARD, *catalogue}
    for commit in commits:
        own |= {commit.tar, commit.parquet, commit.dead_letters}
    problems = []
    for entry in dataset.storage.list():
        if entry.key in own or _is_record(entry.key):
            continue
        if shard_of(entry.key):
            continue
        problems.append(Problem(entry.key, "", "a foreign file; nothing of this dataset names it"))
    return problems


def _is_record(key: str) -> bool:
    """Whether a key is a commit's, a growth record's or a run's."""
    return any(name.fullmatch(key) for name in (COMMIT_NAME, GROWTH_NAME, RUN_NAME))
