"""Samples of pictures and captions that already exist: caption → conditioning, picture → hidden states.

The conditioning is what the same caption gets in a build; the image transformer and the VAE are never loaded.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from projector.inference.text_encoder import TextEncoder, TextEncoding
from projector.making.batching import Stage
from projector.making.generated import (
    Pictured,
    PictureReader,
    PictureSource,
    finished,
    text_tensors,
)
from projector.making.reading import DTYPES, ReadingSettings, load_readers
from projector.making.shard_maker import FusedMaker
from projector.models.offload import Residence
from projector.models.resolve import ModelSource, read_ahead
from shards.errors import CorruptShardError
from shards.format.plan import PlannedSample
from shards.format.sample import Failure, ImageFormat
from shards.sources.catalogue import Catalogue
from shards.sources.item import Item
from shards.sources.picture import ImageError, Kept, kept
from shards.sources.picture_bytes import Originals, open_originals
from shards.sources.source import SourceSpec
from shards.stores.local import open_storage

# Stock readers of WebDataset take one name for all pictures of a dataset, and tell PNG from JPEG by the content.
MEMBER: ImageFormat = "jpg"
FETCHERS = 8  # pictures read and decoded side by side: a store answers many requests, Pillow lets threads run


@dataclass(frozen=True, kw_only=True)
class ImportSettings(ReadingSettings):
    """How an import makes samples; fields as in `import`, `auto` resolved."""

    max_tokens: int
    max_side: int
    batch_size: int


class ImportedPictures(PictureSource):
    """The text encoder on one device, and pictures out of a source.

    Args:
        text: the encoder.
        catalogue: where each planned sample's picture lies.
        originals: the source.
        max_side: longest side of a picture that is kept as it is, in pixels.
        batch_size, residence: see `PictureSource`.
    """

    def __init__(
        self,
        text: TextEncoder,
        catalogue: Catalogue,
        originals: Originals,
        max_side: int,
        batch_size: int,
        residence: Residence,
    ) -> None:
        super().__init__(text, batch_size, residence)
        self._catalogue, self._originals, self._max_side = catalogue, originals, max_side
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="original")

    def _picture(
        self, conditioned: Sequence[tuple[PlannedSample, TextEncoding]]
    ) -> Iterator[Pictured | Failure]:
        items = [self._item(planned) for planned, _ in conditioned]
        with Stage("image"):
            pictures = list(self._fetchers.map(self._fetch, items))
        for (planned, encoding), item, picture in zip(conditioned, items, pictures, strict=True):
            if isinstance(picture, ImageError):
                yield Failure.from_exception("image", picture)
                continue
            source = {
                "picture": item.picture,
                "place": str(item.place),
                "width": picture.original_size[0],
                "height": picture.original_size[1],
                "verbatim": picture.verbatim,
            }
            yield Pictured(
                planned,
                text_tensors(encoding, {}),
                finished(picture.pixels),
                finished(picture.data),
                MEMBER,
                source,
            )

    def _item(self, planned: PlannedSample) -> Item:
        item = self._catalogue.item(planned.index)
        if (item.identity, item.caption) != (planned.id, planned.caption):
            raise CorruptShardError(
                f"{self._catalogue.storage.root}: item {planned.index} of the catalogue is not the planned "
                f"{planned.key}; remove source/ there and run the import again"
            )
        return item

    def _fetch(self, item: Item) -> Kept | ImageError:
        try:
            return kept(self._originals.read(item.place), self._max_side)
        except ImageError as error:
            reason = str(error).removeprefix(f"{item.place}: ")
            return type(error)(f"{item.picture!r}: {reason}")


def load_import(
    root: str, spec: SourceSpec, text: ModelSource, vl: ModelSource, settings: ImportSettings
) -> FusedMaker:
    """What makes an import's shards.

    Args:
        root: of the dataset, which holds the catalogue.
        spec: the source.
        text, vl: the models.
        settings: how samples are made.

    Raises:
        CorruptShardError: the dataset's catalogue is corrupt.
    """
    residence = Residence()
    catalogue = Catalogue.open(open_storage(root))
    if catalogue is None:
        raise CorruptShardError(f"{root}: its catalogue, source/, is gone; run the import again")
    for source in (text, vl):
        read_ahead(source.here())
    encoder = TextEncoder.from_pretrained(
        text.here(),
        device=residence.loading_device,
        dtype=DTYPES[settings.dtype],
        max_tokens=settings.max_tokens,
    )
    visions = load_readers(settings, vl, text, device=residence.loading_device)
    originals, batch_size = open_originals(spec), settings.batch_size
    return FusedMaker(
        ImportedPictures(encoder, catalogue, originals, settings.max_side, batch_size, residence),
        PictureReader(visions, settings.vl_tokens, batch_size, residence),
    )
