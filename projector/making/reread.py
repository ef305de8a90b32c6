"""New hidden states of pictures that already exist: samples of a dataset to samples of another.

Picture, caption, conditioning and latents are taken over bit for bit; only the vision-language model runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from projector.inference.text_encoder import SampleError
from projector.inference.vision_encoder import VisionEncoding
from projector.making.batching import BatchMaker, Stage
from projector.making.reading import ReadingSettings, load_readers, vision_tensors
from projector.making.shard_maker import InOneStage
from projector.models.resolve import ModelSource
from shards.dataset.dataset import Dataset
from shards.dataset.read import read_shard
from shards.errors import CorruptShardError
from shards.format.commit import Commit
from shards.format.plan import PlannedSample
from shards.format.sample import LATENTS, Failure, Sample, make_sample, open_image
from shards.stores.local import open_storage

KEPT_TENSORS = ("text", "text.kind")  # and the latents, where the source has them


@dataclass(frozen=True, kw_only=True)
class RereadSettings(ReadingSettings):
    """How pictures are read again."""

    batch_size: int


class RereadMaker(BatchMaker[PlannedSample, Sample]):
    """The vision-language model on one device, and the dataset whose pictures it reads.

    Args:
        root: of the dataset that holds the pictures.
        vl: the model.
        pipeline: whose text encoder the graft takes; None without a graft.
        settings: how they are read.
    """

    def __init__(
        self, root: str, vl: ModelSource, pipeline: ModelSource | None, settings: RereadSettings
    ) -> None:
        super().__init__(settings.batch_size)
        self.settings = settings
        self._dataset = Dataset.open(open_storage(root))
        self._kept = KEPT_TENSORS + ((LATENTS,) if self._dataset.settings.get("latents") else ())
        self._shard = ""
        self._stream: Iterator[Sample] = iter(())
        self._held: dict[str, Sample] = {}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._visions = load_readers(settings, vl, pipeline, device=device)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Of its models."""
        return tuple(module for vision in self._visions.values() for module in vision.modules)

    def _make(self, batch: Sequence[PlannedSample]) -> list[Sample | Failure]:
        originals = self._originals(batch)
        with Stage("image"):
            images = [open_image(original.image).convert("RGB") for original in originals]
        captions = [original.caption for original in originals]
        with Stage("vl"):
            seen = [vision.encode(images, captions) for vision in self._visions.values()]
        return [
            self._whole(planned, original, dict(zip(self._visions, states, strict=True)))
            for planned, original, *states in zip(batch, originals, *seen, strict=True)
        ]

    def _whole(
        self, planned: PlannedSample, original: Sample, seen: Mapping[str, VisionEncoding | SampleError]
    ) -> Sample | Failure:
        """A sample with what its readers saw."""
        tensors = vision_tensors(seen, self.settings.vl_tokens, original.tensors)
        if isinstance(tensors, Failure):
            return tensors
        with Stage("check"):
            return make_sample(
                planned,
                image=original.image,
                image_format=original.image_format,
                tensors=tensors,
                source=original.metadata.get("source"),
            )

    def _originals(self, batch: Sequence[PlannedSample]) -> list[Sample]:
        """The samples as they are in the source; CorruptShardError where it does not hold what was planned."""
        wanted = {planned.key for planned in batch}
        if not wanted <= self._held.keys():  # a batch taken apart is asked for again in pieces
            self._held = self._read(f"{batch[0].split}-{batch[0].shard:06d}", wanted)
        for planned in batch:
            found = self._held[planned.key]
            if (found.caption, found.metadata["seed"]) != (planned.caption, planned.seed):
                raise CorruptShardError(
                    f"{self._dataset.storage.root}: sample {planned.key} is not the one that its parquet names; "
                    "run `python -m shards verify` on it"
                )
        return [self._held[planned.key] for planned in batch]

    def _read(self, shard: str, wanted: set[str]) -> dict[str, Sample]:
        """Samples of a shard by key; reads on where the last batch ended, since a whole shard may not fit in memory."""
        found = self._take(wanted) if shard == self._shard else {}
        if len(found) < len(wanted):  # another shard, or one begun anew
            commit = Commit.from_json(self._dataset.commit_file(shard))
            self._shard = shard
            self._stream = read_shard(
                self._dataset.storage, commit, tensors=self._kept, image_size=self._dataset.image_size
            )
            found = self._take(wanted)
        if absent := sorted(wanted - found.keys()):
            raise CorruptShardError(
                f"{self._dataset.storage.root}: {shard} lacks {absent[0]}, which its parquet names; "
                "run `python -m shards verify` on it"
            )
        return found

    def _take(self, wanted: set[str]) -> dict[str, Sample]:
        found: dict[str, Sample] = {}
        try:
            for sample in self._stream:
                if sample.key in wanted:
                    found[sample.key] = sample
                if len(found) == len(wanted):
                    break
        except CorruptShardError as error:  # two datasets are at work: say which one it is
            raise CorruptShardError(f"source {self._dataset.storage.root}: {error}") from error
        return found


def rereading(
    root: str, vl: ModelSource, pipeline: ModelSource | None, settings: RereadSettings
) -> InOneStage:
    """Shards made by a `RereadMaker`; same arguments."""
    return InOneStage(RereadMaker(root, vl, pipeline, settings))
