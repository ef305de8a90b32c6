"""Read a picture with the Qwen3-VL that ComfyUI loaded.

S vision-language tokens, D hidden.
"""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from projector import Projector
from projector.inference.vision_encoder import pool_by_kind
from projector.steering.reference_size import TOKEN_SIDE, UNRECORDED, to_training_size
from shards.errors import UsageError
from shards.format.sample import KIND_IMAGE

LEAST_PIXELS, MOST_PIXELS = 65_536, 16_777_216  # preprocessor_config.json of Qwen3-VL
VISION, TEXT = "qwen3vl_4b", "qwen3_4b"  # ComfyUI's names of Qwen3-VL-4B and of Z-Image's text encoder
LANGUAGE = "transformer.model."  # of the language model in either


def read_with_clip(clip: Any, text_encoder: Any, projector: Projector, picture: Image.Image) -> Tensor:
    """(S, D) raw image tokens, as ComfyUI's Qwen3-VL reads a picture; `text_encoder` is what the graft takes.

    They are the same whatever text stands behind the picture, since attention is causal.
    """
    if projector.reader == "graft" and text_encoder is None:
        raise UsageError(
            "text_encoder: this projector was trained on pictures that the graft read; connect Z-Image's text encoder"
        )
    if projector.tokens != "image" or projector.layer > -2:
        raise UsageError(
            f"clip: ComfyUI's Qwen3-VL gives image tokens of layers up to -2, this projector takes {projector.tokens} "
            f"tokens of layer {projector.layer}; leave clip out and give vision"
        )
    reader = _grafted(clip, text_encoder) if projector.reader == "graft" else clip.clone()
    reader.clip_layer(projector.layer)
    sized = _whole_tokens(to_training_size(picture, projector.picture_size or UNRECORDED))
    pixels = torch.frombuffer(bytearray(sized.tobytes()), dtype=torch.uint8)
    tokens = reader.tokenize("", images=[pixels.view(1, sized.height, sized.width, 3).float() / 255])
    (row,) = next(iter(tokens.values()))
    places = [at for at, token in enumerate(row) if isinstance(token[0], dict)]
    found = reader.encode_from_tokens(tokens) if len(places) == 1 else None
    if found is None or found.dim() != 3 or found.shape[2] != projector.width:
        raise UsageError(
            "clip: it is no plain Qwen3-VL-4B; load Qwen3-VL-4B with CLIPLoader, or leave clip out and give vision"
        )
    count = found.shape[1] - (len(row) - 1)
    states = found[0, places[0] : places[0] + count]
    if projector.vl_tokens != "all":
        kind = torch.full((count,), KIND_IMAGE, dtype=torch.uint8)
        states = pool_by_kind(states, kind, int(projector.vl_tokens.removeprefix("pooled:")))
    return states


def _whole_tokens(picture: Image.Image) -> Image.Image:
    """The picture in the size and by the filter of Qwen3-VL's own processor; ComfyUI has other limits and no filter."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    height, width = smart_resize(picture.height, picture.width, TOKEN_SIDE, LEAST_PIXELS, MOST_PIXELS)
    same = picture.size == (width, height)
    return picture if same else picture.resize((width, height), Image.Resampling.BICUBIC)


def _grafted(clip: Any, text_encoder: Any) -> Any:
    """A clone of Qwen3-VL with the text encoder's language model, by patches that ComfyUI takes back for other clones.

    What `projector.inference.graft` does: all weights of the language model, and its frequencies.
    """
    reader, ours, theirs = clip.clone(), f"{VISION}.{LANGUAGE}", f"{TEXT}.{LANGUAGE}"
    found = {
        ours + key.removeprefix(theirs): patch
        for key, patch in text_encoder.get_key_patches().items()
        if key.startswith(theirs)
    }
    own = {key: value for key, value in reader.patcher.model_state_dict().items() if key.startswith(ours)}
    if not found or {key: patch[0][0].shape for key, patch in found.items()} != {
        key: value.shape for key, value in own.items()
    }:
        raise UsageError(
            "text_encoder: its language model is not of Qwen3-VL-4B's shape; connect qwen_3_4b and a Qwen3-VL-4B clip"
        )
    reader.add_patches(found, 1.0, 0.0)
    config = getattr(text_encoder.cond_stage_model, TEXT).transformer.model.config
    reader.patcher.add_object_patch(f"{ours}config.rope_theta", config.rope_theta)
    return reader
