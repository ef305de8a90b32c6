"""How a shard goes through the models: in the steps that a builder takes (`steps`)."""

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import nn

from projector.making.batching import BatchMaker, make_sound, raise_if_device_is_broken
from projector.making.device_clock import DeviceClock
from projector.making.generated import (
    READ_TOGETHER,
    PairSettings,
    PictureMaker,
    PictureReader,
    PictureSource,
)
from projector.making.steps import STRETCH, ShardMaker, Step
from projector.models.offload import Residence
from projector.models.resolve import ModelSource, ModelSources, read_ahead
from shards.format.plan import PlannedSample
from shards.format.sample import Failure, Sample

Made = TypeVar("Made")
Found = TypeVar("Found")


class ModelMaker(ShardMaker):
    """A maker that has models.

    Args:
        modules: parts of models that the device's time goes to.
        notes: what people should know of how it works.
    """

    def __init__(self, modules: Sequence[nn.Module], notes: Sequence[str] = ()) -> None:
        super().__init__(notes)
        self._clock = DeviceClock(modules, ahead=True)

    def timed(self, work: Callable[[], Found]) -> tuple[Found, float]:
        """See `DeviceClock.timed`."""
        return self._clock.timed(work)

    def prepare_thread(self) -> None:
        """Compute in one thread on a CPU: sums must not depend on how many cores happened to be free."""
        torch.set_num_threads(1)

    def steps(
        self, planned: Sequence[PlannedSample], apart: Collection[str], given_up: Mapping[str, Failure]
    ) -> Iterator[Step]:
        """The steps of a shard; after the last one, and after each where it matters which one kills, one that waits.

        While a step is prepared the device is at the one before, whose samples are then at work in it, too.
        """
        before: Sequence[PlannedSample] = ()
        for step in self._steps(planned, apart, given_up):
            named = {sample.id for sample in before}
            yield Step((*before, *(each for each in step.samples if each.id not in named)), step.run)
            if apart:
                yield Step(step.samples, wait)
            else:
                before = step.samples
        if not apart:
            yield Step(before, wait)

    @abstractmethod
    def _steps(
        self, planned: Sequence[PlannedSample], apart: Collection[str], given_up: Mapping[str, Failure]
    ) -> Iterator[Step]:
        """The steps that make something."""


def wait() -> list[Any]:
    """Finish nothing: timed as a step, this waits for the step before it (`DeviceClock.timed`)."""
    return []


class InOneStage(ModelMaker):
    """One maker takes planned samples to the end.

    Args:
        maker: of them.
    """

    def __init__(self, maker: BatchMaker[PlannedSample, Any]) -> None:
        super().__init__(maker.modules)
        self.maker = maker

    def _steps(
        self, planned: Sequence[PlannedSample], apart: Collection[str], given_up: Mapping[str, Failure]
    ) -> Iterator[Step]:
        """A step per batch."""
        for batch in batches(lambda: self.maker.batch_size, planned, {*apart, *given_up}):
            yield Step(wanted(batch, given_up), partial(make_wanted, self.maker, batch, given_up))


def batches(
    size: Callable[[], int],
    planned: Sequence[PlannedSample],
    apart: Collection[str],
    places: Sequence[Sequence[int]] | None = None,
) -> Iterator[Sequence[PlannedSample]]:
    """Cut a shard into batches of the size that its maker has by then.

    Args:
        size: of a batch, asked before each.
        planned: the shard's samples.
        apart: ids of samples that stand alone; their batch mates then do too, so that the others stay as they were.
        places: of the samples in each batch, which is cut further where the size has shrunk; None: in plan order.
    """
    for part in places if places is not None else [range(len(planned))]:
        start = 0
        while start < len(part):
            batch = [planned[place] for place in part[start : start + size()]]
            start += len(batch)
            if any(sample.id in apart for sample in batch):
                yield from ([sample] for sample in batch)
            else:
                yield batch


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Make up batches of one length, as far as there are enough; what is over of each length shares the last ones.

    Args:
        lengths: of the samples; where all are alike, batches are in their order.
        size: of a batch.

    Returns:
        places of each batch's samples, shorter ones first.
    """
    places = sorted(range(len(lengths)), key=lambda place: lengths[place])
    alike = [list(group) for _, group in groupby(places, key=lambda place: lengths[place])]
    cuts = [len(group) // size * size for group in alike]
    whole = [
        group[start : start + size]
        for group, cut in zip(alike, cuts, strict=True)
        for start in range(0, cut, size)
    ]
    over = [place for group, cut in zip(alike, cuts, strict=True) for place in group[cut:]]
    return whole + [over[start : start + size] for start in range(0, len(over), size)]


def drawn_together(
    pictures: PictureSource, planned: Sequence[PlannedSample], apart: Collection[str]
) -> Iterator[tuple[Sequence[PlannedSample], Iterator[Sequence[PlannedSample]]]]:
    """Stretches of a shard whose pictures wait for each other, and the batches that they are made in.

    Attention runs in its fastest kernel only where the conditionings of a batch are padded to one length.

    Args:
        pictures: what makes them; a source whose batches have no length to go by has one batch in each stretch.
        planned: the shard's samples.
        apart: ids of samples that are made alone.

    Yields:
        the samples of a stretch, in plan order, and its batches.
    """
    start = 0
    while start < len(planned):
        size = pictures.batch_size
        stretch = planned[start : start + size * (STRETCH if pictures.has_lengths else 1)]
        start += len(stretch)
        places = by_length([pictures.length(sample) for sample in stretch], size)
        yield stretch, batches(lambda: pictures.batch_size, stretch, apart, places)


def wanted(batch: Sequence[PlannedSample], given_up: Mapping[str, Failure]) -> Sequence[PlannedSample]:
    """The samples of a batch that are made; one that was given up is at work in no step."""
    return [sample for sample in batch if sample.id not in given_up]


def make_wanted(
    maker: BatchMaker[PlannedSample, Made], batch: Sequence[PlannedSample], given_up: Mapping[str, Failure]
) -> list[Made | Failure]:
    """Make a batch; one that was given up stands alone in its own."""
    failure = given_up.get(batch[0].id)
    return maker.make(batch) if failure is None else [failure]


class FusedMaker(ModelMaker):
    """All models on one device.

    Args:
        pictures, reader: the two halves.
        in_turn: lead a whole shard through one and then the other; otherwise each batch goes through both.
    """

    def __init__(self, pictures: PictureSource, reader: PictureReader, *, in_turn: bool = False) -> None:
        super().__init__((*pictures.modules, *reader.modules), pictures.notes)
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

    def _steps(
        self, planned: Sequence[PlannedSample], apart: Collection[str], given_up: Mapping[str, Failure]
    ) -> Iterator[Step]:
        """Captions first; then pictures by stretches, which are read in plan order: one by one, or all at the end."""
        yield from text_steps(self.pictures, planned, apart)
        alone = {*apart, *given_up}
        pictured: dict[str, Any] = {}
        for stretch, drawn in drawn_together(self.pictures, planned, alone):
            yield from draw_steps(self.pictures, pictured, drawn, given_up)
            if not self._in_turn:
                yield from self._read(pictured, stretch, alone, given_up)
        if self._in_turn:
            yield from self._read(pictured, planned, alone, given_up)

    def make(
        self, batch: Sequence[PlannedSample], given_up: Mapping[str, Failure] | None = None
    ) -> list[Sample | Failure]:
        """Samples of a batch, or why there are none (`BatchMaker.make`)."""
        pictured = make_wanted(self.pictures, batch, given_up or {})
        return make_sound(self.reader, pictured)

    def _read(
        self,
        pictured: dict[str, Any],
        planned: Sequence[PlannedSample],
        alone: Collection[str],
        given_up: Mapping[str, Failure],
    ) -> Iterator[Step]:
        """Steps that make samples of what was pictured, in plan order."""

        def read(batch: Sequence[PlannedSample]) -> list[Sample | Failure]:
            return make_sound(self.reader, [pictured.pop(sample.id) for sample in batch])

        for batch in batches(lambda: self.reader.batch_size, planned, alone):
            yield Step(wanted(batch, given_up), partial(read, batch))


class StagedMaker(ModelMaker):
    """The half that makes pictures; what it finishes is read elsewhere.

    Args:
        pictures: that half.
        read_together: pictures that are handed on together, and read together there.
    """

    def __init__(self, pictures: PictureMaker, read_together: int) -> None:
        super().__init__(pictures.modules, pictures.notes)
        self.pictures, self._read_together = pictures, read_together

    @classmethod
    def load(cls, source: ModelSource, settings: PairSettings) -> "StagedMaker":
        """Load a Z-Image pipeline for a run's settings."""
        read_ahead(source.here())
        return cls(PictureMaker.load(source, settings, Residence()), settings.batch_size or READ_TOGETHER)

    def _steps(
        self, planned: Sequence[PlannedSample], apart: Collection[str], given_up: Mapping[str, Failure]
    ) -> Iterator[Step]:
        """Captions first, then pictures batch by batch; they are handed on in the batches that `FusedMaker` reads.

        Sums of other batches are rounded in other ways, and a placement decides no byte.
        """
        yield from text_steps(self.pictures, planned, apart)
        alone = {*apart, *given_up}
        pictured: dict[str, Any] = {}

        def hand_on(batch: Sequence[PlannedSample]) -> list[Any]:
            return [pictured.pop(sample.id) for sample in batch]

        for stretch, drawn in drawn_together(self.pictures, planned, alone):
            waiting = deque(batches(lambda: self._read_together, stretch, alone))
            for step in draw_steps(self.pictures, pictured, drawn, given_up):
                yield step
                while waiting and all(sample.id in pictured for sample in waiting[0]):
                    ready = waiting.popleft()
                    yield Step(wanted(ready, given_up), partial(hand_on, ready))


def draw_steps(
    pictures: PictureSource,
    pictured: dict[str, Any],
    drawn: Iterator[Sequence[PlannedSample]],
    given_up: Mapping[str, Failure],
) -> Iterator[Step]:
    """A step per batch of pictures, and one that waits for the last; see `draw`."""
    for batch in drawn:
        yield Step(wanted(batch, given_up), partial(draw, pictures, pictured, batch, given_up))
    yield Step((), wait)


def draw(
    pictures: PictureSource,
    pictured: dict[str, Any],
    batch: Sequence[PlannedSample],
    given_up: Mapping[str, Failure],
) -> list[Sample]:
    """Make a batch's pictures and keep them by the samples' ids; no sample is finished by that."""
    made = make_wanted(pictures, batch, given_up)
    pictured |= {sample.id: result for sample, result in zip(batch, made, strict=True)}
    return []


def text_steps(
    pictures: PictureSource, planned: Sequence[PlannedSample], apart: Collection[str]
) -> Iterator[Step]:
    """All captions of a shard at once, where none of them is suspected of killing workers.

    They are waited for: were the device still at them, a death in the first batch of pictures would be theirs.
    """
    if not apart:
        yield Step(planned, partial(_encode_ahead, pictures, planned))
        yield Step(planned, wait)


def _encode_ahead(pictures: PictureSource, planned: Sequence[PlannedSample]) -> list[Sample]:
    try:
        pictures.encode_ahead(planned)
    except Exception as error:  # batch by batch it fails again, and there it is one sample's failure
        raise_if_device_is_broken(error)
        torch.cuda.empty_cache()
    return []
