"""From a picture to embeddings that condition Z-Image, in one call.

Letters: S tokens returned, D hidden size.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from projector.inference.vision_encoder import VisionEncoding, VisionLanguageEncoder, pooled
from projector.models.model_folder import VL_FILES, check_complete, read_json
from projector.models.resolve import locate
from projector.network.projector import Projector
from projector.steering.reference_size import UNRECORDED, to_training_size
from shards.errors import UsageError
from shards.format.sample import KIND_CAPTION, KIND_IMAGE
from shards.sources.picture import as_rgb

TEXT_STD = (
    61.0  # over all dimensions of Qwen3-4B's conditioning, sink included, as the guide's family measured it
)
KINDS = {"image": (KIND_IMAGE,), "text": (KIND_CAPTION,), "all": (KIND_IMAGE, KIND_CAPTION)}


@dataclass(frozen=True)
class Spread:
    """How the numbers of a tensor lie, all dimensions together; float32."""

    mean: float
    std: float
    min: float
    max: float

    @classmethod
    def of(cls, numbers: torch.Tensor) -> "Spread":
        """Of all numbers of a tensor with at least two."""
        wide = numbers.float()
        return cls(float(wide.mean()), float(wide.std()), float(wide.min()), float(wide.max()))


@dataclass(frozen=True)
class VLExtractionResult:
    """What was read from a picture.

    Attributes:
        embeddings: (S, D), projected when a projector is loaded.
        raw: (V, D) the same tokens as they were read.
        kind: (S,) uint8, image or caption; empty where the projector does not keep positions.
        hidden_layer: of the VL model.
        text_mode: `caption` when a text stood in the input, else `none`.
        tokens: which tokens were taken: `image`, `text` or `all`.
        projected: whether a projector was applied.
        scale_factor: what `scale_to_text` multiplied by; 1 without it.
        before: of the tokens as they were read.
        after: of `embeddings`.
    """

    embeddings: torch.Tensor
    raw: torch.Tensor
    kind: torch.Tensor
    hidden_layer: int
    text_mode: str
    tokens: str
    projected: bool
    scale_factor: float
    before: Spread
    after: Spread

    @property
    def original_std(self) -> float:
        """Standard deviation over all numbers as they were read."""
        return self.before.std

    @property
    def scaled_std(self) -> float:
        """Standard deviation over all numbers of `embeddings`."""
        return self.after.std

    @property
    def num_tokens(self) -> int:
        """S."""
        return len(self.embeddings)


class VLEmbeddingExtractor:
    """Qwen3-VL and, where given, a projector behind it; make one with `from_pretrained`."""

    def __init__(self, encoder: VisionLanguageEncoder, projector: Projector | None = None) -> None:
        self._encoder = encoder
        self._projector = projector

    @classmethod
    def from_pretrained(
        cls,
        model_path: str,
        projector_path: str | None = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        language: str | None = None,
    ) -> "VLEmbeddingExtractor":
        """Load the model and the projector.

        Args:
            model_path: Qwen3-VL folder or hub id (`id@revision`), as everywhere.
            projector_path: trained or exported projector; None for raw hidden states.
            device: of both.
            dtype: of the VL model. Its weights are rounded as those that made the projector's training pairs were.
            language: folder or hub id of a Z-Image pipeline whose text encoder takes the language model's place, as
                projectors of reader `graft` want it.

        Raises:
            UsageError: no such model, a projector of another width or of a layer the model has not, or of the other
                reader.
        """
        _, folder, _ = locate("model_path", model_path)
        width, depth = _size_of(folder)
        check_complete(folder, VL_FILES, "model_path")
        projector = Projector.from_pretrained(projector_path, device=device) if projector_path else None
        if projector is not None:
            _check_fit(projector, str(projector_path), width, depth, grafted=language is not None)
        # A projector names its layer, so nothing after it is computed; without one every layer can be asked for.
        layers = [projector.layer] if projector is not None else list(range(-depth, 0))
        encoder = VisionLanguageEncoder.from_pretrained(
            str(folder),
            device=device,
            dtype=dtype,
            layers=layers,
            text_modes=["none"],
            quantize="none" if projector is None else projector.quantize,
            language=None if language is None else str(locate("language", language)[1]),
        )
        return cls(encoder, projector)

    def to(self, device: str) -> None:
        """Move model and projector."""
        self._encoder.to(device)
        if self._projector is not None:
            self._projector.to(device)

    def extract(
        self,
        image: Image.Image,
        text: str | None = None,
        *,
        hidden_layer: int = -8,
        text_tokens_only: bool = False,
        image_tokens_only: bool = False,
        scale_to_text: bool = False,
    ) -> VLExtractionResult:
        """Read a picture.

        Args:
            image: any size and mode; read upright, as sRGB, over white (`shards.sources.picture.as_rgb`), and with a
                projector brought to the size of the pictures it was trained on.
            text: stands beside the picture in the input; None for the picture alone.
            hidden_layer: which state; with a projector, the one it was trained on.
            text_tokens_only, image_tokens_only: which tokens to take; with a projector, those it was trained on
                are taken when neither is asked for.
            scale_to_text: multiply so that the standard deviation over all numbers is the text encoder's.

        Returns:
            embeddings (S, D) and what they are.

        Raises:
            UsageError: a layer, tokens or a text that the projector was not trained for.
        """
        mode = "caption" if text else "none"
        tokens = self._tokens(text_tokens_only, image_tokens_only)
        self._check(hidden_layer, mode, tokens)
        raw, kind = self._read(image, text or "", mode, hidden_layer, tokens)
        embeddings = raw if self._projector is None else self._projector(raw)
        scale = TEXT_STD / float(embeddings.float().std()) if scale_to_text else 1.0
        if scale_to_text:
            embeddings = embeddings * scale
        return VLExtractionResult(
            embeddings=embeddings,
            raw=raw,
            kind=kind if len(embeddings) == len(raw) else torch.empty(0, dtype=torch.uint8),
            hidden_layer=hidden_layer,
            text_mode=mode,
            tokens=tokens,
            projected=self._projector is not None,
            scale_factor=scale,
            before=Spread.of(raw),
            after=Spread.of(embeddings),
        )

    def _read(
        self, image: Image.Image, text: str, mode: str, layer: int, tokens: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(V, D) hidden states of the tokens that are taken, without attention sinks, and (V,) their kinds."""
        self._encoder.text_modes = (mode,)
        picture = as_rgb(image)
        if self._projector is not None:
            picture = to_training_size(picture, self._projector.picture_size or UNRECORDED)
        encoding = self._encoder.encode([picture], [text])[0]
        if not isinstance(encoding, VisionEncoding):
            raise UsageError(str(encoding))
        if self._projector is not None:
            encoding = pooled(encoding, self._projector.vl_tokens)
        kind = encoding.kind[mode]
        keep = torch.isin(kind, torch.tensor(KINDS[tokens], dtype=torch.uint8))
        states = encoding.states[mode][layer]
        if self._projector is not None:  # it was trained without attention sinks
            keep &= self._projector.is_ordinary(states).cpu()
        return states[keep.to(states.device)], kind[keep]

    def _tokens(self, text_only: bool, image_only: bool) -> str:
        if text_only and image_only:
            raise UsageError(
                "text_tokens_only and image_tokens_only exclude each other; leave both out for all tokens"
            )
        if text_only:
            return "text"
        if image_only:
            return "image"
        return self._projector.tokens if self._projector is not None else "all"

    def _check(self, layer: int, mode: str, tokens: str) -> None:
        """Refuse what the loaded model or projector was not made for."""
        if layer not in self._encoder.layers:
            allowed = ", ".join(map(str, self._encoder.layers))
            raise UsageError(f"hidden_layer = {layer}: allowed are {allowed}")
        if tokens == "text" and mode == "none":
            raise UsageError("text_tokens_only needs a text; pass text=…")
        projector = self._projector
        if projector is None:
            return
        if tokens != projector.tokens:
            raise UsageError(
                f"tokens {tokens!r}: the projector was trained on {projector.tokens!r}; take the same"
            )
        # The picture stands before the text and attention is causal: image tokens are the same with any text.
        if projector.text_mode not in (mode, "mixed") and projector.tokens != "image":
            wanted = "a text" if projector.text_mode == "caption" else "no text"
            raise UsageError(
                f"text mode {mode!r}: the projector was trained on {projector.text_mode!r}; pass {wanted}"
            )


def _check_fit(projector: Projector, path: str, width: int, depth: int, *, grafted: bool) -> None:
    """Refuse a projector that was trained on another width, on a layer that is not there or for the other reader."""
    if projector.width != width:
        raise UsageError(
            f"projector_path = {path!r}: its width is {projector.width}, the VL model's is {width}; "
            "use the model it was trained on"
        )
    if projector.layer < -depth:
        raise UsageError(
            f"projector_path = {path!r}: trained on layer {projector.layer}, the VL model has {depth} blocks; "
            "use the model it was trained on"
        )
    if (projector.reader == "graft") != grafted:
        needed = "leave language out" if grafted else "give language, the Z-Image pipeline"
        raise UsageError(
            f"projector_path = {path!r}: trained on pictures that {projector.reader} read; {needed}"
        )


def _size_of(folder: Path) -> tuple[int, int]:
    """Width and number of blocks of a vision-language model's text side."""
    text = read_json(folder / "config.json", "model_path", folder).get("text_config")
    width, depth = (
        text.get(key) if isinstance(text, dict) else None for key in ("hidden_size", "num_hidden_layers")
    )
    if type(width) is not int or type(depth) is not int or min(width, depth) < 1:
        raise UsageError(
            f"model_path = {str(folder)!r}: its config.json has no text_config with hidden_size and "
            "num_hidden_layers; give the folder of a Qwen3-VL model"
        )
    return width, depth
