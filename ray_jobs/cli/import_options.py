"""The options of `import`."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from projector.options import Models
from ray_jobs.cli.run_options import PlannedOptions

if TYPE_CHECKING:
    from shards.sources.filters import Rules


def _listed(words: object) -> object:
    """A single word as a list of one."""
    return [words] if isinstance(words, str) and not words.startswith("[") else words


def _kind(word: object) -> object:
    """`webdataset` is what `tars` were called first."""
    return "tars" if word == "webdataset" else word


class ImportOptions(PlannedOptions):
    """Which pictures and captions to take over, how, and where to."""

    source: str = ""
    """coco: captions annotations (JSON); folder: of pictures; else a folder, file or pattern ({000..123}, *)."""
    kind: Annotated[Literal["folder", "coco", "tars", "parquet"] | None, BeforeValidator(_kind)] = None
    """`coco`, `folder` (pictures with captions beside them), `tars` (img2dataset, LAION) or `parquet`."""
    images: str = ""
    """coco: folder or zip of the pictures; parquet with paths: the folder they start from, absent: the source."""
    output: str = ""
    """Root of the new dataset: a local folder or s3://bucket/prefix."""
    samples: int | None = Field(None, gt=0)
    """Planned samples in all, the first of the source; absent: all that it holds."""
    captions: Literal["first", "all"] = "first"
    """Of several captions of a picture: the first, or all, as samples that stand in one split."""
    caption_column: str | None = None
    """Where the captions stand, in .json, metadata or parquet; absent: .txt files, or caption, text or prompt."""
    image_column: str | None = None
    """parquet, metadata: pictures' bytes, structs with bytes, or paths; absent: image, jpg, path, file_name, …"""
    min_side: int | None = Field(None, gt=0)
    """Leave out pictures whose shorter side is smaller, by the columns width and height, in pixels."""
    max_aspect: float | None = Field(None, ge=1.0)
    """Leave out pictures whose long side is more than so many times the short one, by the columns width and height."""
    language: Annotated[list[str], BeforeValidator(_listed)] = Field([])
    """Leave out captions in other languages than these, by their column."""
    language_column: str | None = None
    """Column of the language; absent: language, or lang."""
    min_aesthetic: float | None = None
    """Leave out pictures of a lower aesthetic score."""
    aesthetic_column: str | None = None
    """Column of that score; absent: aesthetic, or aesthetic_score."""
    min_similarity: float | None = None
    """Leave out pairs of picture and caption of a lower similarity, such as CLIP's."""
    similarity_column: str | None = None
    """Column of the similarity; absent: similarity, or similarity_score."""
    max_side: int = Field(1024, ge=32, le=8192)
    """Larger pictures are shrunk until their longer side has so many pixels; a 1024² picture is 1,024 VL tokens."""
    batch_size: int = Field(4, gt=0)
    """Pictures read together on one device; halved when memory runs out."""
    models: Models = "tiny"
    """`tiny`, or a mapping with `image`, of which only the text encoder is loaded, and `vl`."""
    samples_per_shard: int = Field(128, gt=0, le=9999)
    """Samples in a full shard; with two layers and both text modes one of a 1024² picture takes 23 MB."""

    @property
    def rules(self) -> "Rules":
        """What is taken of it."""
        from shards.sources.filters import (
            Rules,
        )  # draws in numpy, which no mistake in options should wait for

        return Rules(
            captions=self.captions,
            caption_column=self.caption_column,
            image_column=self.image_column,
            min_side=self.min_side,
            max_aspect=self.max_aspect,
            language=tuple(self.language),
            language_column=self.language_column,
            min_aesthetic=self.min_aesthetic,
            aesthetic_column=self.aesthetic_column,
            min_similarity=self.min_similarity,
            similarity_column=self.similarity_column,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
        )
