"""Automatic scores of pictures: does it show what the prompt says, does it look like the reference, is there a grid.

`adherence` (to the prompt) and `fidelity` (to the reference) are attributes read from pixels where the models are the
miniature ones (`projector.evaluation.attributes`), and else other names of SigLIP's two cosines.
`text_alignment` and `style_similarity` are cosines of SigLIP embeddings, from -1 to 1, to be compared between
pictures of one reference and not read as percentages; `blockiness` needs no model
(`projector.comparison.blockiness`). Scorers of users are called by name, one float per picture and prompt.

B pictures, E width of SigLIP's embeddings.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from projector.comparison.blockiness import blockiness
from projector.evaluation.attributes import attribute_scores
from projector.evaluation.intervals import LEVEL, t_quantile
from projector.models.model_folder import check_complete, read_json
from projector.models.resolve import (
    ModelSource,
    cache_folder,
    file_hashes,
    locate,
    own_folder,
)
from shards.errors import OptionError

DEFAULT_SCORER = "google/siglip2-base-patch16-224"
TINY_SCORER, MINI_SCORER = "tiny", "mini"
SIGLIP_FILES = ("config.json", "preprocessor_config.json", "tokenizer_config.json")

Scorer = Callable[[Image.Image, str], float]


def resolve_scorer(name: str) -> ModelSource:
    """Find the SigLIP model and check it before a weight is loaded.

    Args:
        name: `tiny`, `mini`, a local folder or a hub id (`id@revision`).

    Returns:
        the model, pinned and hashed.

    Raises:
        UsageError: missing, incomplete, pickled, or no SigLIP.
    """
    if name == TINY_SCORER:
        from projector.models.tiny_siglip import RECIPE, make_tiny_siglip

        identity, revision = "tiny/siglip (random: its scores mean nothing)", ""
        folder = make_tiny_siglip(cache_folder() / f"tiny-siglip-{RECIPE}")
    elif name == MINI_SCORER:
        identity, revision, folder = "mini/siglip", "", own_folder("mini") / "siglip"
    else:
        try:
            identity, folder, revision = locate("scorer", name)
        except OptionError as error:
            raise OptionError(f"{error}; scorer none does without") from None
    kind = read_json(folder / "config.json", "scorer", folder).get("model_type")
    if kind != "siglip":  # Siglip2Model, of the naflex variants, wants patches of its own
        raise OptionError(
            f"scorer = {name!r}: holds a model of type {kind!r}; a SigLIP of fixed resolution is needed, "
            f"such as {DEFAULT_SCORER}"
        )
    check_complete(folder, SIGLIP_FILES, "scorer")
    return ModelSource(identity, str(folder), revision, file_hashes(folder))


class SiglipScorer:
    """SigLIP, fed as it was trained: text in lower case, padded on the right to its full length, without a mask.

    Args:
        model: `SiglipModel`.
        tokenizer: of the model.
        image_processor: `SiglipImageProcessorPil`, which needs no torchvision.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        self.model, self.tokenizer, self.image_processor = model.eval(), tokenizer, image_processor
        self.length = int(model.config.text_config.max_position_embeddings)

    @classmethod
    def from_pretrained(cls, path: str, *, device: str) -> "SiglipScorer":
        """Load from a folder, in float32: the model is small and differences between pictures are, too."""
        from transformers import AutoTokenizer, SiglipImageProcessorPil, SiglipModel

        model = SiglipModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
        return cls(
            model.to(device),
            AutoTokenizer.from_pretrained(path),
            SiglipImageProcessorPil.from_pretrained(path),
        )

    @torch.inference_mode()
    def embed_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(B, E) float32 unit vectors of RGB pictures."""
        pixels = self.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        found = self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output
        return F.normalize(found.float().cpu(), dim=-1)

    @torch.inference_mode()
    def embed_text(self, text: str) -> Tensor:
        """(E,) float32 unit vector; what exceeds the model's 64 tokens is cut off."""
        ids = self.tokenizer(
            text.lower(),
            padding="max_length",
            padding_side="right",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        found = self.model.get_text_features(input_ids=ids.to(self.model.device)).pooler_output
        return F.normalize(found.float().cpu(), dim=-1)[0]


def score_pictures(
    pictures: Sequence[Image.Image],
    prompt: str,
    reference: Image.Image,
    siglip: SiglipScorer | None,
    scorers: Mapping[str, Scorer],
    *,
    attributes: bool = False,
    things: int = 1,
) -> list[dict[str, float]]:
    """Every score of every picture.

    Args:
        pictures: RGB, made for one prompt and one reference.
        prompt: what they should show; empty for none, which leaves out the scores that ask for one.
        reference: what they should look like.
        siglip: None leaves its two scores out.
        scorers: of users, by the name their score gets.
        attributes: whether the pictures are of the miniature world, and judged by what they show.
        things: in the reference, if it is.

    Returns:
        scores by name, one mapping per picture.

    Raises:
        UsageError: a user's scorer fails or returns no finite number.
    """
    scores: list[dict[str, float]] = [{} for _ in pictures]
    if siglip is not None:
        style = siglip.embed_pictures([reference])[0]
        text = siglip.embed_text(prompt) if prompt else None
        for entry, picture in zip(scores, pictures, strict=True):
            seen = siglip.embed_pictures([picture])[0]
            entry["style_similarity"] = entry["fidelity"] = float(seen @ style)
            if text is not None:
                entry["text_alignment"] = entry["adherence"] = float(seen @ text)
    if attributes:
        found = attribute_scores(pictures, prompt, reference, things)
        scores = [
            {name: value for name, value in entry.items() if name not in ("adherence", "fidelity")} | read
            for entry, read in zip(scores, found, strict=True)
        ]
    for entry, picture in zip(scores, pictures, strict=True):
        entry["blockiness"] = blockiness(picture)
        if prompt:
            entry |= {name: _asked(name, scorer, picture, prompt) for name, scorer in scorers.items()}
    return scores


def load_scorers(names: Sequence[str]) -> dict[str, Scorer]:
    """Import scorers of users.

    Args:
        names: `module:attribute` each; the attribute is called with a PIL picture and a prompt and returns a float,
            larger being better.

    Returns:
        the callables by name.

    Raises:
        UsageError: not of that form, or not to be imported.
    """
    found: dict[str, Scorer] = {}
    for name in names:
        module, separator, attribute = name.partition(":")
        if not (module and separator and attribute):
            raise OptionError(
                f"scorers = {name!r}: expected module:attribute, such as my_scores:image_reward"
            )
        try:
            scorer = getattr(import_module(module), attribute)
        except Exception as error:  # an import runs other people's code, which raises what it likes
            raise OptionError(
                f"scorers = {name!r}: cannot be imported ({type(error).__name__}: {_one_line(error)}); "
                "install its module on every node, or leave it out"
            ) from None
        if not callable(scorer):
            raise OptionError(f"scorers = {name!r}: is {type(scorer).__name__}, not a callable")
        found[name] = scorer
    return found


def _asked(name: str, scorer: Scorer, picture: Image.Image, prompt: str) -> float:
    try:
        score = float(scorer(picture, prompt))
    except Exception as error:
        raise OptionError(
            f"scorers = {name!r}: failed ({type(error).__name__}: {_one_line(error)}); "
            "mend it, or leave it out"
        ) from error
    if not math.isfinite(score):
        raise OptionError(f"scorers = {name!r}: returned {score}; a finite number is needed")
    return score


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def interval(values: Sequence[float], level: float = LEVEL) -> dict[str, float]:
    """Mean and confidence interval by Student's t, which holds for few values as a bootstrap does not.

    Args:
        values: one per reference, at least one.
        level: of confidence.

    Returns:
        `mean`, `low` and `high`; all three are the mean where there is one value only.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "low": mean, "high": mean}
    half = t_quantile(len(values) - 1, level) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}
