"""Errors about options: `shards` and `projector` name the option, a job its own section before it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel

from shards.errors import OptionError, UsageError


@contextmanager
def options_of(section: str, model: type[BaseModel]) -> Iterator[None]:
    """Put a section before the option that an OptionError begins with; a context, or a decorator of a job.

    Args:
        section: what the options are called on the command line.
        model: of the section. What is no field of it stays as it is: the parameter of a function that the job called.
    """
    try:
        yield
    except OptionError as error:
        if re.split(r"\W", str(error))[0] not in model.model_fields:
            raise
        raise UsageError(f"{section}.{error}") from error
