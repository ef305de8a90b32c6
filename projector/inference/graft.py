"""The graft: the text encoder that conditions Z-Image, with Qwen3-VL's vision tower and connector in front.

Qwen3-VL-4B descends from Qwen3-4B and its blocks have the same shapes, so the encoder's weights fit into its place.
Pictures then come out in the encoder's own space, untrained, and text exactly as the encoder gives it
(D-OPSD, arXiv 2605.05204).
"""

from typing import Any

import torch

from shards.errors import UsageError


def graft_text_encoder(model: Any, pipeline: str) -> None:
    """Put a pipeline's text encoder into a vision-language model, in place of its language model.

    Args:
        model: `Qwen3VLForConditionalGeneration`, before anything of it is cut.
        pipeline: folder of a Z-Image pipeline.

    Raises:
        UsageError: the two language models are not of one shape.
    """
    from transformers import AutoModelForCausalLM

    text = AutoModelForCausalLM.from_pretrained(
        pipeline, subfolder="text_encoder", dtype=model.dtype, use_safetensors=True
    )
    language = model.model.language_model
    theirs, ours = (
        {name: tuple(weight.shape) for name, weight in of.state_dict().items()}
        for of in (text.model, language)
    )
    if different := sorted(name for name in theirs.keys() | ours if theirs.get(name) != ours.get(name)):
        name = different[0]
        raise UsageError(
            f"the text encoder of {pipeline} does not fit into the vision-language model: {name} is "
            f"{theirs.get(name)}, there {ours.get(name)}; the graft needs models of one family and size"
        )
    language.load_state_dict(text.model.state_dict())
    with torch.no_grad():  # Qwen3's 1e6; under the 5e6 of Qwen3-VL text comes out 11% off
        for frequencies in (language.rotary_emb.inv_freq, language.rotary_emb.original_inv_freq):
            frequencies.copy_(text.model.rotary_emb.inv_freq)
