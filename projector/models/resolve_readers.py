"""The models of a run that reads pictures and captions and makes neither: the text encoder and the VL model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projector.models.model_folder import check_complete, read_json
from projector.models.resolve import (
    OWN_MODELS,
    ModelSource,
    VisionSource,
    file_hashes,
    locate,
    own_folder,
    resolve_vision,
)
from projector.options import Models
from shards.errors import OptionError

# Of a Z-Image pipeline, what its text encoder needs; transformer and VAE may be missing.
TEXT_PARTS = {"text_encoder": "config.json", "tokenizer": "tokenizer_config.json"}


@dataclass(frozen=True)
class ReaderSources:
    """The two models.

    Attributes:
        text: a pipeline's folder, of which the text encoder and its tokenizer count.
        vl: the vision-language model.
    """

    text: ModelSource
    vl: VisionSource

    def to_json(self) -> dict[str, Any]:
        """Both as they go into the dataset's settings."""
        return {"text": self.text.to_json(), "vl": self.vl.model.to_json()}


def resolve_readers(models: Models) -> ReaderSources:
    """Find both and check that they fit together.

    Args:
        models: `tiny`, `mini`, or `image` (only its text encoder is looked at) and `vl` as local folders or hub ids.

    Returns:
        both, pinned and hashed.

    Raises:
        UsageError: missing, incomplete, pickled, of the wrong class, or of different widths.
    """
    text = resolve_text(models if isinstance(models, str) else models.image, "models.image")
    vl = resolve_vision(models if isinstance(models, str) else models.vl, "models.vl")
    config = read_json(Path(text.path) / "text_encoder" / "config.json", "models.image", Path(text.path))
    if config.get("hidden_size") != vl.hidden_size:
        raise OptionError(
            f"models: the widths differ: the text encoder's hidden_size is {config.get('hidden_size')}, the VL "
            f"model's is {vl.hidden_size}; use models of one width (2560 for the 4B ones)"
        )
    return ReaderSources(text, vl)


def resolve_text(name: str, option: str) -> ModelSource:
    """Find a pipeline of which the text encoder and its tokenizer alone are needed.

    Args:
        name: `tiny`, `mini`, a local folder or a hub id (`id@revision`).
        option: what errors call it, such as `models.image`.

    Returns:
        the pipeline, pinned and hashed.

    Raises:
        UsageError: missing, incomplete or pickled.
    """
    identity, folder, revision = (
        (f"{name}/image", own_folder(name) / "image", "")
        if name in OWN_MODELS
        else locate(option, name, tuple(TEXT_PARTS))
    )
    for part, file in TEXT_PARTS.items():
        read_json(folder / part / file, option, folder)
    check_complete(folder / "text_encoder", (), option)
    hashes = {
        f"{part}/{name}": digest for part in TEXT_PARTS for name, digest in file_hashes(folder / part).items()
    }
    return ModelSource(identity, str(folder), revision, hashes)
