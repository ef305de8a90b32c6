"""Pictures with and without the projector: one case, one method, one alpha at a time; then their scores and grid.

S tokens read from a picture, T text tokens, D hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from PIL import Image
from torch import Tensor

from projector.comparison.cases import Case
from projector.comparison.grid import comparison_grid
from projector.comparison.scores import SiglipScorer, load_scorers, score_pictures
from projector.evaluation.baselines import Method, TrainStatistics
from projector.models.image_generator import ImageGenerator
from projector.models.offload import Residence
from projector.models.resolve import ModelSource, ModelSources
from projector.models.text_encoder import SampleError, TextEncoder, special_token_in, templated
from projector.network.blend import BLENDS, Blend
from projector.network.projector import Projector
from projector.steering.extractor import VLEmbeddingExtractor
from shards.errors import StorageError, UsageError
from shards.format.sample import as_png, open_image
from shards.stores.local import open_storage
from shards.stores.store import Storage

TEXT_ONLY = "text"
PROJECTED = "projector"
UNTRAINED: Mapping[str, Method] = {"identity": Method(lambda vl: vl)}  # what needs no statistics


@dataclass(frozen=True)
class CompareSettings:
    """How pictures are made; fields as in `compare`, `auto` resolved."""

    height: int
    width: int
    steps: int
    guidance: float
    max_tokens: int
    dtype: str
    blend: Blend


@dataclass(frozen=True)
class CompareSpec:
    """Everything a worker is told; small and picklable.

    Attributes:
        root: of the output.
        checkpoint: root of the projector.
        models: both models.
        siglip: None leaves its scores out.
        scorers: `module:attribute` each.
        settings: how pictures are made.
        reference: statistics for the baselines; None where no method needs them.
        one_at_a_time: whether only the model at work is on the device, as in a build with placement `offload`.
    """

    root: str
    checkpoint: str
    models: ModelSources
    siglip: ModelSource | None
    scorers: tuple[str, ...]
    settings: CompareSettings
    reference: TrainStatistics | None
    one_at_a_time: bool = False


def columns_of(methods: Sequence[str], alphas: Sequence[float]) -> list[tuple[str, float]]:
    """The pictures of a case as (method, alpha); at alpha 0 all methods give the same, which is made once."""
    text = [(TEXT_ONLY, 0.0)] if 0.0 in alphas else []
    return text + [(method, alpha) for method in methods for alpha in alphas if alpha > 0]


def check_prompts(prompts: Sequence[str], models: ModelSources, max_tokens: int) -> None:
    """Refuse prompts that a model cannot take, by their tokenizers alone.

    Raises:
        UsageError: too long, or with a special token spelled out.
    """
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(models.image.path, subfolder="tokenizer")
    vision = AutoTokenizer.from_pretrained(models.vl.path)
    for prompt in prompts:
        problem = templated(text, prompt, max_tokens)
        if not isinstance(problem, SampleError) and (token := special_token_in(vision, prompt)):
            problem = SampleError(f"caption holds the special token {token!r}; remove it from the prompt")
        if isinstance(problem, SampleError):
            raise UsageError(f"prompt {prompt[:80]!r}: {problem}")


class Comparer:
    """The models of a comparison on one device, each loaded when it is first needed.

    Args:
        spec: what to compare.
    """

    def __init__(self, spec: CompareSpec) -> None:
        self.spec = spec
        self._residence = Residence(one_at_a_time=spec.one_at_a_time)
        self._dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[spec.settings.dtype]
        self._conditionings = lru_cache(maxsize=1)(self._read)  # pictures come case by case

    @cached_property
    def _storage(self) -> Storage:
        return open_storage(self.spec.root)

    @cached_property
    def _text(self) -> TextEncoder:
        return TextEncoder.from_pretrained(
            self.spec.models.image.here(),
            device=self._residence.loading_device,
            dtype=self._dtype,
            max_tokens=self.spec.settings.max_tokens,
            quantize=self._projector.quantize,
        )

    @cached_property
    def _images(self) -> ImageGenerator:
        settings = self.spec.settings
        if settings.guidance > 0:
            self._residence.let_in(self._text)
        return ImageGenerator.from_pretrained(
            self.spec.models.image.here(),
            device=self._residence.loading_device,
            dtype=self._dtype,
            height=settings.height,
            width=settings.width,
            steps=settings.steps,
            guidance=settings.guidance,
            negative=self._text.empty_prompt() if settings.guidance > 0 else None,
        )

    @cached_property
    def _vision(self) -> VLEmbeddingExtractor:
        return VLEmbeddingExtractor.from_pretrained(
            self.spec.models.vl.here(),
            self.spec.checkpoint,
            device=self._residence.loading_device,
            dtype=self._dtype,
            language=self.spec.models.image.here() if self._projector.reader == "graft" else None,
        )

    @cached_property
    def _projector(self) -> Projector:
        return Projector.from_pretrained(self.spec.checkpoint)

    @cached_property
    def _baselines(self) -> Mapping[str, Method]:
        return UNTRAINED if self.spec.reference is None else self.spec.reference.baselines()

    @cached_property
    def _siglip(self) -> SiglipScorer | None:
        found = self.spec.siglip
        return SiglipScorer.from_pretrained(found.here(), device=self._residence.device) if found else None

    def make(self, case: Case, method: str, alpha: float) -> None:
        """Make one picture and put it on storage.

        Args:
            case: prompt, reference and seed.
            method: `text`, `projector` or a baseline's name.
            alpha: how much of the reference is blended in.
        """
        text, kind, raw, projected = self._conditionings(case)
        if method == TEXT_ONLY:
            conditioning = text
        else:
            vl = projected if method == PROJECTED else self._baselines[method].apply(raw.float().cpu())
            conditioning = BLENDS[self.spec.settings.blend](vl.to(text), text, alpha, kind)
        self._residence.let_in(self._images)
        picture = self._images.generate([conditioning], [case.seed])[0]
        self._storage.put_bytes(case.picture(method, alpha), as_png(picture))

    def _read(self, case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Text (T, D) and its rows' kinds (T,), and the reference's tokens (S, D), raw and projected."""
        self._residence.let_in(self._text)
        encoding = self._text.encode([case.prompt])[0]
        if isinstance(encoding, SampleError):
            raise UsageError(f"prompt {case.prompt[:80]!r}: {encoding}")
        self._residence.let_in(self._vision)
        seen = self._vision.extract(
            self._picture(case.reference),
            None if self._projector.text_mode == "none" else case.prompt,
            hidden_layer=self._projector.layer,
        )
        return encoding.embeddings, encoding.kind, seen.raw, seen.embeddings

    def judge(self, case: Case, methods: Sequence[str], alphas: Sequence[float]) -> list[dict[str, float]]:
        """Score a case's pictures and put its grid on storage.

        Args:
            case: all of whose pictures are there.
            methods: rows of the grid.
            alphas: columns of the grid.

        Returns:
            scores by name, one mapping for each of `columns_of`.
        """
        columns = columns_of(methods, alphas)
        pictures = {column: self._picture(case.picture(*column)) for column in columns}
        reference = self._picture(case.reference)
        shown = pictures | {(method, 0.0): pictures[TEXT_ONLY, 0.0] for method in methods if 0.0 in alphas}
        settings = self.spec.settings
        note = f"blend {settings.blend}, {settings.steps} steps, guidance {settings.guidance:g}"
        grid = comparison_grid(case, reference, methods, alphas, shown, note)
        self._storage.put_bytes(case.grid, as_png(grid))
        scorers = load_scorers(self.spec.scorers)
        return score_pictures(list(pictures.values()), case.prompt, reference, self._siglip, scorers)

    def _picture(self, key: str) -> Image.Image:
        try:
            return open_image(self._storage.get_bytes(key)).convert("RGB")
        except ValueError as error:
            raise StorageError(f"{self._storage.root}/{key}: {error}; delete it and run again") from None
