"""Fixtures of the storage tests: stores that must behave alike."""

import functools
import os

import botocore.loaders
import pytest

from s3_support import HASTY, servers, use
from shards.stores import s3 as s3_store
from shards.stores.local import open_storage
from shards.stores.s3 import S3Storage


@pytest.fixture(scope="session", autouse=True)
def service_models_read_once():
    """Each client reads the description of S3 again, a tenth of a second that hundreds of tests would pay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.loaders, "create_loader", functools.cache(botocore.loaders.create_loader))
        yield


@pytest.fixture
def s3(monkeypatch):
    """Open a fresh root of a server: `s3(server, proxy=…, patience=…)`, where None is the default patience."""

    def opened(server, *, proxy=None, patience=HASTY, prefix="some/where"):
        use(monkeypatch, server.env_through(proxy.endpoint if proxy else server.endpoint))
        return S3Storage(f"s3://{server.new_bucket()}/{prefix}".rstrip("/"), patience)

    return opened


@pytest.fixture(params=["local", *(pytest.param(server, marks=pytest.mark.server) for server in servers())])
def store(request, tmp_path, monkeypatch):
    """A fresh root in each kind of store, opened as users open it."""
    if request.param == "local":
        return open_storage(str(tmp_path / "root"))
    server = request.getfixturevalue(request.param)
    use(monkeypatch, server.env)
    return open_storage(f"s3://{server.new_bucket()}/some/where")


@pytest.fixture
def server(request):
    """The server that a test is parametrised with (`s3_support.EACH`)."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def dataset(make_dataset):
    """A small sound dataset, to be damaged."""
    return make_dataset()[0]


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that goes up in three parts, each as small as S3 allows."""
    monkeypatch.setattr(s3_store, "PART", 5 * s3_store.MIB)
    path = tmp_path / "large"
    path.write_bytes(os.urandom(2 * s3_store.PART + 12345))
    return path
