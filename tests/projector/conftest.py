"""The tiny models, made once a session."""

import pytest

from projector.models import resolve_models
from projector.tiny import make_tiny_models


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder with the tiny models: `image` and `vl`."""
    return make_tiny_models(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_sources(tiny):
    return resolve_models({"image": str(tiny / "image"), "vl": str(tiny / "vl")})
