"""Load a projector, read reference pictures, apply them to a conditioning; several references are a chain of nodes.

ComfyUI's conditioning is a list of `[tensor (1, T, D), dict]`. Z-Image's text encoder there gives the template's rows,
too, and an `attention_mask` (1, T), from which the model takes how many rows there are.

T prompt rows, S vision-language tokens, D hidden.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from projector import Projector, VLEmbeddingExtractor
from projector.network.projector import Mode
from projector.steering.references import steered
from shards.errors import UsageError

from .clip_reading import read_with_clip
from .masks import inside_and_outside

CATEGORY = "Z-Image projector"
FOLDER = "projectors"  # in ComfyUI's models folder
EPSILON = 1e-5  # the sampler takes ranges that touch as both active


@dataclass(frozen=True)
class LoadedProjector:
    """A projector, and where it was loaded from."""

    projector: Projector
    source: str


@dataclass(frozen=True)
class References:
    """Pictures as they were read, (S, D) raw each, and the projector that they were read for."""

    projector: Projector
    states: tuple[Tensor, ...]


class LoadZImageProjector:
    """Load a projector."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES = ("ZIMAGE_PROJECTOR",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's names
        """What ComfyUI shows."""
        tip = f"Hub id (org/name), folder or .safetensors file; also by its name in models/{FOLDER}"
        return {
            "required": {"name": ("STRING", {"default": "", "tooltip": tip})},
            "optional": {
                "revision": ("STRING", {"default": "", "tooltip": "branch, tag or commit of a Hub id"})
            },
        }

    def load(self, name: str, revision: str = "") -> tuple[LoadedProjector]:
        """Load it; nothing else is on any device."""
        if not name.strip():
            raise UsageError("name is empty; give a Hub id, a folder or a .safetensors file")
        source = _place_of(name.strip())
        projector = Projector.from_pretrained(source, revision=revision.strip() or None)
        pinned = f"{source}@{revision.strip()}" if revision.strip() else source
        return (LoadedProjector(projector, pinned),)


class ReadZImageReference:
    """Read pictures with Qwen3-VL: ComfyUI's own where `clip` is connected, else a transformers folder."""

    CATEGORY, FUNCTION = CATEGORY, "read"
    RETURN_TYPES = ("ZIMAGE_REFERENCE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """What ComfyUI shows."""
        vision = {
            "default": "",
            "tooltip": "without clip: folder or Hub id, such as Qwen/Qwen3-VL-4B-Instruct",
        }
        text = {
            "default": "",
            "multiline": True,
            "tooltip": "only for projectors trained with the caption beside",
        }
        language = {
            "default": "",
            "tooltip": "only for projectors of the graft, without clip: Z-Image's diffusers folder or Hub id",
        }
        return {
            "required": {"projector": ("ZIMAGE_PROJECTOR",), "image": ("IMAGE",)},
            "optional": {
                "clip": ("CLIP",),
                "vision": ("STRING", vision),
                "text": ("STRING", text),
                "language": ("STRING", language),
                "text_encoder": (
                    "CLIP",
                    {"tooltip": "only for projectors of the graft: Z-Image's text encoder"},
                ),
            },
        }

    def __init__(self) -> None:
        self._loaded: tuple[tuple[str, ...], VLEmbeddingExtractor] | None = None

    def read(
        self,
        projector: LoadedProjector,
        image: Tensor,
        clip: Any = None,
        vision: str = "",
        text: str = "",
        language: str = "",
        text_encoder: Any = None,
    ) -> tuple[References]:
        """Read each picture of a batch (B, H, W, 3), 0 to 1."""
        pictures = [Image.fromarray(pixels) for pixels in (image[..., :3] * 255).round().byte().cpu().numpy()]
        if clip is not None:
            states = [
                read_with_clip(clip, text_encoder, projector.projector, picture) for picture in pictures
            ]
        else:
            states = self._read(projector, pictures, vision.strip(), text, language.strip())
        return (References(projector.projector, tuple(states)),)

    def _read(
        self, projector: LoadedProjector, pictures: list[Image.Image], vision: str, text: str, language: str
    ) -> list[Tensor]:
        if not vision:
            raise UsageError(
                "clip and vision are empty; connect a Qwen3-VL clip, or name a Qwen3-VL folder or Hub id"
            )
        from comfy.model_management import get_torch_device

        device = str(get_torch_device())
        wanted = (vision, projector.source, language)
        if self._loaded is None or self._loaded[0] != wanted:
            dtype = torch.float32 if device == "cpu" else torch.bfloat16
            extractor = VLEmbeddingExtractor.from_pretrained(
                vision, projector.source, device=device, dtype=dtype, language=language or None
            )
            self._loaded = (wanted, extractor)
        extractor, layer = self._loaded[1], projector.projector.layer
        extractor.to(device)
        states = [extractor.extract(each, text or None, hidden_layer=layer).raw.cpu() for each in pictures]
        extractor.to("cpu")  # ComfyUI does not know of it and could not make room
        return states


class ApplyZImageReference:
    """Put references into a conditioning, in a part of the sampling and of the picture; elsewhere nothing changes."""

    CATEGORY, FUNCTION = CATEGORY, "apply"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """What ComfyUI shows."""

        def share(value: float, least: float = 0.0) -> tuple[str, dict[str, float]]:
            return ("FLOAT", {"default": value, "min": least, "max": 1.0, "step": 0.01})

        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "reference": ("ZIMAGE_REFERENCE",),
                "mode": (list(get_args(Mode)),),
                "alpha": share(0.5),
                "weight": share(1.0, least=0.01),
                "start": share(0.0),
                "end": share(1.0),
            },
            "optional": {
                "mask": ("MASK", {"tooltip": "where the references act; the prompt alone elsewhere"})
            },
        }

    def apply(
        self,
        conditioning: list[list[Any]],
        reference: References,
        mode: Mode = "concat",
        alpha: float = 0.5,
        weight: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        mask: Tensor | None = None,
    ) -> tuple[list[list[Any]]]:
        """Apply to every entry of a conditioning that is active at some time between start and end, within the mask."""
        if not 0 <= start < end <= 1:
            raise UsageError(f"start = {start}, end = {end}; expected 0 <= start < end <= 1")
        applied: list[list[Any]] = []
        for tensor, values in conditioning:
            first, last = values.get("start_percent", 0.0), values.get("end_percent", 1.0)
            begin, finish = max(first, start), min(last, end)
            inside, outside = inside_and_outside(values, mask)
            if begin >= finish or inside is None:
                applied.append([tensor, values])
                continue
            if begin > first:
                applied.append([tensor, values | {"start_percent": first, "end_percent": begin - EPSILON}])
            with_pictures = _with_references(tensor, reference, mode, alpha, weight)
            period = {"start_percent": begin, "end_percent": finish} if (begin, finish) != (0.0, 1.0) else {}
            changed = dict[str, Any](period)
            if values.get("attention_mask") is not None:  # tells the model how many rows there are
                changed["attention_mask"] = torch.ones(with_pictures.shape[:2]).to(values["attention_mask"])
            applied.append([with_pictures, inside | changed])
            if outside is not None:
                applied.append([tensor, outside | period])
            if finish < last:
                applied.append([tensor, values | {"start_percent": finish + EPSILON, "end_percent": last}])
        return (applied,)


def _place_of(name: str) -> str:
    """A projector's path where its name is one in ComfyUI's models folder, else the name itself."""
    try:
        from folder_paths import models_dir
    except ImportError:
        return name
    place = Path(models_dir, FOLDER, name)
    return str(place) if not Path(name).exists() and ".." not in Path(name).parts and place.exists() else name


def _with_references(
    tensor: Tensor, reference: References, mode: Mode, alpha: float, weight: float
) -> Tensor:
    """(1, rows, D) of a conditioning (1, T, D)."""
    projector, rows = reference.projector, tensor[0]
    if tensor.shape[0] != 1 or rows.shape[-1] != projector.width:
        raise UsageError(
            f"conditioning of shape {tuple(tensor.shape)} is not Z-Image's; this projector takes (1, rows, "
            f"{projector.width}): encode the prompt with Z-Image's text encoder"
        )
    try:
        projector.own_rows(rows)
    except UsageError:  # nothing but the template: an empty prompt
        prompt = None
    else:
        prompt = rows.float()
    whole = steered(
        projector,
        [states.float() for states in reference.states],
        prompt,
        weights=[weight] * len(reference.states),
        mode=mode,
        alpha=alpha,
    )
    return whole.to(tensor)[None]


NODE_CLASS_MAPPINGS = {
    "LoadZImageProjector": LoadZImageProjector,
    "ReadZImageReference": ReadZImageReference,
    "ApplyZImageReference": ApplyZImageReference,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LoadZImageProjector": "Load Z-Image Projector",
    "ReadZImageReference": "Read Z-Image Reference",
    "ApplyZImageReference": "Apply Z-Image Reference",
}
