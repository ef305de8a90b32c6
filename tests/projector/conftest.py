"""The tiny models, made once a run, and one thread where sums are compared."""

import pytest
import torch

from projector.models.resolve import resolve_models
from projector.models.tiny import make_tiny_models
from projector.options import ModelPaths


@pytest.fixture(scope="session")
def tiny(common_folder):
    """Folder with the tiny models: `image` and `vl`."""
    return make_tiny_models(common_folder / "tiny")


@pytest.fixture(scope="session")
def tiny_sources(tiny):
    return resolve_models(ModelPaths(image=str(tiny / "image"), vl=str(tiny / "vl")))


@pytest.fixture(scope="module")
def one_thread():
    """For a module's fixtures, too. Small matrices: threads cost more than they bring, and sums are in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
