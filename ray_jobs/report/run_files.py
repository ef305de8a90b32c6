"""What lies in a run. Its files may be old, broken or foreign: what cannot be read is noted, not raised."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from projector.network.checkpoint import CONFIG, EVALUATION, METRICS, SUMMARY
from ray_jobs.report.run_schema import Comparison, Epoch, Evaluation, Ladder, Summary
from shards.dataset.dataset import DATASET, Dataset
from shards.errors import CorruptShardError, StorageError, UsageError
from shards.format.splits import SPLITS
from shards.stores.local import open_storage
from shards.stores.store import MAX_RECORD, Storage, read_json_object

COMPARISON = "compare.json"
CARD = "README.md"  # of what `export` writes
LADDER = "ladder.json"
DEPTH = 2  # levels below the root in which files are looked for: deeper are checkpoints and pictures
OF_DATASETS = ("_commit", "_plan", "failed", *SPLITS)  # may hold as many objects as there are shards
OF_LADDERS = ("curve", "layers")  # trainings that are points of a curve and rows of a table
TELLING = (
    "mse",
    "mse_standardized",
    "cosine_similarity",
    "per_dim_correlation",
)  # of one projector from another
UNREADABLE = (UsageError, StorageError, CorruptShardError)


@dataclass(frozen=True)
class Training:
    """One trained projector: the lines of its metrics.jsonl, its summary.json and its config.json."""

    lines: tuple[Epoch, ...]
    summary: Summary
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What lies under a run's root.

    Attributes:
        name: last part of the root.
        storage: the root.
        datasets: in it; where it has none, those that its projectors were trained on.
        trainings, evaluations, ladders: by the folder they lie in, or the run's name where that is the root itself.
        comparisons: by the folder that their pictures' paths start from; "" is the root.
        notes: a sentence for each thing that could not be read.
    """

    name: str
    storage: Storage
    datasets: tuple[Dataset, ...]
    trainings: Mapping[str, Training]
    evaluations: Mapping[str, Evaluation]
    comparisons: Mapping[str, Comparison]
    ladders: Mapping[str, Ladder]
    notes: tuple[str, ...]


def find_run(storage: Storage) -> Run:
    """Look at what lies under a run's root, in itself and two levels down.

    Args:
        storage: the root.

    Returns:
        everything readable, and notes on the rest.

    Raises:
        UsageError: nothing to report on lies there.
    """
    return _Finder(storage).run()


class _Finder:
    """Reads a run's files and keeps notes."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.run_name = storage.root.rstrip("/").rpartition("/")[2]
        self.notes: list[str] = []

    def run(self) -> Run:
        """See `find_run`."""
        places = list(self.places())
        trainings = {self.name(place): self.training(place) for place, names in places if METRICS in names}
        datasets = self.datasets([place for place, names in places if DATASET in names], trainings)
        found = {
            kind: {
                place: content
                for place, names in places
                if kind in names and (content := self.parsed(schema, join(place, kind)))
            }
            for kind, schema in ((EVALUATION, Evaluation), (COMPARISON, Comparison), (LADDER, Ladder))
        }
        # A folder to publish holds a copy of a projector, which is no other projector.
        published = {place for place in found[EVALUATION] if CARD in dict(places)[place]}
        originals = [content for place, content in found[EVALUATION].items() if place not in published]
        found[EVALUATION] = {
            place: content
            for place, content in found[EVALUATION].items()
            if place not in published or not any(is_copy(content, original) for original in originals)
        }
        if not (datasets or trainings or any(found.values()) or self.notes):
            raise UsageError(
                f"report.run = {self.storage.root!r}: no {DATASET}, {METRICS} or {EVALUATION} there or two levels "
                "down; give the root that holds a run's outputs"
            )
        if not (datasets or trainings or any(found.values())):
            raise UsageError(f"report.run = {self.storage.root!r}: nothing readable there: {self.notes[0]}")
        return Run(
            self.run_name,
            self.storage,
            datasets,
            trainings,
            {self.name(place): content for place, content in found[EVALUATION].items()},
            found[COMPARISON],
            {self.name(place): content for place, content in found[LADDER].items()},
            tuple(self.notes),
        )

    def places(self, place: str = "", depth: int = DEPTH) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Folders and the names of their objects; the shards of a dataset are not listed."""
        folder = self.storage.look(place)
        yield place, folder.objects
        if depth:
            for name in folder.folders:
                of_dataset = DATASET in folder.objects and name in OF_DATASETS
                if not of_dataset and not (LADDER in folder.objects and name in OF_LADDERS):
                    yield from self.places(join(place, name), depth - 1)

    def name(self, place: str) -> str:
        """What a folder is called in the report."""
        return place or self.run_name

    def training(self, place: str) -> Training:
        """A trained projector, as far as its files can be read."""
        key = join(place, METRICS)
        lines: tuple[Epoch, ...] = ()
        try:
            text = self.storage.get_bytes(key, MAX_RECORD).decode()
            lines = tuple(
                Epoch.model_validate(json.loads(line)) for line in text.splitlines() if line.strip()
            )
        except (ValueError, RecursionError, *UNREADABLE) as error:
            self.note(key, error)
        config_key = join(place, CONFIG)
        config: Mapping[str, Any] = {}
        if self.storage.stat(config_key):
            try:
                config = read_json_object(self.storage, config_key)
            except UNREADABLE as error:
                self.note(config_key, error)
        summary_key = join(place, SUMMARY)
        summary = self.parsed(Summary, summary_key) if self.storage.stat(summary_key) else None
        return Training(lines, summary or Summary(), config)

    def parsed(self, schema: type[Any], key: str) -> Any:
        """A file's content, None and a note where it is none."""
        try:
            return schema.model_validate(read_json_object(self.storage, key))
        except (ValidationError, *UNREADABLE) as error:
            self.note(key, error)
        return None

    def datasets(self, places: list[str], trainings: Mapping[str, Training]) -> tuple[Dataset, ...]:
        """The datasets that open and whose commits can be read."""
        roots = [join(self.storage.root, place).rstrip("/") for place in places]
        if not roots:
            options = (training.config.get("options") for training in trainings.values())
            told = {str(option.get("data") or "") for option in options if isinstance(option, dict)}
            roots = sorted(told - {""})
        opened = []
        for root in roots:
            try:
                dataset = Dataset.open(open_storage(root))
                dataset.commits()
                opened.append(dataset)
            except (OSError, ValueError, *UNREADABLE) as error:
                self.note(f"dataset {root}", error)
        return tuple(opened)

    def note(self, what: str, error: Exception) -> None:
        """Keep a sentence on what could not be read, without a traceback."""
        self.notes.append(f"{what} could not be read: {reason(error)}")


def is_copy(one: Evaluation, other: Evaluation) -> bool:
    """Whether two evaluations are of the same projector on the same pairs, be it measured again by another version."""
    if (one.split, one.pairs) != (other.split, other.pairs):
        return False
    ours = [
        [getattr(figures, name) for name in TELLING] if (figures := content.methods.get("projector")) else []
        for content in (one, other)
    ]
    return len(ours[0]) == len(ours[1]) and all(
        (a is None and b is None) or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-4))
        for a, b in zip(*ours, strict=True)
    )


def reason(error: Exception) -> str:
    """One line on why; of a validation error the first place and its message."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    return (str(error).splitlines() or [type(error).__name__])[0]


def join(place: str, name: str) -> str:
    """A key below a folder, which is "" for the root."""
    return f"{place}/{name}" if place else name
