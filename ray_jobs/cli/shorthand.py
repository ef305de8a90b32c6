"""What may be written shorter: a job's own options without their section, and the two models once for every job."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from shards.errors import UsageError

MODELS = "models"
ENVIRONMENT = {"image": "ZIMAGE_IMAGE_MODEL", "vl": "ZIMAGE_VL_MODEL"}


def with_sections(argv: Sequence[str], job: str, sections: Mapping[str, type[BaseModel]]) -> list[str]:
    """Put the job's own section before options that have none: `--output x` of `build` becomes `--build.output x`.

    Args:
        argv: the words after the job's name.
        job: its name, which is that of its own section where it has one.
        sections: that it reads.
    """
    own = sections[job].model_fields if job in sections else {}

    def whole(word: str) -> str:
        first = re.split(r"[.=]", word.removeprefix("--"))[0]
        if word.startswith("--") and first in own and first not in sections:
            return f"--{job}.{word[2:]}"
        return word

    return [whole(word) for word in argv]


def take_models(argv: Sequence[str], tree: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Take the models that are given for every job out of flags and file.

    Args:
        argv: the words after the job's name.
        tree: sections of the YAML file; `models` is removed from it.

    Returns:
        the other words, and `image` and `vl` as far as they are given; flags win over the file, it over the
        environment.

    Raises:
        UsageError: a flag without a value, or an unknown key.
    """
    found = {key: os.environ[name] for key, name in ENVIRONMENT.items() if os.environ.get(name)}
    of_file = tree.pop(MODELS, {})
    if not isinstance(of_file, dict) or not of_file.keys() <= ENVIRONMENT.keys():
        raise UsageError(f"section models holds {of_file!r}; expected image and vl: folders or hub ids")
    found |= {key: str(value) for key, value in of_file.items()}
    left: list[str] = []
    words = iter(argv)
    for word in words:
        key, given, value = word.removeprefix(f"--{MODELS}.").partition("=")
        if not word.startswith(f"--{MODELS}.") or key not in ENVIRONMENT:
            left.append(word)
            continue
        found[key] = value if given else next(words, "")
        if not found[key]:
            raise UsageError(f"--{MODELS}.{key} needs a value: a folder or a hub id")
    return left, found


def lend_models(
    models: Mapping[str, str],
    argv: Sequence[str],
    tree: dict[str, Any],
    sections: Mapping[str, type[BaseModel]],
) -> None:
    """Write the models given for every job into the sections that take models and name none.

    Args:
        models: from `take_models`.
        argv: the job's words, to see which sections name their own.
        tree: sections of the YAML file; changed.
        sections: that the job reads.

    Raises:
        UsageError: a section needs both models, and one is given.
    """
    for name, section in sections.items():
        mine = tree.get(name) or {}
        if MODELS in section.model_fields:
            named = MODELS in mine or any(word.startswith(f"--{name}.{MODELS}") for word in argv)
            if not models or named:
                continue
            if absent := [key for key in ENVIRONMENT if key not in models]:
                if section.model_fields[MODELS].default is None:  # it can do without
                    continue
                raise UsageError(
                    f"models.{next(iter(models))} is given and models.{absent[0]} is not; give both, "
                    f"as flags, in the YAML file or as {ENVIRONMENT[absent[0]]}"
                )
            tree[name] = mine | {MODELS: dict(models)}
        elif "vl" in section.model_fields:
            tree[name] = {
                key: models[key] for key in models if key in section.model_fields
            } | mine  # flags win
