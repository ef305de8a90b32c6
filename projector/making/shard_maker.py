"""How a shard goes through the models: in steps, between which the run is told how far it is and may stop."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from projector.making.batching import BatchMaker, make_sound, raise_if_device_is_broken
from projector.making.generated import PairSettings, PictureMaker, PictureReader, PictureSource
from projector.models.offload import Residence
from projector.models.resolve import ModelSource, ModelSources, read_ahead
from shards.format.plan import PlannedSample
from shards.format.sample import Failure, Sample

Made = TypeVar("Made")


@dataclass(frozen=True)
class Step:
    """One thing a device does on its way through a shard.

    Attributes:
        samples: at work in it.
        run: does it, and returns what it finished, in plan order over all steps: nothing, samples, or what another
            process makes samples of.
    """

    samples: Sequence[PlannedSample]
    run: Callable[[], Sequence[Any]]


class ShardMaker(ABC):
    """What leads a shard's samples through the models.

    Args:
        notes: what people should know of how it works.
    """

    def __init__(self, notes: Sequence[str] = ()) -> None:
        self.notes = tuple(notes)

    @abstractmethod
    def steps(
        self, planned: Sequence[PlannedSample], apart: Collection[str], given_up: Mapping[str, Failure]
    ) -> Iterator[Step]:
        """The steps of a shard; the same arguments give the same batches.

        Args:
            planned: the shard's samples.
            apart: ids of samples that are made alone, to find out which one kills workers.
            given_up: why samples are not made at all, by id.
        """


class InOneStage(ShardMaker):
    """One maker takes planned samples to the end.

    Args:
        maker: of them.
    """

    def __init__(self, maker: BatchMaker[PlannedSample, Any]) -> None:
        super().__init__()
        self.maker = maker

    def steps(
        self, planned: Sequence[PlannedSample], apart: Collection[str], given_up: Mapping[str, Failure]
    ) -> Iterator[Step]:
        """A step per batch."""
        for batch in batches(self.maker, planned, {*apart, *given_up}):
            yield Step(wanted(batch, given_up), partial(make_wanted, self.maker, batch, given_up))


def batches(
    maker: BatchMaker[PlannedSample, Any], planned: Sequence[PlannedSample], apart: Collection[str]
) -> Iterator[Sequence[PlannedSample]]:
    """Cut a shard into batches of the size that the maker has by then.

    Args:
        maker: whose size counts.
        planned: the shard's samples, cut in plan order from the first on.
        apart: ids of samples that stand alone; their batch mates then do too, so that the others stay as they were.
    """
    start = 0
    while start < len(planned):
        batch = planned[start : start + maker.batch_size]
        start += len(batch)
        if any(sample.id in apart for sample in batch):
            yield from ([sample] for sample in batch)
        else:
            yield batch


def wanted(batch: Sequence[PlannedSample], given_up: Mapping[str, Failure]) -> Sequence[PlannedSample]:
    """The samples of a batch that are made; one that was given up is at work in no step."""
    return [sample for sample in batch if sample.id not in given_up]


def make_wanted(
    maker: BatchMaker[PlannedSample, Made], batch: Sequence[PlannedSample], given_up: Mapping[str, Failure]
) -> list[Made | Failure]:
    """Make a batch; one that was given up stands alone in its own."""
    failure = given_up.get(batch[0].id)
    return maker.make(batch) if failure is None else [failure]


class FusedMaker(ShardMaker):
    """All models on one device.

    Args:
        pictures, reader: the two halves.
        in_turn: lead a whole shard through one and then the other; otherwise each batch goes through both.
    """

    def __init__(self, pictures: PictureSource, reader: PictureReader, *, in_turn: bool = False) -> None:
        super().__init__(pictures.notes)
        self.pictures, self.reader = pictures, reader
        self._in_turn = in_turn

    @classmethod
    def load(
        cls, sources: ModelSources, settings: PairSettings, *, one_at_a_time: bool = False
    ) -> "FusedMaker":
        """Load all models; with `one_at_a_time` only the one at work is on the device, and they work in turn."""
        residence = Residence(one_at_a_time=one_at_a_time)
        for source in (sources.image, sources.vl):
            read_ahead(source.here())
        return cls(
            PictureMaker.load(sources.image, settings, residence),
            PictureReader.load(sources, settings, residence),
            in_turn=one_at_a_time,
        )

    def steps(
        self, planned: Sequence[PlannedSample], apart: Collection[str], given_up: Mapping[str, Failure]
    ) -> Iterator[Step]:
        """Captions first; then each batch through both models, or all batches through one and then the other."""
        yield from text_steps(self.pictures, planned, apart)
        waiting: list[tuple[Sequence[PlannedSample], list[Any]]] = []
        for batch in batches(self.pictures, planned, {*apart, *given_up}):
            if self._in_turn:
                yield Step(
                    wanted(batch, given_up), partial(self._picture_for_later, waiting, batch, given_up)
                )
            else:
                yield Step(wanted(batch, given_up), partial(self.make, batch, given_up))
        for batch, pictured in waiting:
            yield Step(wanted(batch, given_up), partial(make_sound, self.reader, pictured))
            pictured.clear()

    def make(
        self, batch: Sequence[PlannedSample], given_up: Mapping[str, Failure] | None = None
    ) -> list[Sample | Failure]:
        """Samples of a batch, or why there are none (`BatchMaker.make`)."""
        pictured = make_wanted(self.pictures, batch, given_up or {})
        return make_sound(self.reader, pictured)

    def _picture_for_later(
        self,
        waiting: list[tuple[Sequence[PlannedSample], list[Any]]],
        batch: Sequence[PlannedSample],
        given_up: Mapping[str, Failure],
    ) -> list[Sample]:
        pictured = make_wanted(self.pictures, batch, given_up)
        waiting.append((batch, pictured))
        return []


class StagedMaker(ShardMaker):
    """The half that makes pictures; what it finishes is read elsewhere.

    Args:
        pictures: that half.
    """

    def __init__(self, pictures: PictureMaker) -> None:
        super().__init__(pictures.notes)
        self.pictures = pictures

    @classmethod
    def load(cls, source: ModelSource, settings: PairSettings) -> "StagedMaker":
        """Load a Z-Image pipeline for a run's settings."""
        read_ahead(source.here())
        return cls(PictureMaker.load(source, settings, Residence()))

    def steps(
        self, planned: Sequence[PlannedSample], apart: Collection[str], given_up: Mapping[str, Failure]
    ) -> Iterator[Step]:
        """Captions first, then pictures batch by batch."""
        yield from text_steps(self.pictures, planned, apart)
        for batch in batches(self.pictures, planned, {*apart, *given_up}):
            yield Step(wanted(batch, given_up), partial(make_wanted, self.pictures, batch, given_up))


def text_steps(
    pictures: PictureSource, planned: Sequence[PlannedSample], apart: Collection[str]
) -> Iterator[Step]:
    """All captions of a shard at once, where none of them is suspected of killing workers."""
    if not apart:
        yield Step(planned, partial(_encode_ahead, pictures, planned))


def _encode_ahead(pictures: PictureSource, planned: Sequence[PlannedSample]) -> list[Sample]:
    try:
        pictures.encode_ahead(planned)
    except Exception as error:  # batch by batch it fails again, and there it is one sample's failure
        raise_if_device_is_broken(error)
        torch.cuda.empty_cache()
    return []
