"""Prompts: a caption and where it stands in the prompt space, and where a run's prompts come from."""

from collections.abc import Sequence
from dataclasses import dataclass

from shards.format.plan import sample_id
from shards.format.splits import normalise_caption


@dataclass(frozen=True)
class Prompt:
    """A caption and where it stands in the prompt space; categories are empty where unknown."""

    caption: str
    content: str = ""
    style: str = ""
    subject: str = ""

    @property
    def identity(self) -> str:
        """The sample's id: the same caption is the same sample, whatever its categories."""
        return sample_id(self.caption)

    @property
    def group(self) -> str:
        """The same words never stand in two splits."""
        return normalise_caption(self.caption)


@dataclass(frozen=True)
class PromptSource:
    """Where prompts come from.

    Attributes:
        name: `builtin` or the file's name.
        sha256: of a file over captions and categories, in order; of the built-in space over its vocabulary.
        prompts: in the order in which a plan takes them.
        notes: what was left out, for people.
    """

    name: str
    sha256: str
    prompts: Sequence[Prompt]
    notes: tuple[str, ...] = ()
