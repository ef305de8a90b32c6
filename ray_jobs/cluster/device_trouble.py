"""What becomes of an actor whose device cannot load its models, or breaks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from projector.making.broken_device import DeviceBrokenError, device_is_broken
from ray_jobs.cli.log import log_line
from shards.errors import StorageError


class CannotLoadError(StorageError):
    """A device on which the models cannot be loaded; others may do."""


@contextmanager
def loading(what: str, kind: type[StorageError]) -> Iterator[None]:
    """Turn what torch says of a device that is full, broken or occupied into an error of one line."""
    try:
        yield
    except RuntimeError as error:
        raise kind(f"{what}: {' '.join(str(error).split())[:500]}") from error


@contextmanager
def ending_with_the_device() -> Iterator[None]:
    """End this process when its GPU is broken: every later sample would fail here, and Ray starts another process."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, DeviceBrokenError) and not device_is_broken():
            raise
        log_line("device broken, process ends", error=str(error))
        os._exit(1)
