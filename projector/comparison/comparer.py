"""Pictures with and without the projector: one case, one method, one mode at a time; then their scores and grid.

S tokens read from a picture, E rows of the template's end, D hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from PIL import Image
from torch import Tensor

from projector.comparison.cases import PROJECTED, TEXT, Case, Column
from projector.comparison.grid import comparison_grid
from projector.comparison.scores import SiglipScorer, load_scorers, score_pictures
from projector.evaluation.baselines import Method, TrainStatistics
from projector.inference.image_generator import ImageGenerator
from projector.inference.text_encoder import (
    SampleError,
    TextEncoder,
    TextEncoding,
    special_token_in,
    templated,
)
from projector.models.offload import Residence
from projector.models.resolve import ModelSource, ModelSources
from projector.network.blend import Blend
from projector.network.projector import Projector
from projector.options import GRAFT
from projector.steering.extractor import VLEmbeddingExtractor
from projector.steering.modes import ReferenceRows, conditionings, projected, unprojected, untouched
from shards.errors import StorageError, UsageError
from shards.format.sample import as_png, open_image
from shards.stores.local import open_storage
from shards.stores.store import Storage

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
        suffix: (E, D) mean of the template's end over the training data; None where nothing needs it.
        attributes: whether the models are the miniature ones, whose pictures are judged by what they show.
        one_at_a_time: whether only the model at work is on the device, as in a build with placement `offload`.
    """

    root: str
    checkpoint: str
    models: ModelSources
    siglip: ModelSource | None
    scorers: tuple[str, ...]
    settings: CompareSettings
    reference: TrainStatistics | None
    suffix: Tensor | None = None
    attributes: bool = False
    one_at_a_time: bool = False


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
        # Pictures come case by case.
        self._prompt = lru_cache(maxsize=1)(self._encoding)
        self._tokens = lru_cache(maxsize=2)(self._reading)
        self._rows = lru_cache(maxsize=16)(self._rows_of)

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
        return self._reader(self.spec.checkpoint, grafted=self._projector.reader == GRAFT)

    @cached_property
    def _graft(self) -> VLEmbeddingExtractor:
        return self._vision if self._projector.reader == GRAFT else self._reader(None, grafted=True)

    def _reader(self, projector: str | None, *, grafted: bool) -> VLEmbeddingExtractor:
        return VLEmbeddingExtractor.from_pretrained(
            self.spec.models.vl.here(),
            projector,
            device=self._residence.loading_device,
            dtype=self._dtype,
            language=self.spec.models.image.here() if grafted else None,
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

    def make(self, case: Case, column: Column) -> None:
        """Make one picture and put it on storage.

        Args:
            case: prompt, reference and seed.
            column: of the case.
        """
        prompt = self._prompt(case)
        if column.method == TEXT:
            assert prompt is not None  # such a column is of cases with a prompt
            first, second = prompt.embeddings, None
        else:
            first, second = conditionings(
                self._rows(case, column.method),
                column.mode,
                None if prompt is None else prompt.embeddings,
                None if prompt is None else prompt.kind,
                value=column.value,
                blend=self.spec.settings.blend,
            )
        self._residence.let_in(self._images)
        picture = self._images.generate(
            [first], [case.seed], references=None if second is None else [second], weight=column.value
        )[0]
        self._storage.put_bytes(case.picture(column), as_png(picture))

    def _encoding(self, case: Case) -> TextEncoding | None:
        """The prompt, if there is one."""
        if not case.prompt:
            return None
        self._residence.let_in(self._text)
        encoding = self._text.encode([case.prompt])[0]
        if isinstance(encoding, SampleError):
            raise UsageError(f"prompt {case.prompt[:80]!r}: {encoding}")
        return encoding

    def _reading(self, case: Case, *, grafted: bool) -> Tensor:
        """(S, D) the reference's raw tokens."""
        reader = self._graft if grafted else self._vision
        self._residence.let_in(reader)
        beside = None if self._projector.text_mode == "none" else case.prompt or None
        picture = self._picture(case.reference)
        return reader.extract(picture, beside, hidden_layer=self._projector.layer).raw

    def _rows_of(self, case: Case, method: str) -> ReferenceRows:
        """The reference as a method words it."""
        raw = self._tokens(case, grafted=method == GRAFT)
        if method == PROJECTED:
            return projected(self._projector, raw, self.spec.suffix)
        if method == GRAFT:
            return untouched(self._projector, raw.cpu().float(), suffix=self.spec.suffix)
        return unprojected(self._projector, raw.cpu(), self._baselines[method].apply, self.spec.suffix)

    def judge(self, case: Case, columns: Sequence[Column]) -> list[dict[str, float]]:
        """Score a case's pictures and put its grid on storage.

        Args:
            case: all of whose pictures are there.
            columns: its pictures.

        Returns:
            scores by name, one mapping for each column.
        """
        pictures = {column: self._picture(case.picture(column)) for column in columns}
        reference = self._picture(case.reference)
        settings = self.spec.settings
        note = f"blend {settings.blend}, {settings.steps} steps, guidance {settings.guidance:g}"
        self._storage.put_bytes(case.grid, as_png(comparison_grid(case, reference, pictures, note)))
        return score_pictures(
            list(pictures.values()),
            case.prompt,
            reference,
            self._siglip,
            load_scorers(self.spec.scorers),
            attributes=self.spec.attributes,
            things=case.things,
        )

    def _picture(self, key: str) -> Image.Image:
        try:
            return open_image(self._storage.get_bytes(key)).convert("RGB")
        except ValueError as error:
            raise StorageError(f"{self._storage.root}/{key}: {error}; delete it and run again") from None
