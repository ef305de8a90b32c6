"""Steer Z-Image with a picture: read it with Qwen3-VL, project what was read, blend it into the conditioning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from projector.network.blend import blend_interpolate
    from projector.network.projector import Projector
    from projector.steering.extractor import VLEmbeddingExtractor
    from projector.steering.pipeline import ZImageProjectorPipeline

__all__ = ["Projector", "VLEmbeddingExtractor", "ZImageProjectorPipeline", "blend_interpolate"]

_HOMES = {
    "Projector": "projector.network.projector",
    "VLEmbeddingExtractor": "projector.steering.extractor",
    "ZImageProjectorPipeline": "projector.steering.pipeline",
    "blend_interpolate": "projector.network.blend",
}


def __getattr__(name: str) -> Any:
    """Import on first use: options and statistics are wanted where torch is not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'projector' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
