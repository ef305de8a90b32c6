"""Edits of built-in prompts: what a prompt behind a reference asks for, and the caption that is then right.

A built-in prompt begins with its medium and ends with details, each phrase of which stands in the vocabulary. An edit
gives the medium another style, or a detail another value, and the partial prompt is the new phrases alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from shards.prompts.builtin import Language, PromptSpace, builtin_prompts


@dataclass(frozen=True)
class Edit:
    """A prompt for a reference, and a caption of what both together ask for."""

    prompt: str
    """Names what is new, or what stays."""
    caption: str
    """Of a picture with what the prompt names and the rest of the reference."""


def draw_prompt_edit(
    caption: str, generator: np.random.Generator, language: Language = "en", *, consistent: float = 0.25
) -> Edit | None:
    """Draw an edit of a built-in prompt.

    Args:
        caption: of the reference.
        generator: the same state gives the same edit.
        language: of the caption.
        consistent: share of edits that change nothing, with a prompt that repeats what the caption says.

    Returns:
        the edit; None where the caption holds no phrase of the vocabulary that can be changed.
    """
    found = _changeable(caption, language)
    if not found:
        return None
    chosen = [found[place] for place in generator.permutation(len(found))[: 1 + int(generator.integers(3))]]
    if generator.random() < consistent:
        return Edit(", ".join(phrase for phrase, _ in chosen), caption)
    edited, said = caption, []
    for phrase, others in chosen:
        new = others[int(generator.integers(len(others)))]
        edited = edited.replace(phrase, new, 1)
        said.append(new)
    return Edit(", ".join(said), edited)


def _changeable(caption: str, language: Language) -> list[tuple[str, tuple[str, ...]]]:
    """The phrases of a caption with what may stand in their place: its medium, then details."""
    media, details = _phrases(language)
    medium = max((phrase for phrase in media if caption.startswith(phrase)), key=len, default="")
    found = [(medium, media[medium])] if medium and media[medium] else []
    rest = caption[len(medium) :]
    parts = [part.strip(" .。") for part in rest.replace("，", ",").replace("。", ".").split(",")]
    return found + [(part, details[part]) for part in dict.fromkeys(parts) if part in details]


@cache
def _phrases(language: Language) -> tuple[Mapping[str, tuple[str, ...]], Mapping[str, tuple[str, ...]]]:
    """Of each medium, the media of other styles for the same content; of each short detail, the others of its axis."""
    space = builtin_prompts(language).prompts
    assert isinstance(space, PromptSpace)
    words: Mapping[str, Any] = space.words
    media = {
        phrase: tuple(other for name, others in styles.items() if name != style for other in others)
        for styles in words["media"].values()
        for style, phrases in styles.items()
        for phrase in phrases
    }
    details: dict[str, tuple[str, ...]] = {}
    for options in words["axes"].values():
        values = {name: list(kept) for name, kept in options.items() if name not in ("short", "long")}
        for kept in values.values():
            for form in options["short"]:
                said = [form.format(value) for value in kept]
                details |= {phrase: tuple(other for other in said if other != phrase) for phrase in said}
    return media, {phrase: others for phrase, others in details.items() if others}
