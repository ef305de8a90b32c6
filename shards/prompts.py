"""Prompts: what a sample is asked to show, from the built-in space or from a file of the user's."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# The guide's recommended spread of a training set: content types, styles and subjects.
CONTENT_TYPES = ("photograph", "illustration", "abstract art", "text-heavy image", "complex scene")
STYLES = ("photorealistic", "painterly", "flat graphic", "vintage", "minimalist")
SUBJECTS = ("people", "animals", "objects", "architecture", "nature", "abstract concepts")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One caption and its categories; a category is "" where it is not known."""

    caption: str
    content: str = ""
    style: str = ""
    subject: str = ""


@dataclass(frozen=True)
class PromptSource:
    """Prompts in order, with the hash that goes into a dataset's fingerprint."""

    name: str
    """Where they come from: `built-in` or the file's name without its folder."""
    sha256: str
    """SHA-256 over captions and categories in order; how the file wrote them down does not enter."""
    prompts: Sequence[Prompt]


def normalise_caption(caption: str) -> str:
    """The form in which captions are compared: NFKC, case folded, runs of white space as one space, stripped."""
    folded = unicodedata.normalize("NFKC", caption).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def content_hash(prompts: Iterable[Prompt]) -> str:
    """SHA-256 over captions and categories, one canonical JSON line each."""
    digest = hashlib.sha256()
    for prompt in prompts:
        line = json.dumps([prompt.caption, prompt.content, prompt.style, prompt.subject], ensure_ascii=False)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
